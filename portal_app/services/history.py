"""Sessions that were observed, newest first, with filters. Reads only."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from portal_app.db import Database
from portal_app.models import Node, VpnSession
from portal_app.services import exports, paging

#: One CSV file holds so many sessions.
MOST_EXPORTED = 100_000
#: One for each index of the table; the node and the session make it unique.
ORDER = paging.Order([VpnSession.started_at, VpnSession.node_number, VpnSession.session_id], descending=True)
_COLUMNS = (
    "user", "profile", "node", "protocol", "connection", "ipv4", "ipv6", "origin",
    "from", "to", "seconds", "received_bytes", "sent_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """What sessions have to be; empty is any. ``begin`` and ``end``: started from here on, and before."""

    user: str = ""
    profile_id: str = ""
    node_number: int | None = None
    node: str = ""
    protocol: str = ""
    connection_id: str = ""
    begin: datetime | None = None
    end: datetime | None = None


def page(db: Database, wanted: Filter, *, before: str = "", after: str = "") -> paging.Page:
    """Return rows with what a ``VpnSession`` has, and ``node``: its name, or None for one that is gone."""
    return paging.read(db, filtered(wanted), ORDER, before=before, after=after)


def lines(wanted: Filter, *, most: int = MOST_EXPORTED) -> Iterator[str]:
    """Yield the filtered sessions as CSV, read part by part: no transaction is as long as a download."""
    return exports.csv_lines(_COLUMNS, exports.rows(filtered(wanted), ORDER, most=most), _cells, most=most)


def filtered(wanted: Filter) -> Any:
    """Return what asks for these sessions and their nodes' names, without an order."""
    columns = VpnSession.__table__.columns
    query = select(*columns, Node.name.label("node")).outerjoin(Node, Node.number == VpnSession.node_number)
    for column, value in (
        (VpnSession.user_name, wanted.user),
        (VpnSession.profile_id, wanted.profile_id),
        (VpnSession.protocol, wanted.protocol),
        (VpnSession.connection_id, wanted.connection_id),
    ):
        if value:
            query = query.where(column == value)
    if wanted.node_number is not None:
        query = query.where(VpnSession.node_number == wanted.node_number)
    if wanted.node:
        # Its number, so that an index on it can be used.
        number = select(Node.number).where(Node.name == wanted.node).scalar_subquery()
        query = query.where(VpnSession.node_number == number)
    if wanted.begin is not None:
        query = query.where(VpnSession.started_at >= wanted.begin)
    if wanted.end is not None:
        query = query.where(VpnSession.started_at < wanted.end)
    return query


def _cells(session: Any) -> list[object]:
    seconds = (
        None if session.ended_at is None else int((session.ended_at - session.started_at).total_seconds())
    )
    return [
        session.user_name,
        session.profile_id,
        session.node or str(session.node_number),
        session.protocol,
        session.connection_id,
        session.ipv4,
        session.ipv6,
        session.origin,
        session.started_at,
        session.ended_at,
        seconds,
        session.received_bytes,
        session.sent_bytes,
    ]
