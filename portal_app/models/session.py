"""What was observed: sessions from the nodes' journals, and who had which address when."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base
from portal_app.names import folded


class VpnSession(Base):
    """One observed use of a connection, from the journal of its node."""

    __tablename__ = "vpn_sessions"
    __table_args__ = (
        Index("ix_vpn_sessions_user_name_started_at", "user_name", "started_at"),
        # The history, newest first, with one filter or none; the journal adds at their ends.
        Index("ix_vpn_sessions_started_at", "started_at", "node_number", "session_id"),
        Index("ix_vpn_sessions_profile_id_started_at", "profile_id", "started_at"),
        Index("ix_vpn_sessions_node_number_started_at", "node_number", "started_at"),
        Index(
            "ix_vpn_sessions_origin_started_at",
            "origin",
            "started_at",
            postgresql_where=text("origin IS NOT NULL"),
            sqlite_where=text("origin IS NOT NULL"),
        ),
        # With open sessions in it, SQLite would take them for a few, find them here and sort them.
        Index(
            "ix_vpn_sessions_over_ended_at",
            "ended_at",
            postgresql_where=text("ended_at IS NOT NULL"),
            sqlite_where=text("ended_at IS NOT NULL"),
        ),
    )
    node_number: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    connection_id: Mapped[str] = mapped_column(String(32), index=True)
    user_name: Mapped[str | None] = mapped_column(String(255))
    profile_id: Mapped[str] = mapped_column(String(60))
    protocol: Mapped[str] = mapped_column(String(10))
    ipv4: Mapped[str | None] = mapped_column(String(15))
    ipv6: Mapped[str | None] = mapped_column(String(39))
    origin: Mapped[str | None] = mapped_column(String(60))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    received_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sent_bytes: Mapped[int | None] = mapped_column(BigInteger)


def _of_open_sessions(name: str, *columns: Any) -> Index:
    """Those who are connected now are few among all that is remembered."""
    still_open = text("ended_at IS NULL")
    return Index(
        f"ix_vpn_sessions_open_{name}", *columns, postgresql_where=still_open, sqlite_where=still_open
    )


_of_open_sessions("started_at", VpnSession.started_at, VpnSession.node_number, VpnSession.session_id)
_of_open_sessions("user", folded(VpnSession.user_name), VpnSession.node_number, VpnSession.session_id)
_of_open_sessions("connection_id", VpnSession.connection_id)
_of_open_sessions("node_number", VpnSession.node_number, VpnSession.connection_id)
_of_open_sessions("profile_id", VpnSession.profile_id, VpnSession.protocol, VpnSession.connection_id)
_of_open_sessions("ipv4", VpnSession.ipv4)
_of_open_sessions("ipv6", VpnSession.ipv6)
_of_open_sessions("origin", VpnSession.origin)


class AddressUse(Base):
    """Who had which address when: a WireGuard lease or an OpenVPN session. One address has one at a time.

    ``device`` is what the connection was called last.
    """

    __tablename__ = "address_uses"
    __table_args__ = (
        Index("ix_address_uses_ipv4_started_at", "ipv4", "started_at"),
        Index("ix_address_uses_ipv6_started_at", "ipv6", "started_at"),
        Index("ix_address_uses_connection_id", "connection_id"),
        Index("ix_address_uses_user_name_started_at", "user_name", "started_at"),
    )
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    connection_id: Mapped[str] = mapped_column(String(32))
    user_name: Mapped[str] = mapped_column(String(255))
    profile_id: Mapped[str] = mapped_column(String(60))
    node_number: Mapped[int]
    protocol: Mapped[str] = mapped_column(String(10))
    client_id: Mapped[str | None] = mapped_column(String(255))
    device: Mapped[str | None] = mapped_column(String(64))
    #: Why its node was chosen, as in ``Connection``.
    choice: Mapped[str | None] = mapped_column(String(255))
    ipv4: Mapped[str | None] = mapped_column(String(15))
    ipv6: Mapped[str | None] = mapped_column(String(39))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    end_reason: Mapped[str | None] = mapped_column(String(40))
