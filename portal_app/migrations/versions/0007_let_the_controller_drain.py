"""Let the controller cut a node's users when it was announced, and remember which job failed.

All three may be empty: the release before goes on without them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("node_status", sa.Column("cuts_downloads", sa.Boolean(), nullable=True))
    op.add_column("periodic_jobs", sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("periodic_jobs", sa.Column("error", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("periodic_jobs", "error")
    op.drop_column("periodic_jobs", "failed_at")
    op.drop_column("node_status", "cuts_downloads")
