"""Who is connected now, and who could be: the lists that administrators read, filter and end from."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from ipaddress import ip_address
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, or_, select
from sqlalchemy.orm import Session

from portal_app.agents import Agents
from portal_app.db import Database, retried, transaction
from portal_app.models import Authorization, Connection, Node, NodeStatus, Profile, User, VpnSession
from portal_app.names import begins, folded
from portal_app.services import audit, paging, throttles
from portal_app.services.live_usage import Live, Pending
from portal_app.services.nodes import NodeRef
from portal_app.services.throttles import Limit
from portal_app.statements import Statement, at_most, run, run_together

#: A row here says more than those of other lists: a page stays below 60 kB, and quick.
PAGE_SIZE = 25
MOST_OF_USER = 50
#: Counting ends here: beyond it the exact number helps nobody, and costs.
MOST_COUNTED = 1000
#: A page that refreshes itself asks the same again and again: that is written down once an hour.
_REFRESHED = Limit("address search", burst=1, refill_seconds=3600)


@dataclass(frozen=True)
class Filter:
    """What a list shows; what is empty filters nothing. ``search`` is an address or the begin of a name.

    ``by_origin``: an address may be where a tunnel comes from, too. That is for who may ask who had an
    address.
    """

    search: str = ""
    profile_id: str = ""
    node_number: int | None = None
    protocol: str = ""
    now_only: bool = True
    by_origin: bool = False


@dataclass(frozen=True)
class Row:
    """A connection, a session of it, or both. ``connection_id`` is empty when there is nothing to end."""

    connection_id: str
    session_id: str
    user_id: int | None
    user: str
    device: str
    by_app: bool
    profile: str
    protocol: str
    node: str
    node_ref: NodeRef | None
    silent: bool
    choice: str | None
    addresses: tuple[str, ...]
    origin: str | None
    since: datetime
    until: datetime | None
    connected: bool
    live: Live | None = None


_PROFILES = Statement(select(Profile.profile_id, Profile.display_name).order_by(Profile.position))
_NODES = Statement(
    select(Node.number, Node.name, Node.agent_address, NodeStatus.failing_since)
    .outerjoin(NodeStatus, NodeStatus.node_number == Node.number)
    .order_by(Node.number)
)


class Names:
    """Profiles and nodes, which lists have the ids of, in their order.

    Read by themselves: PostgreSQL takes milliseconds to plan a statement that joins them all.
    """

    def __init__(self, db: Database) -> None:
        profiles, nodes = run_together(db, [(_PROFILES, {}), (_NODES, {})])
        self.profiles = {row.profile_id: row.display_name for row in profiles}
        self.nodes = {row.number: row for row in nodes}


@dataclass(frozen=True)
class Listed:
    """``count`` is at most ``MOST_COUNTED`` + 1; ``asked`` is for ``with_usage``."""

    page: paging.Page
    count: int
    asked: Pending
    names: Names


#: A configuration's columns are called so in a line, those of a session as they are.
_HELD = "held_"
_OF_HELD = [
    getattr(Connection, key).label(_HELD + key)
    for key in (
        "id", "node_number", "profile_id", "protocol", "ipv4", "ipv6", "display_name", "choice", "created_at",
        "expires_at",
    )
]  # fmt: skip
_OF_SESSION = [
    VpnSession.session_id, VpnSession.node_number, VpnSession.profile_id, VpnSession.protocol,
    VpnSession.ipv4, VpnSession.ipv6, VpnSession.user_name, VpnSession.origin, VpnSession.started_at,
]  # fmt: skip
_OF_BOTH = [
    User.id.label("user_id"),
    User.name.label("user"),
    Authorization.client_id,
]
_SESSIONS, _CONNECTIONS = [*_OF_SESSION, *_OF_HELD, *_OF_BOTH], [*_OF_HELD, *_OF_BOTH]


def read(
    db: Database,
    agents: Agents,
    wanted: Filter,
    *,
    sort: str,
    descending: bool,
    before: str = "",
    after: str = "",
) -> Listed:
    """Return a page of ``Row``, and ask its nodes what goes through them. ``sort`` is one of ``sorts``."""
    known = None
    if (before, after) == ("", "") and wanted == Filter(now_only=wanted.now_only, by_origin=wanted.by_origin):
        known = _without_filter(wanted.now_only, sort, descending, PAGE_SIZE)
        page = paging.read_first(db, known.page, known.order, PAGE_SIZE)
    else:
        query, order = _query(wanted, sort, descending)
        page = paging.read(db, query, order, before=before, after=after, size=PAGE_SIZE)
    names = Names(db)
    rows = _of_sessions(page.rows, names) if wanted.now_only else _with_sessions(db, page.rows, names)
    asked = ask(agents, rows)
    count = run(db, known.count)[0].found if known is not None else db.scalar(_count(wanted))
    return Listed(replace(page, rows=rows), count or 0, asked, names)


@dataclass(frozen=True)
class _Known:
    """What asks for the first page of a list without a filter, and for its count."""

    page: Statement
    count: Statement
    order: paging.Order


@cache
def _without_filter(now_only: bool, sort: str, descending: bool, size: int) -> _Known:
    """Built once: it is what most look at, and what refreshes itself."""
    wanted = Filter(now_only=now_only)
    query, order = _query(wanted, sort, descending)
    return _Known(paging.first(query, order, size), Statement(_count(wanted)), order)


def _query(wanted: Filter, sort: str, descending: bool) -> tuple[Any, paging.Order]:
    query = _sessions(wanted) if wanted.now_only else _connections(wanted)
    order, more = _order(wanted.now_only, sort)
    query = _joined(query, wanted.now_only, by_user=sort == "user" and not wanted.search).where(*more)
    return query, paging.Order(order, descending=descending)


def _count(wanted: Filter) -> Any:
    query = _sessions(wanted) if wanted.now_only else _connections(wanted)
    found = query.with_only_columns(VpnSession.session_id if wanted.now_only else Connection.id)
    counted = found.limit(at_most(MOST_COUNTED + 1)).subquery()
    return select(func.count().label("found")).select_from(counted)


def record_search(
    search: str, *, by_itself: bool = False, actor: str, source: str | None, now: datetime
) -> None:
    """Write down who asked for an address, before they get an answer; searching a name is not that.

    ``by_itself``: a page says that it refreshes itself. That is believed of who asked the same before.
    """
    address = _address(search)
    if not address:
        return
    bucket = _REFRESHED.bucket(hashlib.sha256(f"{actor} {address}".encode()).hexdigest()[:32])
    if by_itself:
        with transaction(read_only=True) as db:
            if throttles.wait_seconds(db, [bucket], now=now) > 0:
                return
    _record_search(address, bucket, actor, source, now)


@retried
def _record_search(
    address: str, bucket: throttles.Bucket, actor: str, source: str | None, now: datetime
) -> None:
    with transaction() as db:
        throttles.take(db, [bucket], now=now)
        audit.record(
            db, "address searched", actor=actor, object=address, source=source, now=now, list="connections"
        )


def of_user(db: Database, user: User) -> list[Row]:
    """Return what a user has connected now, the latest first."""
    found = run(db, _OF_USER, {"name": user.name, "since": user.created_at})
    return _of_sessions(found, Names(db)) if found else []


def chosen(db: Session, ids: Collection[str]) -> list[Row]:
    """Return the connections with these ids that are there, as somebody is to end them."""
    query = select(Connection).where(Connection.id.in_(ids))
    found = db.execute(_joined(query, now_only=False).order_by(User.name, Connection.id)).all()
    return _with_sessions(db, found, Names(db))


def ask(agents: Agents, rows: Sequence[Row]) -> Pending:
    """Ask the nodes of these rows; one that was silent already is not asked."""
    wanted: dict[NodeRef, set[str]] = defaultdict(set)
    for row in rows:
        if row.connected and row.connection_id and row.node_ref is not None and not row.silent:
            wanted[row.node_ref].add(row.connection_id)
    return Pending(agents, wanted)


def with_usage(rows: Sequence[Row], asked: Pending) -> list[Row]:
    """Return the rows with what their nodes say. It waits for them: the database is to be free by then."""
    found = asked.found()
    return [
        replace(row, live=found[row.connection_id]) if row.connection_id in found else row for row in rows
    ]


def _sessions(wanted: Filter) -> Any:
    found: list[ColumnElement[bool]] = [VpnSession.ended_at.is_(None)]
    if address := _address(wanted.search):
        found.append(_at(address, wanted))
    elif wanted.search:
        found.append(begins(VpnSession.user_name, wanted.search))
    if wanted.profile_id:
        found.append(VpnSession.profile_id == wanted.profile_id)
    if wanted.protocol:
        found.append(VpnSession.protocol == wanted.protocol)
    if wanted.node_number is not None:
        found.append(VpnSession.node_number == wanted.node_number)
    return select(VpnSession).where(*found)


def _connections(wanted: Filter) -> Any:
    found: list[ColumnElement[bool]] = []
    if address := _address(wanted.search):
        in_use = select(VpnSession.connection_id).where(VpnSession.ended_at.is_(None), _at(address, wanted))
        # Each node's addresses have an index; there are few nodes.
        of_a_node = Connection.node_number.in_(select(Node.number))
        leased = [
            Connection.id.in_(select(Connection.id).where(of_a_node, column == address))
            for column in (Connection.ipv4, Connection.ipv6)
        ]
        found.append(or_(*leased, Connection.id.in_(in_use)))
    elif wanted.search:
        found.append(Connection.user_id.in_(select(User.id).where(begins(User.name, wanted.search))))
    if wanted.profile_id:
        found.append(Connection.profile_id == wanted.profile_id)
    if wanted.protocol:
        found.append(Connection.protocol == wanted.protocol)
    if wanted.node_number is not None:
        found.append(Connection.node_number == wanted.node_number)
    return select(Connection).where(*found)


def _at(address: str, wanted: Filter) -> ColumnElement[bool]:
    """Return which sessions have an address or, if that is asked, come from it."""
    inside = or_(VpnSession.ipv4 == address, VpnSession.ipv6 == address)
    return or_(inside, VpnSession.origin == address) if wanted.by_origin else inside


def _address(search: str) -> str:
    """Return an address as it is stored; "" for what is none."""
    try:
        return str(ip_address(search))
    except ValueError:
        return ""


def sorts(now_only: bool) -> tuple[str, ...]:
    """Return by what a list can be sorted: "node" by its number, "profile" by its id and the protocol."""
    return ("user", "profile", "node", "since") if now_only else ("user", "since")


def _order(now_only: bool, sort: str) -> tuple[list[Any], list[ColumnElement[bool]]]:
    """Return the columns of an order, the first of which have an index, and what it cannot list."""
    if not now_only:
        if sort == "user":
            # As the index of users goes, then that of one user's connections.
            return [folded(User.name), User.id, Connection.created_at, Connection.id], []
        return [Connection.created_at, Connection.id], []
    key = [VpnSession.node_number, VpnSession.session_id]
    if sort == "node":
        return [VpnSession.node_number, VpnSession.connection_id, VpnSession.session_id], []
    if sort == "profile":
        return [VpnSession.profile_id, VpnSession.protocol, VpnSession.connection_id, *key], []
    if sort == "user":
        # Whose connection nobody knew when it began has no place in an order of names.
        return [folded(VpnSession.user_name), *key], [VpnSession.user_name.is_not(None)]
    return [VpnSession.started_at, *key], []


def _joined(query: Any, now_only: bool, *, by_user: bool = False) -> Any:
    """Add to connections, or open sessions, all that is shown of them."""
    if now_only:
        query = query.select_from(VpnSession)
        query = query.outerjoin(Connection, Connection.id == VpnSession.connection_id)
        query = query.outerjoin(User, User.id == Connection.user_id)
        columns = _SESSIONS
    else:
        # In the order of users SQLite is to begin with them; by this it cannot find a connection's user.
        user_id: Any = User.id + 0 if by_user else User.id
        query = query.select_from(Connection).join(User, user_id == Connection.user_id)
        columns = _CONNECTIONS
    query = query.outerjoin(Authorization, Authorization.id == Connection.authorization_id)
    return query.with_only_columns(*columns, maintain_column_froms=True)


#: What is older than the account is about somebody else who had the name.
_OF_USER = Statement(
    _joined(
        select(VpnSession).where(
            VpnSession.ended_at.is_(None),
            VpnSession.user_name == bindparam("name"),
            VpnSession.started_at >= bindparam("since"),
        ),
        now_only=True,
    )
    .order_by(VpnSession.started_at.desc(), VpnSession.session_id)
    .limit(MOST_OF_USER)
)


def _of_sessions(lines: Iterable[Any], names: Names) -> list[Row]:
    return [_row(line, line, names, line.profile_id, line.protocol, line.node_number) for line in lines]


def _with_sessions(db: Database, lines: Sequence[Any], names: Names) -> list[Row]:
    """Return connections, each with the latest session of it that is open, if there is one."""
    open_ones = (
        select(VpnSession.connection_id, *_OF_SESSION)
        .where(
            VpnSession.connection_id.in_([line.held_id for line in lines]),
            VpnSession.ended_at.is_(None),
        )
        .order_by(VpnSession.started_at)
    )
    latest = {session.connection_id: session for session in db.execute(open_ones)}
    return [
        _row(
            line,
            latest.get(line.held_id),
            names,
            line.held_profile_id,
            line.held_protocol,
            line.held_node_number,
        )
        for line in lines
    ]


def _row(line: Any, session: Any, names: Names, profile_id: str, protocol: str, node_number: int) -> Row:
    """Return what a line says of a configuration, which may have ended, and of a session of it, or None."""
    node = names.nodes.get(node_number)
    addresses = [line.held_ipv4, line.held_ipv6]
    if session is not None:
        addresses += [session.ipv4, session.ipv6]
    return Row(
        connection_id=line.held_id or "",
        session_id=session.session_id if session is not None else "",
        user_id=line.user_id,
        user=line.user or (session.user_name if session is not None else None) or "",
        device=line.held_display_name or "",
        by_app=line.client_id is not None,
        profile=names.profiles.get(profile_id, profile_id),
        protocol=protocol,
        node=node.name if node is not None else str(node_number),
        node_ref=NodeRef(node.number, node.name, node.agent_address) if node is not None else None,
        silent=node is not None and node.failing_since is not None,
        choice=line.held_choice,
        addresses=tuple(dict.fromkeys(filter(None, addresses))),
        origin=session.origin if session is not None else None,
        since=session.started_at if session is not None else line.held_created_at,
        until=line.held_expires_at,
        connected=session is not None,
    )
