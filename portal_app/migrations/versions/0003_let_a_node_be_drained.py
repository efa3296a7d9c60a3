"""Let a node be drained with a notice to its users, and remember which key its clients know.

All three may be empty: the release before goes on without them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("node_status", sa.Column("notice", sa.Text(), nullable=True))
    op.add_column("node_status", sa.Column("cut_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("node_status", sa.Column("issued_public_key", sa.String(length=44), nullable=True))


def downgrade() -> None:
    for name in ("issued_public_key", "cut_at", "notice"):
        op.drop_column("node_status", name)
