"""Who had an address of the VPN at a time, or came from one, or left a node from one with a port, where that
is kept (reliability.md P2). The log of NAT stays on the nodes: they are asked.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import and_, bindparam, or_, select, true

from portal_app.agents import Agents
from portal_app.db import Database, connected, retried, transaction
from portal_app.errors import N_, BadRequest
from portal_app.models import AddressUse, Connection, Node, NodeStatus, Profile, VpnSession
from portal_app.services import audit
from portal_app.services.nodes import NodeRef
from portal_app.statements import Statement, run, run_together
from vpn_core.messages import MOST_TRANSLATIONS, Translation, Translations

#: More holders, and sessions of each, are not listed: a tolerance was too wide.
MOST_HOLDERS, MOST_SESSIONS = 100, 20
#: Times are asked in whole seconds, and rows have parts of them.
#: The node's clock says when a flow began, the portal's when an address was given.
_CLOCKS = timedelta(seconds=2)
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_NODES = (
    select(
        Node.number,
        Node.name,
        Node.agent_address,
        # One that holds back counts as failing, and answers.
        (
            NodeStatus.failing_since.is_not(None)
            & or_(NodeStatus.answered_at.is_(None), NodeStatus.answered_at < NodeStatus.failing_since)
        ).label("is_silent"),
    )
    .outerjoin(NodeStatus, NodeStatus.node_number == Node.number)
    .order_by(Node.number)
)
#: Ahead of UTC is plus, unlike in the names Etc/GMT+2.
_OFFSET = re.compile(r"UTC(?P<sign>[+-])(?P<hours>0\d|1[0-4]):(?P<minutes>[0-5]\d)", re.ASCII)
_REST_OF_SECOND = timedelta(seconds=1) - timedelta(microseconds=1)


@dataclass(frozen=True)
class Question:
    """``moments`` are in UTC: one, or two where clocks went back and a local time came twice. None is any
    time.
    """

    address: str
    moments: tuple[datetime, ...]
    tolerance: timedelta
    #: Of an address of a node: whose packets left it from there.
    port: int | None = None

    @property
    def spans(self) -> list[tuple[datetime, datetime]]:
        return [
            (moment - self.tolerance, moment + self.tolerance + _REST_OF_SECOND) for moment in self.moments
        ]


@dataclass(frozen=True)
class Flow:
    """What left a node from the address and port that were asked for: ``protocol`` is its name."""

    protocol: str
    began_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Holder:
    """One connection that had the address. ``device`` is its name, or the last one that it had; ``sessions``
    are those in the time that was asked for, latest first, as in ``VpnSession``. ``end_reason`` is of an
    address that was given back. With a port, ``flow`` is what the connection sent from there.
    """

    user_name: str | None
    client_id: str | None
    device: str | None
    node_number: int
    node: str | None
    profile_id: str
    profile: str | None
    protocol: str
    connection_id: str
    ipv4: str | None
    ipv6: str | None
    started_at: datetime
    ended_at: datetime | None
    end_reason: str | None
    sessions: tuple[Any, ...]
    flow: Flow | None = None


@dataclass(frozen=True)
class Unnamed:
    """What a client sent from the address and port that were asked for, of whom no record is left."""

    node: str
    client: str
    flow: Flow


@dataclass(frozen=True)
class Answer:
    """``is_cut``: there were more. ``is_old``: records of then may be forgotten already. ``silent`` are nodes
    that could not be asked, ``without_log`` those that keep no log of NAT, ``begins_later`` those whose log
    begins after the time that was asked for, ``with_gap`` those whose log misses some of that time.
    """

    holders: tuple[Holder, ...]
    is_cut: bool
    is_old: bool
    unnamed: tuple[Unnamed, ...] = ()
    silent: tuple[str, ...] = ()
    without_log: tuple[str, ...] = ()
    begins_later: tuple[str, ...] = ()
    with_gap: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it names everybody there was."""
        missing = (self.unnamed, self.silent, self.without_log, self.begins_later, self.with_gap)
        return not (self.is_cut or self.is_old or any(missing))


def address(text: str) -> str:
    """Return an address as it is stored; raises BadRequest."""
    try:
        parsed = ip_address(text.strip())
    except ValueError:
        raise BadRequest(
            N_("“%(text)s” is not an address. Write one like 10.64.16.7 or fd00:64::7, without a port."),
            text=text[:100],
        ) from None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def port(text: str) -> int | None:
    """Return a port, None for an empty text; raises BadRequest."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise BadRequest(N_("A port is a number from 0 to 65535."))
    return int(text)


def moments(day: str, time_of_day: str, zone_name: str) -> tuple[datetime, ...]:
    """Return what a clock of a time zone means, in UTC. Two moments where it came twice.

    Raises BadRequest for what is no date, time or zone, and for a time that the clocks jumped over.
    """
    try:
        wall = datetime.combine(date.fromisoformat(day), time.fromisoformat(time_of_day))
    except ValueError:
        raise BadRequest(
            N_("The date or the time cannot be read. Write them like 2026-11-22 and 14:30:00.")
        ) from None
    zone = time_zone(zone_name)
    if wall.tzinfo is not None:
        raise BadRequest(N_("The date or the time cannot be read. Write them like 2026-11-22 and 14:30:00."))
    in_range(wall)
    both = [wall.replace(tzinfo=zone, fold=fold, microsecond=0).astimezone(UTC) for fold in (0, 1)]
    real = [
        moment
        for moment in both
        if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(microsecond=0)
    ]
    if not real:
        raise BadRequest(
            N_("This time did not exist in %(zone)s: the clocks were put forward. Ask for another one."),
            zone=zone_name,
        )
    return tuple(dict.fromkeys(real))


def time_zone(name: str) -> tzinfo:
    """Return the zone of a place, such as Europe/Amsterdam, or of a distance from UTC; raises BadRequest.

    >>> time_zone("UTC+02:00").utcoffset(None)
    datetime.timedelta(seconds=7200)
    """
    if offset := _OFFSET.fullmatch(name):
        ahead = timedelta(hours=int(offset["hours"]), minutes=int(offset["minutes"]))
        return timezone(ahead if offset["sign"] == "+" else -ahead)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadRequest(
            N_("This time zone is not known. Use a name like Europe/Amsterdam or UTC+02:00.")
        ) from None


def in_range(moment: datetime) -> datetime:
    """Return a moment that can be calculated with; raises BadRequest for one that is too far away."""
    if not 1970 <= moment.year <= 9000:
        raise BadRequest(N_("The date or the time cannot be read. Write them like 2026-11-22 and 14:30:00."))
    return moment


def ask(
    question: Question,
    *,
    agents: Callable[[], Agents],
    retention: timedelta,
    zone_name: str,
    actor: str,
    source: str | None,
    now: datetime,
    page: int = 1,
) -> Answer:
    """Find who had an address, and leave an audit row of the question; without one there is no answer.

    Raises BadRequest for a time in the future. ``agents`` gives the way to the nodes, if it is needed.
    ``page`` is the one that is asked for: of a later one the row says so, as it is no new question.
    """
    if question.moments and min(question.moments) > now:
        raise BadRequest(N_("This time is in the future. Check the date and the time zone."))
    if question.port is None:
        with transaction(read_only=True) as db:
            answer = find(db, question, retention=retention, now=now)
    else:
        answer = _find_behind(question, agents(), retention=retention, now=now)
    _record(question, answer, zone_name, page, actor, source, now)
    return answer


@retried
def _record(
    question: Question,
    answer: Answer,
    zone_name: str,
    page: int,
    actor: str,
    source: str | None,
    now: datetime,
) -> None:
    event = audit.recording(
        "address searched",
        by=audit.By(actor, source),
        object=question.address,
        now=now,
        at=[f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in question.moments],
        zone=zone_name,
        tolerance_seconds=int(question.tolerance.total_seconds()),
        **({} if question.port is None else {"port": question.port}),
        found=len(answer.holders),
        **({} if page == 1 else {"page": page}),
    )
    with connected() as db:
        run_together(db, [event], last=True)


def find(db: Database, question: Question, *, retention: timedelta, now: datetime) -> Answer:
    """Return the holders, the latest first."""
    values = {"address": question.address} | _bounds(question)
    asked = [
        (statement, values)
        for statement in _asking(":" in question.address, len(question.moments), MOST_HOLDERS + 1)
    ]
    uses, came_from = run_together(db, asked)
    is_cut = len(uses) > MOST_HOLDERS or len(came_from) > MOST_HOLDERS
    sessions = _sessions_of(db, uses, question)
    holders = [_of_use(use, sessions) for use in uses[:MOST_HOLDERS]]
    holders += _of_origins(db, came_from[:MOST_HOLDERS])
    return Answer(tuple(holders), is_cut, _is_old(question, retention, now))


@cache
def _asking(is_ipv6: bool, moments: int, most: int) -> tuple[Statement, Statement]:
    """Return what asks who was given an address, and who came from it, the latest first."""
    given, came_from = (AddressUse.ipv6 if is_ipv6 else AddressUse.ipv4), VpnSession.origin
    of_use, of_session = (
        Statement(
            _named(table)
            .where(column == bindparam("address"), _within(table, moments))
            .order_by(table.started_at.desc())
            .limit(most)
        )
        for table, column in ((AddressUse, given), (VpnSession, came_from))
    )
    return of_use, of_session


def _named(table: Any) -> Any:
    """Select rows of a table with the names of their node, profile and device, None of one that is gone."""
    return (
        select(
            *table.__table__.columns,
            Node.name.label("node"),
            Profile.display_name.label("profile"),
            Connection.display_name,
        )
        .outerjoin(Node, Node.number == table.node_number)
        .outerjoin(Profile, Profile.profile_id == table.profile_id)
        .outerjoin(Connection, Connection.id == table.connection_id)
    )


def _is_old(question: Question, retention: timedelta, now: datetime) -> bool:
    return any(first < now - retention for first, _last in question.spans)


def _find_behind(question: Question, agents: Agents, *, retention: timedelta, now: datetime) -> Answer:
    """Ask every node whose packets left it from an address and port, and find whose connections those are.
    One that was silent already is not asked.
    """
    with transaction(read_only=True) as db:
        rows = db.execute(_NODES).all()
    nodes = [NodeRef(row.number, row.name, row.agent_address) for row in rows if not row.is_silent]
    asked = [(node, *span) for node in nodes for span in question.spans]
    answers = agents.together([partial(_ask_node, agents, question, *one) for one in asked])
    silent = {row.name: None for row in rows if row.is_silent}
    without_log: dict[str, None] = {}
    begins_later: dict[str, None] = {}
    with_gap: dict[str, None] = {}
    holders: list[Holder] = []
    unnamed: list[Unnamed] = []
    is_cut = False
    with transaction(read_only=True) as db:
        for (node, first, _last), said in zip(asked, answers, strict=True):
            if isinstance(said, Exception):
                silent[node.name] = None
            elif not said.is_kept:
                without_log[node.name] = None
            else:
                if said.begins_at is None or said.begins_at > first.timestamp():
                    begins_later[node.name] = None
                if said.gaps:
                    with_gap[node.name] = None
                is_cut |= len(said.translations) == MOST_TRANSLATIONS
                for one in said.translations:
                    found = _of_translation(db, node, one, question)
                    holders += found
                    if not found:
                        unnamed.append(Unnamed(node.name, one.client, _flow(one)))
    holders.sort(key=lambda holder: holder.flow.began_at if holder.flow else holder.started_at, reverse=True)
    return Answer(
        tuple(holders[:MOST_HOLDERS]),
        is_cut=is_cut or len(holders) > MOST_HOLDERS or len(unnamed) > MOST_HOLDERS,
        is_old=_is_old(question, retention, now),
        unnamed=tuple(unnamed[:MOST_HOLDERS]),
        silent=tuple(silent),
        without_log=tuple(without_log),
        begins_later=tuple(begins_later),
        with_gap=tuple(with_gap),
    )


def _ask_node(
    agents: Agents, question: Question, node: NodeRef, first: datetime, last: datetime
) -> Translations:
    assert question.port is not None  # noqa: S101
    span = (max(0, int(first.timestamp())), int(last.timestamp()))
    return agents.translations(node, question.address, question.port, *span)


def _of_translation(db: Database, node: NodeRef, one: Translation, question: Question) -> list[Holder]:
    """Return whose a flow is: of who had its client's address when it began."""
    flow = _flow(one)
    span = {"first_0": flow.began_at - _CLOCKS, "last_0": flow.began_at + _CLOCKS}
    uses = run(db, _at_node(":" in one.client), {"address": one.client, "node": node.number} | span)
    sessions = _sessions_of(db, uses, question)
    return [replace(_of_use(use, sessions), flow=flow) for use in uses]


@cache
def _at_node(is_ipv6: bool) -> Statement:
    """Return what asks who was given an address by one node."""
    column = AddressUse.ipv6 if is_ipv6 else AddressUse.ipv4
    of_node = AddressUse.node_number == bindparam("node")
    return Statement(
        _named(AddressUse).where(column == bindparam("address"), of_node, _within(AddressUse, 1))
    )


def _flow(one: Translation) -> Flow:
    ended_at = None if one.ended_at is None else datetime.fromtimestamp(one.ended_at, UTC)
    name = _PROTOCOLS.get(one.protocol, str(one.protocol))
    return Flow(name, datetime.fromtimestamp(one.began_at, UTC), ended_at)


def _within(table: Any, moments: int) -> Any:
    """What was so at some time of a question (``_bounds``): begun before its end, and not over before its
    begin.
    """
    if not moments:
        return true()
    return or_(
        *(
            and_(
                table.started_at <= bindparam(f"last_{number}"),
                or_(table.ended_at.is_(None), table.ended_at >= bindparam(f"first_{number}")),
            )
            for number in range(moments)
        )
    )


def _bounds(question: Question) -> dict[str, datetime]:
    return {
        name: moment
        for number, (first, last) in enumerate(question.spans)
        for name, moment in ((f"first_{number}", first), (f"last_{number}", last))
    }


def _sessions_of(db: Database, uses: Sequence[Any], question: Question) -> dict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    ids = {use.connection_id for use in uses}
    if ids:
        rows = db.execute(
            select(*VpnSession.__table__.columns)
            .where(VpnSession.connection_id.in_(ids), _within(VpnSession, len(question.moments)))
            .order_by(VpnSession.started_at.desc())
            .limit(MOST_HOLDERS * MOST_SESSIONS),
            _bounds(question),
        )
        for row in rows:
            found[row.connection_id].append(row)
    return found


def _of_use(use: Any, sessions: dict[str, list[Any]]) -> Holder:
    # An OpenVPN connection has another address each time: only the session that had this one.
    own = [s for s in sessions.get(use.connection_id, []) if (s.ipv4, s.ipv6) == (use.ipv4, use.ipv6)]
    return _holder(use, use.client_id, use.device, use.end_reason, own)


def _of_origins(db: Database, sessions: Sequence[Any]) -> list[Holder]:
    """Return a holder for each connection that came from there."""
    of_connection: defaultdict[str, list[Any]] = defaultdict(list)
    for session in sessions:
        of_connection[session.connection_id].append(session)
    if not of_connection:
        return []
    found = db.execute(
        select(AddressUse.connection_id, AddressUse.client_id, AddressUse.device).where(
            AddressUse.connection_id.in_(list(of_connection))
        )
    )
    known: dict[str, tuple[str | None, str | None]] = {
        row.connection_id: (row.client_id, row.device) for row in found
    }
    return [
        _holder(own[0], *known.get(connection_id, (None, None)), None, own)
        for connection_id, own in of_connection.items()
    ]


def _holder(
    row: Any, client_id: str | None, device: str | None, end_reason: str | None, sessions: Sequence[Any]
) -> Holder:
    return Holder(
        user_name=row.user_name,
        client_id=client_id,
        device=row.display_name or device,
        node_number=row.node_number,
        node=row.node,
        profile_id=row.profile_id,
        profile=row.profile,
        protocol=row.protocol,
        connection_id=row.connection_id,
        ipv4=row.ipv4,
        ipv6=row.ipv6,
        started_at=row.started_at,
        ended_at=row.ended_at,
        end_reason=end_reason,
        sessions=tuple(sessions[:MOST_SESSIONS]),
    )
