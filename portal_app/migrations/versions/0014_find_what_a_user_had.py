"""Find which connections and addresses a user had, also those that never had a session.

An index only: the release before reads and writes as it did.
"""

from collections.abc import Sequence

from alembic import op

from portal_app.migrations.indexes import New, build

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEX = New("ix_address_uses_user_name_started_at", "address_uses", ["user_name", "started_at"])


def upgrade() -> None:
    build(_INDEX)


def downgrade() -> None:
    op.drop_index(_INDEX.name, table_name=_INDEX.table)
