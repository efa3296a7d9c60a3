"""Let lists of users and connections be read from any place, and searched by the begin of a name.

Indexes only: the release before reads and writes as it did.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from portal_app.names import folded

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_OPEN = sa.text("ended_at IS NULL")
_OF_OPEN_SESSIONS: dict[str, list[Any]] = {
    "started_at": ["started_at", "node_number", "session_id"],
    "user": [folded(sa.column("user_name")), "node_number", "session_id"],
    "connection_id": ["connection_id"],
    "ipv4": ["ipv4"],
    "ipv6": ["ipv6"],
    "origin": ["origin"],
}


def upgrade() -> None:
    op.create_index("ix_users_name_folded", "users", [folded(sa.column("name")), "id"])
    op.create_index("ix_users_created_at_id", "users", ["created_at", "id"])
    op.create_index(
        "ix_users_disabled_name_folded",
        "users",
        [folded(sa.column("name")), "id"],
        postgresql_where=sa.text("is_disabled"),
        sqlite_where=sa.text("is_disabled = 1"),
    )
    op.create_index("ix_connections_created_at_id", "connections", ["created_at", "id"])
    for name, columns in _OF_OPEN_SESSIONS.items():
        op.create_index(
            f"ix_vpn_sessions_open_{name}",
            "vpn_sessions",
            columns,
            postgresql_where=_OPEN,
            sqlite_where=_OPEN,
        )


def downgrade() -> None:
    for name in _OF_OPEN_SESSIONS:
        op.drop_index(f"ix_vpn_sessions_open_{name}", "vpn_sessions")
    op.drop_index("ix_connections_created_at_id", "connections")
    op.drop_index("ix_users_disabled_name_folded", "users")
    op.drop_index("ix_users_created_at_id", "users")
    op.drop_index("ix_users_name_folded", "users")
