"""Remember when a second machine answered as a node, whichever portal leads.

May be empty: the release before does not write it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("node_status", sa.Column("doubled_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("node_status", "doubled_at")
