"""Remember how a connect was decided that was refused, or whose connection has ended.

May be empty: the release before does not write it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("address_uses", sa.Column("choice", sa.String(length=255), nullable=True))
    op.create_table(
        "refused_connects",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("answer", sa.String(length=255), nullable=False),
        sa.Column("why", sa.String(length=1000), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], ondelete="CASCADE", name=op.f("fk_refused_connects_user_id_users")
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_refused_connects")),
    )


def downgrade() -> None:
    op.drop_table("refused_connects")
    op.drop_column("address_uses", "choice")
