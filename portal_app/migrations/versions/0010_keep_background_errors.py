"""Keep what failed in the background, so that administrators can read it on a page.

A table of its own: the release before does not know it and goes on.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "background_errors",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("part", sa.String(length=60), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_background_errors")),
    )
    op.create_index(op.f("ix_background_errors_last_seen_at"), "background_errors", ["last_seen_at"])


def downgrade() -> None:
    op.drop_table("background_errors")
