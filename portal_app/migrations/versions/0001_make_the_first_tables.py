"""Make the first tables."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "address_uses",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("connection_id", sa.String(length=32), nullable=False),
        sa.Column("user_name", sa.String(length=255), nullable=False),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("protocol", sa.String(length=10), nullable=False),
        sa.Column("client_id", sa.String(length=255), nullable=True),
        sa.Column("ipv4", sa.String(length=15), nullable=True),
        sa.Column("ipv6", sa.String(length=39), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_reason", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_address_uses")),
    )
    op.create_index("ix_address_uses_connection_id", "address_uses", ["connection_id"], unique=False)
    op.create_index(op.f("ix_address_uses_ended_at"), "address_uses", ["ended_at"], unique=False)
    op.create_index("ix_address_uses_ipv4_started_at", "address_uses", ["ipv4", "started_at"], unique=False)
    op.create_index("ix_address_uses_ipv6_started_at", "address_uses", ["ipv6", "started_at"], unique=False)
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("object", sa.String(length=255), nullable=True),
        sa.Column("source", sa.String(length=60), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index(op.f("ix_audit_events_at"), "audit_events", ["at"], unique=False)
    op.create_table(
        "deployment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("deployment_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("plan_applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_deployment_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment")),
    )
    op.create_table(
        "nodes",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hostname", sa.String(length=253), nullable=False),
        sa.Column("agent_address", sa.String(length=253), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_nodes")),
        sa.UniqueConstraint("name", name=op.f("uq_nodes_name")),
    )
    op.create_table(
        "periodic_jobs",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_periodic_jobs")),
    )
    op.create_table(
        "profiles",
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("display_name", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("permissions", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("default_gateway", sa.Boolean(), nullable=False),
        sa.Column("routes", sa.JSON(), nullable=False),
        sa.Column("excluded_routes", sa.JSON(), nullable=False),
        sa.Column("dns_servers", sa.JSON(), nullable=False),
        sa.Column("dns_search_domains", sa.JSON(), nullable=False),
        sa.Column("preferred_protocol", sa.String(length=10), nullable=False),
        sa.Column("wireguard", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("openvpn", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("profile_id", name=op.f("pk_profiles")),
    )
    op.create_table(
        "throttles",
        sa.Column("bucket", sa.String(length=300), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("pk_throttles")),
    )
    op.create_index(op.f("ix_throttles_updated_at"), "throttles", ["updated_at"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("is_disabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "vpn_sessions",
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.String(length=32), nullable=False),
        sa.Column("connection_id", sa.String(length=32), nullable=False),
        sa.Column("user_name", sa.String(length=255), nullable=True),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("protocol", sa.String(length=10), nullable=False),
        sa.Column("ipv4", sa.String(length=15), nullable=True),
        sa.Column("ipv6", sa.String(length=39), nullable=True),
        sa.Column("origin", sa.String(length=60), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sent_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("node_number", "session_id", name=op.f("pk_vpn_sessions")),
    )
    op.create_index(op.f("ix_vpn_sessions_connection_id"), "vpn_sessions", ["connection_id"], unique=False)
    op.create_index(op.f("ix_vpn_sessions_ended_at"), "vpn_sessions", ["ended_at"], unique=False)
    op.create_index(
        "ix_vpn_sessions_user_name_started_at", "vpn_sessions", ["user_name", "started_at"], unique=False
    )
    op.create_table(
        "authorizations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(length=255), nullable=False),
        sa.Column("scope", sa.String(length=255), nullable=False),
        sa.Column("authorized_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_authorizations_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_authorizations")),
    )
    op.create_index(op.f("ix_authorizations_expires_at"), "authorizations", ["expires_at"], unique=False)
    op.create_index(op.f("ix_authorizations_user_id"), "authorizations", ["user_id"], unique=False)
    op.create_table(
        "browser_sessions",
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signed_in_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_browser_sessions_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_browser_sessions")),
    )
    op.create_index(op.f("ix_browser_sessions_expires_at"), "browser_sessions", ["expires_at"], unique=False)
    op.create_index(op.f("ix_browser_sessions_user_id"), "browser_sessions", ["user_id"], unique=False)
    op.create_table(
        "local_accounts",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_local_accounts_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_local_accounts")),
    )
    op.create_table(
        "node_status",
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("suspect_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("maintenance_mode", sa.Boolean(), nullable=False),
        sa.Column("wireguard_public_key", sa.String(length=44), nullable=True),
        sa.Column("info", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("instance_id", sa.String(length=32), nullable=True),
        sa.Column("journal_id", sa.String(length=32), nullable=True),
        sa.Column("journal_sequence", sa.BigInteger(), nullable=False),
        sa.Column("reconciled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reconciled_generation", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_number"],
            ["nodes.number"],
            name=op.f("fk_node_status_node_number_nodes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("node_number", name=op.f("pk_node_status")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "offers",
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("wireguard", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("openvpn", sa.JSON(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("next_position", sa.Integer(), nullable=False),
        sa.Column("allocated", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_number"], ["nodes.number"], name=op.f("fk_offers_node_number_nodes"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["profile_id"],
            ["profiles.profile_id"],
            name=op.f("fk_offers_profile_id_profiles"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("node_number", "profile_id", name=op.f("pk_offers")),
    )
    op.create_table(
        "one_time_links",
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_one_time_links_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_one_time_links")),
    )
    op.create_index(op.f("ix_one_time_links_user_id"), "one_time_links", ["user_id"], unique=False)
    op.create_table(
        "access_tokens",
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("authorization_id", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["authorizations.id"],
            name=op.f("fk_access_tokens_authorization_id_authorizations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_access_tokens")),
    )
    op.create_index(
        op.f("ix_access_tokens_authorization_id"), "access_tokens", ["authorization_id"], unique=False
    )
    op.create_index(op.f("ix_access_tokens_expires_at"), "access_tokens", ["expires_at"], unique=False)
    op.create_table(
        "authorization_codes",
        sa.Column("code_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("authorization_id", sa.Integer(), nullable=False),
        sa.Column("redirect_uri", sa.Text(), nullable=False),
        sa.Column("code_challenge", sa.String(length=43), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["authorizations.id"],
            name=op.f("fk_authorization_codes_authorization_id_authorizations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_authorization_codes")),
    )
    op.create_index(
        op.f("ix_authorization_codes_authorization_id"),
        "authorization_codes",
        ["authorization_id"],
        unique=False,
    )
    op.create_table(
        "connections",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("authorization_id", sa.Integer(), nullable=True),
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("protocol", sa.String(length=10), nullable=False),
        sa.Column("public_key", sa.String(length=44), nullable=True),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("ipv4", sa.String(length=15), nullable=True),
        sa.Column("ipv6", sa.String(length=39), nullable=True),
        sa.Column("display_name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(public_key IS NULL) = (protocol = 'openvpn')", name=op.f("ck_connections_key_of_wireguard")
        ),
        sa.CheckConstraint(
            "(position IS NULL) = (public_key IS NULL)", name=op.f("ck_connections_leased_with_key")
        ),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["authorizations.id"],
            name=op.f("fk_connections_authorization_id_authorizations"),
        ),
        sa.ForeignKeyConstraint(
            ["node_number", "profile_id"],
            ["offers.node_number", "offers.profile_id"],
            name="fk_connections_offers",
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_connections_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_connections")),
        sa.UniqueConstraint("authorization_id", name=op.f("uq_connections_authorization_id")),
        sa.UniqueConstraint("node_number", "ipv4", name=op.f("uq_connections_node_number_ipv4")),
        sa.UniqueConstraint("node_number", "ipv6", name=op.f("uq_connections_node_number_ipv6")),
        sa.UniqueConstraint("public_key", name=op.f("uq_connections_public_key")),
    )
    op.create_index(op.f("ix_connections_expires_at"), "connections", ["expires_at"], unique=False)
    op.create_index(
        "ix_connections_node_number_profile_id", "connections", ["node_number", "profile_id"], unique=False
    )
    op.create_index(
        "ix_connections_user_id_created_at", "connections", ["user_id", "created_at"], unique=False
    )
    op.create_table(
        "free_addresses",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_number", sa.Integer(), nullable=False),
        sa.Column("profile_id", sa.String(length=60), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("freed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_number", "profile_id"],
            ["offers.node_number", "offers.profile_id"],
            name="fk_free_addresses_offers",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_free_addresses")),
        sa.UniqueConstraint(
            "node_number",
            "profile_id",
            "position",
            name=op.f("uq_free_addresses_node_number_profile_id_position"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_free_addresses_queue", "free_addresses", ["node_number", "profile_id", "id"], unique=False
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("authorization_id", sa.Integer(), nullable=False),
        sa.Column("parent_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["authorizations.id"],
            name=op.f("fk_refresh_tokens_authorization_id_authorizations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_refresh_tokens")),
    )
    op.create_index(
        op.f("ix_refresh_tokens_authorization_id"), "refresh_tokens", ["authorization_id"], unique=False
    )
    op.create_index(op.f("ix_refresh_tokens_parent_hash"), "refresh_tokens", ["parent_hash"], unique=False)
    op.create_index(
        "uq_refresh_tokens_living",
        "refresh_tokens",
        ["authorization_id"],
        unique=True,
        postgresql_where=sa.text("used_at IS NULL"),
        sqlite_where=sa.text("used_at IS NULL"),
    )


def downgrade() -> None:
    raise RuntimeError("there is no release before the first; restore a backup instead")
