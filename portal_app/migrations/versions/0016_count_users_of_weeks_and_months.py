"""Count the different users of 7 and of 30 days.

May be empty: the release before does not write them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("usage_days", sa.Column("users_of_7_days", sa.Integer(), nullable=True))
    op.add_column("usage_days", sa.Column("users_of_30_days", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("usage_days", "users_of_30_days")
    op.drop_column("usage_days", "users_of_7_days")
