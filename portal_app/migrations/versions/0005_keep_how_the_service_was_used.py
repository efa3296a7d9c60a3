"""Keep how the service was used, and let history and audit log be read by what is asked for.

Two tables of their own, and indexes: the release before does not know them and goes on.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from portal_app.migrations.indexes import New, build

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEXES = (
    New("ix_vpn_sessions_started_at", "vpn_sessions", ["started_at", "node_number", "session_id"]),
    New("ix_vpn_sessions_profile_id_started_at", "vpn_sessions", ["profile_id", "started_at"]),
    New("ix_vpn_sessions_node_number_started_at", "vpn_sessions", ["node_number", "started_at"]),
    New("ix_vpn_sessions_origin_started_at", "vpn_sessions", ["origin", "started_at"], "origin IS NOT NULL"),
    New("ix_audit_events_actor_at", "audit_events", ["actor", "at"]),
    New("ix_audit_events_action_at", "audit_events", ["action", "at"]),
    New("ix_audit_events_object_at", "audit_events", ["object", "at"]),
)


def upgrade() -> None:
    build(*_INDEXES)
    op.create_table(
        "usage_samples",
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("node_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("protocol", sa.String(length=10), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("connections", sa.Integer(), nullable=False),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "profile_id", "node_number", "protocol", "slot", name=op.f("pk_usage_samples")
        ),
    )
    op.create_index("ix_usage_samples_slot", "usage_samples", ["slot"])
    op.create_table(
        "usage_days",
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("node_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("sessions", sa.Integer(), nullable=False),
        sa.Column("peak_connections", sa.Integer(), nullable=True),
        sa.Column("peak_users", sa.Integer(), nullable=True),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("clients", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("profile_id", "node_number", "day", name=op.f("pk_usage_days")),
    )


def downgrade() -> None:
    for index in _INDEXES:
        op.drop_index(index.name, table_name=index.table)
    op.drop_table("usage_days")
    op.drop_table("usage_samples")
