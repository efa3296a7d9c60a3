"""Find open sessions, of a node or a profile too, by indexes that have nothing else; downloads by their node.

In an index over all ends every open session has the same key, none. SQLite takes what has one key for a few
rows, and read and sorted all open sessions where it could read a page of them in order. Nobody looks for an
end and means an open session, so the index of ends does without them.

Indexes only: the release before reads and writes as it did, its one use of the index of ends by the new one.
"""

from collections.abc import Sequence

from alembic import op

from portal_app.migrations.indexes import New, build, drop

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BEFORE = New("ix_vpn_sessions_ended_at", "vpn_sessions", ["ended_at"])
_OPEN = {"node_number": ["connection_id"], "profile_id": ["protocol", "connection_id"]}
_INDEXES = (
    New("ix_vpn_sessions_over_ended_at", "vpn_sessions", ["ended_at"], "ended_at IS NOT NULL"),
    *(
        New(f"ix_vpn_sessions_open_{first}", "vpn_sessions", [first, *others], "ended_at IS NULL")
        for first, others in _OPEN.items()
    ),
    New(
        "ix_connections_downloads",
        "connections",
        ["node_number", "authorization_id"],
        "authorization_id IS NULL",
    ),
)


def upgrade() -> None:
    build(*_INDEXES)
    drop(_BEFORE.name, _BEFORE.table)


def downgrade() -> None:
    build(_BEFORE)
    for index in reversed(_INDEXES):
        op.drop_index(index.name, table_name=index.table)
