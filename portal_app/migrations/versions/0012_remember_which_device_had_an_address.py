"""Remember what a connection was called that had an address, when it has ended.

May be empty: the release before does not write it.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("address_uses", sa.Column("device", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("address_uses", "device")
