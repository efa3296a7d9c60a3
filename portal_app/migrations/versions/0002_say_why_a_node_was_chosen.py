"""Say why a node was chosen, and which offers are nearly full.

Both columns may be empty: the release before goes on writing rows without them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("connections", sa.Column("choice", sa.String(length=255), nullable=True))
    op.add_column("offers", sa.Column("full_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("offers", "full_since")
    op.drop_column("connections", "choice")
