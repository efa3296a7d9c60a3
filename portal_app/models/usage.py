"""How the service was used: samples of now, and one row per day that is kept for ever."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from portal_app.db import Base

#: In place of a profile and of a protocol, and of a node's number: the row counts over all of them.
#: Users cannot be added up, as one user may be on two nodes.
ALL, ALL_NODES = "", -1


class UsageSample(Base):
    """Who was connected in one moment. ``slot`` is the time, in steps of five minutes since 1970.

    The row over everything is always there; of the others only those with a connection.
    """

    __tablename__ = "usage_samples"
    __table_args__ = (Index("ix_usage_samples_slot", "slot"),)
    profile_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    node_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    protocol: Mapped[str] = mapped_column(String(10), primary_key=True)
    slot: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    connections: Mapped[int]
    users: Mapped[int]


class UsageDay(Base):
    """One day in UTC. ``users`` are different ones, ``sessions`` those that began, bytes those of sessions
    that ended, peaks the highest samples (None: there were none), ``clients`` connections by the app's id.
    The row over everything has the different users of the 7 and 30 days that end with it, too, or of as many
    days as sessions are kept for (``usage.windows``). None is unknown.
    """

    __tablename__ = "usage_days"
    profile_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    node_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)  # as in 2026-11-28
    users: Mapped[int]
    sessions: Mapped[int]
    peak_connections: Mapped[int | None]
    peak_users: Mapped[int | None]
    received_bytes: Mapped[int] = mapped_column(BigInteger)
    sent_bytes: Mapped[int] = mapped_column(BigInteger)
    users_of_7_days: Mapped[int | None]
    users_of_30_days: Mapped[int | None]
    clients: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
