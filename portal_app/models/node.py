"""Nodes, what they offer, and how they were last seen."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base


class Node(Base):
    """A host that ends tunnels. ``generation`` counts admits and cuts: late news never undoes later news."""

    __tablename__ = "nodes"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    hostname: Mapped[str] = mapped_column(String(253))
    agent_address: Mapped[str] = mapped_column(String(253))
    generation: Mapped[int] = mapped_column(BigInteger, default=0)


class NodeStatus(Base):
    """How the controller last saw a node, and how far its journal has been read.

    ``suspect_until`` is set by a connect that got no answer; ``journal_id`` and ``journal_sequence`` move in
    the same transaction as the effect of the events, so each counts exactly once. ``issued_public_key`` is
    the key that configurations name, also while the node has none. ``doubled_at`` is when a second machine
    with the node's files last answered. ``notice`` and ``cut_at`` are what users of a node in maintenance are
    told, and ``ends_downloads`` whether that cut ends downloaded configurations, too. ``cuts_downloads`` is
    set while the controller is to cut them at ``cut_at``: with downloaded configurations or without; a
    command that drains does so itself.
    """

    __tablename__ = "node_status"
    # Written every few seconds: room in the page lets PostgreSQL put the new version beside the old one.
    __table_args__ = {"postgresql_with": {"fillfactor": 50}}  # noqa: RUF012 - SQLAlchemy reads it from the class
    node_number: Mapped[int] = mapped_column(ForeignKey("nodes.number", ondelete="CASCADE"), primary_key=True)
    answered_at: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    suspect_until: Mapped[datetime | None]
    maintenance_mode: Mapped[bool] = mapped_column(default=False)
    wireguard_public_key: Mapped[str | None] = mapped_column(String(44))
    info: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    instance_id: Mapped[str | None] = mapped_column(String(32))
    doubled_at: Mapped[datetime | None]
    journal_id: Mapped[str | None] = mapped_column(String(32))
    journal_sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    reconciled_at: Mapped[datetime | None]
    reconciled_generation: Mapped[int] = mapped_column(BigInteger, default=0)
    notice: Mapped[str | None] = mapped_column(Text)
    cut_at: Mapped[datetime | None]
    cuts_downloads: Mapped[bool | None]
    ends_downloads: Mapped[bool | None]
    issued_public_key: Mapped[str | None] = mapped_column(String(44))


class Offer(Base):
    """What one node offers of one profile.

    ``wireguard`` and ``openvpn`` are the node's share from the plan. WireGuard addresses up to
    ``next_position`` have been given out once; those given back wait in ``free_addresses``.
    ``full_since`` stands from the alarm that an offer is nearly full until it no longer is.
    """

    __tablename__ = "offers"
    node_number: Mapped[int] = mapped_column(ForeignKey("nodes.number", ondelete="CASCADE"), primary_key=True)
    profile_id: Mapped[str] = mapped_column(
        ForeignKey("profiles.profile_id", ondelete="CASCADE"), primary_key=True
    )
    wireguard: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    openvpn: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    capacity: Mapped[int] = mapped_column(default=0)
    next_position: Mapped[int] = mapped_column(default=0)
    allocated: Mapped[int] = mapped_column(default=0)
    full_since: Mapped[datetime | None]
