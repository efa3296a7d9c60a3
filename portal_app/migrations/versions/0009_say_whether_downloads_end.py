"""Let users of a drained node read whether configurations that they downloaded end, whoever drains it.

May be empty: the release before does not write it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("node_status", sa.Column("ends_downloads", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("node_status", "ends_downloads")
