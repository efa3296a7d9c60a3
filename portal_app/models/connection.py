"""Configurations handed out, and the addresses that wait to be given again."""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class Connection(Base):
    """One configuration handed out: a WireGuard peer or an OpenVPN certificate (whose common name is the id).

    A row is a live connection: ending one deletes it and takes a new generation of its node.
    """

    __tablename__ = "connections"
    __table_args__ = (
        ForeignKeyConstraint(
            ["node_number", "profile_id"],
            ["offers.node_number", "offers.profile_id"],
            name="fk_connections_offers",
        ),
        # Two portals may pick the same free address at once: the database lets one win.
        UniqueConstraint("node_number", "ipv4"),
        UniqueConstraint("node_number", "ipv6"),
        # An authorization has at most one live configuration, whatever arrives at once.
        UniqueConstraint("authorization_id"),
        CheckConstraint("(public_key IS NULL) = (protocol = 'openvpn')", name="key_of_wireguard"),
        CheckConstraint("(position IS NULL) = (public_key IS NULL)", name="leased_with_key"),
        Index("ix_connections_user_id_created_at", "user_id", "created_at"),
        Index("ix_connections_node_number_profile_id", "node_number", "profile_id"),
        Index("ix_connections_created_at_id", "created_at", "id"),
        # What people downloaded: few among all, where apps are used. With one column only SQLite would take
        # the index of authorizations.
        Index(
            "ix_connections_downloads",
            "node_number",
            "authorization_id",
            postgresql_where=text("authorization_id IS NULL"),
            sqlite_where=text("authorization_id IS NULL"),
        ),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    authorization_id: Mapped[int | None] = mapped_column(ForeignKey("authorizations.id"))
    node_number: Mapped[int]
    profile_id: Mapped[str] = mapped_column(String(60))
    protocol: Mapped[str] = mapped_column(String(10))
    public_key: Mapped[str | None] = mapped_column(String(44), unique=True)  # base64 of 32 bytes
    position: Mapped[int | None]
    ipv4: Mapped[str | None] = mapped_column(String(15))
    ipv6: Mapped[str | None] = mapped_column(String(39))
    display_name: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    generation: Mapped[int] = mapped_column(BigInteger)
    #: Why its node was chosen, for administrators.
    choice: Mapped[str | None] = mapped_column(String(255))


class RefusedConnect(Base):
    """The last connect of a user that was refused: what was answered, and why, for administrators."""

    __tablename__ = "refused_connects"
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime]
    device: Mapped[str] = mapped_column(String(64))
    #: As it was asked for: there may be no such profile.
    profile_id: Mapped[str] = mapped_column(String(60))
    answer: Mapped[str] = mapped_column(String(255))
    why: Mapped[str | None] = mapped_column(String(1000))


class FreeAddress(Base):
    """An address given back; the one that waits longest is given again first, and never before
    ``freed_at``.
    """

    __tablename__ = "free_addresses"
    __table_args__ = (
        ForeignKeyConstraint(
            ["node_number", "profile_id"],
            ["offers.node_number", "offers.profile_id"],
            name="fk_free_addresses_offers",
            ondelete="CASCADE",
        ),
        UniqueConstraint("node_number", "profile_id", "position"),
        Index("ix_free_addresses_queue", "node_number", "profile_id", "id"),
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    node_number: Mapped[int]
    profile_id: Mapped[str] = mapped_column(String(60))
    position: Mapped[int]
    freed_at: Mapped[datetime]
