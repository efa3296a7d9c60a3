"""Let lists of users and connections be read from any place, and searched by the begin of a name.

Indexes only: the release before reads and writes as it did.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from portal_app.migrations.indexes import New, build
from portal_app.names import folded

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_OF_OPEN_SESSIONS: dict[str, list[Any]] = {
    "started_at": ["started_at", "node_number", "session_id"],
    "user": [folded(sa.column("user_name")), "node_number", "session_id"],
    "connection_id": ["connection_id"],
    "ipv4": ["ipv4"],
    "ipv6": ["ipv6"],
    "origin": ["origin"],
}
_BY_NAME: list[Any] = [folded(sa.column("name")), "id"]
_INDEXES = (
    New("ix_users_name_folded", "users", _BY_NAME),
    New("ix_users_created_at_id", "users", ["created_at", "id"]),
    New("ix_users_disabled_name_folded", "users", _BY_NAME, "is_disabled", "is_disabled = 1"),
    New("ix_connections_created_at_id", "connections", ["created_at", "id"]),
    *(
        New(f"ix_vpn_sessions_open_{name}", "vpn_sessions", columns, "ended_at IS NULL")
        for name, columns in _OF_OPEN_SESSIONS.items()
    ),
)


def upgrade() -> None:
    build(*_INDEXES)


def downgrade() -> None:
    for index in reversed(_INDEXES):
        op.drop_index(index.name, table_name=index.table)
