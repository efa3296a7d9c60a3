"""Read the nodes' journals: each session once, whatever gets lost or comes twice (reliability.md R97).

The position of a node's journal moves in the same transaction as the effect of what was read, and asking
with a position acknowledges all up to it: what is lost is read again, what comes again changes nothing.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from portal_app.agents import Agents, NodeAddress
from portal_app.db import retried, transaction
from portal_app.events import log
from portal_app.models import AddressUse, Authorization, Connection, NodeStatus, Offer, User, VpnSession
from portal_app.services import audit
from vpn_core.messages import OPENVPN, Events, NodeInfo, SessionEvent

#: So many batches of 1000 per visit; the next round goes on.
_BATCHES = 10
_CHUNK = 500
#: So many entries per transaction: whoever waits for SQLite's one writer does not wait long.
_PER_TRANSACTION = 50
#: A database that is slow itself is not waited for twice.
_LONGEST_REST_SECONDS = 0.5
#: A node's clock may be this far ahead of ours before its times are cut to ours.
_AHEAD = timedelta(seconds=60)


@dataclass(frozen=True)
class Position:
    """How far a node's journal was read; ``journal_id`` is None before the first time."""

    journal_id: str | None
    sequence: int


@dataclass(frozen=True)
class _Holder:
    """Whose a connection is, or was."""

    user_name: str
    profile_id: str
    client_id: str | None
    device: str | None
    choice: str | None
    ipv4: str | None
    ipv6: str | None


def is_behind(info: NodeInfo, journal_id: str | None, sequence: int) -> bool:
    """Tell whether a node has something that was not read yet."""
    return info.journal_id != journal_id or info.journal_head > sequence


def read(agents: Agents, node: NodeAddress, info: NodeInfo, *, log_origins: bool, now: datetime) -> int:
    """Store what is new in a node's journal and acknowledge it; returns how many entries were new.

    Raises NodeUnreachable; what was stored until then stays.
    """
    stored = 0
    with transaction(read_only=True) as db:
        position = _position(db, node.number)
    if position is None or not is_behind(info, position.journal_id, position.sequence):
        return 0
    for _ in range(_BATCHES):
        events = agents.events(node, position.sequence, position.journal_id)
        if events.journal_id != position.journal_id and position.sequence:
            # A new journal begins at its own start.
            events = agents.events(node, 0, None)
        before = position
        for part in _parts(events):
            moved = store(node, part, position, log_origins=log_origins, now=now)
            if moved is None:
                return stored
            stored, position = stored + len(part.events), moved
        # The call after the last entry acknowledges it, and brings nothing.
        if position == before:
            return stored
    return stored


def _parts(events: Events) -> Iterator[Events]:
    """Cut an answer into what one transaction stores; at least one part."""
    for start in range(0, max(1, len(events.events)), _PER_TRANSACTION):
        yield replace(events, events=events.events[start : start + _PER_TRANSACTION])


class _Pace:
    """One part at a time, and each as long after the one before as that one took: users wait for the same
    database (R53). What a node tells from time to time comes long after, and is stored at once.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._rests_until = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._turn:
            time.sleep(max(0.0, self._rests_until - time.monotonic()))
            began = time.monotonic()
            try:
                yield
            finally:
                ended = time.monotonic()
                self._rests_until = ended + min(_LONGEST_REST_SECONDS, ended - began)


_pace = _Pace()


@retried
def store(
    node: NodeAddress, events: Events, before: Position, *, log_origins: bool, now: datetime
) -> Position | None:
    """Store one answer and move the position with it; None when another controller was faster."""
    same = events.journal_id == before.journal_id
    after = before.sequence if same else 0
    fresh = sorted(
        {e.sequence: e for e in events.events if e.sequence > after}.values(), key=lambda e: e.sequence
    )
    # Without entries there is nothing before ``first`` any more, perhaps because the node forgot it.
    end = fresh[-1].sequence if fresh else max(after, min(events.first - 1, events.head))
    moved = Position(events.journal_id, end)
    if moved == before:
        return moved
    with _pace.turn(), transaction() as db:
        if not _move(db, node.number, before, moved):
            return None
        if before.journal_id is not None and not same:
            _close_lost(db, node, now)
        missed = (fresh[0].sequence if fresh else end + 1) - after - 1
        if before.journal_id is not None and missed > 0:
            _report_gap(db, node, missed, now)
        _Batch(db, node, fresh, log_origins=log_origins, now=now).store()
    return moved


def _position(db: Session, node_number: int) -> Position | None:
    row = db.execute(
        select(NodeStatus.journal_id, NodeStatus.journal_sequence).where(
            NodeStatus.node_number == node_number
        )
    ).one_or_none()
    return None if row is None else Position(row.journal_id, row.journal_sequence)


def _move(db: Session, node_number: int, before: Position, after: Position) -> bool:
    """Move the position if it is still where this reader began; the row stays locked until the commit."""
    moved = db.execute(
        update(NodeStatus)
        .where(
            NodeStatus.node_number == node_number,
            NodeStatus.journal_sequence == before.sequence,
            NodeStatus.journal_id.is_not_distinct_from(before.journal_id),
        )
        .values(journal_id=after.journal_id, journal_sequence=after.sequence)
        .returning(NodeStatus.node_number)
        .execution_options(synchronize_session=False)
    )
    return moved.one_or_none() is not None


def _report_gap(db: Session, node: NodeAddress, missed: int, now: datetime) -> None:
    log("journal_gap", level=logging.WARNING, node=node.name, missed=missed)
    audit.record(db, "journal.gap", actor="controller", object=node.name, now=now, missed=missed)


def _close_lost(db: Session, node: NodeAddress, now: datetime) -> None:
    """A node lost its journal: what was open in it ended at a time that nobody knows, at the latest now."""
    log("journal_lost", level=logging.WARNING, node=node.name)
    audit.record(db, "journal.lost", actor="controller", object=node.name, now=now)
    db.execute(
        update(VpnSession)
        .where(VpnSession.node_number == node.number, VpnSession.ended_at.is_(None))
        .values(ended_at=now)
    )
    db.execute(
        update(AddressUse)
        .where(
            AddressUse.node_number == node.number,
            AddressUse.protocol == OPENVPN,
            AddressUse.ended_at.is_(None),
            AddressUse.ipv4.is_not(None),
        )
        .values(ended_at=now, end_reason="journal_lost")
    )


class _Batch:
    """Entries of one answer on their way into the database."""

    def __init__(
        self,
        db: Session,
        node: NodeAddress,
        events: Sequence[SessionEvent],
        *,
        log_origins: bool,
        now: datetime,
    ) -> None:
        self.db, self.node, self.events, self.log_origins, self.now = db, node, events, log_origins, now
        ids = {e.connection_id for e in events}
        self.holders = _holders(db, node.number, ids)
        self.sessions = {
            row.session_id: row
            for chunk in _chunks({e.session_id for e in events})
            for row in db.scalars(
                select(VpnSession).where(
                    VpnSession.node_number == node.number, VpnSession.session_id.in_(chunk)
                )
            )
        }
        self.pools: dict[str, list[IPv4Network | IPv6Network]] = {}
        self.uses: defaultdict[str, list[AddressUse]] = defaultdict(list)
        if any(e.protocol == OPENVPN for e in events):
            self.pools = _pools(db, node.number)
            self._load_uses()

    def store(self) -> None:
        for event in self.events:
            holder = self.holders.get(event.connection_id)
            if holder is None or holder.profile_id != event.profile_id:
                # It may be another node's: a node speaks for its own connections only (N7).
                log(
                    "journal_unknown_connection",
                    level=logging.WARNING,
                    node=self.node.name,
                    connection=event.connection_id,
                )
                holder = None
            session = self.sessions.get(event.session_id)
            if session is None:
                self._begin(event, holder)
            elif event.kind == "end" and session.ended_at is None:
                self._end(session, event)

    def _begin(self, event: SessionEvent, holder: _Holder | None) -> None:
        started_at = self._time(event.at)
        if event.kind == "end" and event.started_at is not None:
            started_at = min(self._time(event.started_at), started_at)
        ipv4, ipv6 = self._addresses(event, holder)
        session = VpnSession(
            node_number=self.node.number,
            session_id=event.session_id,
            connection_id=event.connection_id,
            user_name=holder.user_name if holder else None,
            profile_id=event.profile_id,
            protocol=event.protocol,
            ipv4=ipv4,
            ipv6=ipv6,
            origin=event.origin if self.log_origins else None,
            started_at=started_at,
        )
        self.sessions[event.session_id] = session
        self.db.add(session)
        if event.protocol == OPENVPN and holder is not None and (ipv4 or ipv6):
            self._clip(ipv4, ipv6, started_at)
            self._remember(
                AddressUse(
                    connection_id=event.connection_id,
                    user_name=holder.user_name,
                    profile_id=event.profile_id,
                    node_number=self.node.number,
                    protocol=OPENVPN,
                    client_id=holder.client_id,
                    device=holder.device,
                    choice=holder.choice,
                    ipv4=ipv4,
                    ipv6=ipv6,
                    started_at=started_at,
                )
            )
        if event.kind == "end":
            self._end(session, event)

    def _end(self, session: VpnSession, event: SessionEvent) -> None:
        session.ended_at = max(self._time(event.at), session.started_at)
        session.received_bytes, session.sent_bytes = event.received_bytes, event.sent_bytes
        if session.protocol == OPENVPN:
            for use in self._uses_of(session.ipv4, session.ipv6):
                if (
                    use.ended_at is None
                    and use.connection_id == session.connection_id
                    and use.started_at == session.started_at
                ):
                    use.ended_at, use.end_reason = session.ended_at, "disconnected"

    def _clip(self, ipv4: str | None, ipv6: str | None, started_at: datetime) -> None:
        """End earlier uses of an address where the next begins, so that intervals never overlap (I7)."""
        for use in self._uses_of(ipv4, ipv6):
            if use.started_at <= started_at and (use.ended_at is None or use.ended_at > started_at):
                use.ended_at, use.end_reason = started_at, "address_reused"

    def _load_uses(self) -> None:
        """Read every use of a pool's address that what is stored here may end, a few statements for all."""
        earliest = min(self._time(e.at if e.started_at is None else e.started_at) for e in self.events)
        for column, addresses in (
            (AddressUse.ipv4, {e.ipv4 for e in self.events} | {r.ipv4 for r in self.sessions.values()}),
            (AddressUse.ipv6, {e.ipv6 for e in self.events} | {r.ipv6 for r in self.sessions.values()}),
        ):
            for chunk in _chunks(a for a in addresses if a is not None):
                found = select(AddressUse).where(
                    column.in_(chunk),
                    AddressUse.node_number == self.node.number,
                    AddressUse.protocol == OPENVPN,
                    or_(AddressUse.ended_at.is_(None), AddressUse.ended_at > earliest),
                )
                for use in self.db.scalars(found):
                    self._remember(use)

    def _remember(self, use: AddressUse) -> None:
        self.db.add(use)
        for address in (use.ipv4, use.ipv6):
            if address is not None and use not in self.uses[address]:
                self.uses[address].append(use)

    def _uses_of(self, ipv4: str | None, ipv6: str | None) -> list[AddressUse]:
        return [use for address in (ipv4, ipv6) if address is not None for use in self.uses[address]]

    def _addresses(self, event: SessionEvent, holder: _Holder | None) -> tuple[str | None, str | None]:
        """Return a session's addresses: ours for WireGuard, for OpenVPN what lies in the node's pools."""
        if event.protocol != OPENVPN:
            return (holder.ipv4, holder.ipv6) if holder else (None, None)
        pools = self.pools.get(event.profile_id, ())
        inside = [
            address if address and any(ip_address(address) in pool for pool in pools) else None
            for address in (event.ipv4, event.ipv6)
        ]
        if (event.ipv4, event.ipv6) != (inside[0], inside[1]):
            log(
                "journal_foreign_address",
                level=logging.WARNING,
                node=self.node.name,
                connection=event.connection_id,
            )
        return inside[0], inside[1]

    def _time(self, seconds: int) -> datetime:
        latest = self.now + _AHEAD
        return min(datetime.fromtimestamp(min(seconds, int(latest.timestamp())), UTC), self.now)


def _pools(db: Session, node_number: int) -> dict[str, list[IPv4Network | IPv6Network]]:
    rows = db.execute(select(Offer.profile_id, Offer.openvpn).where(Offer.node_number == node_number))
    return {
        row.profile_id: [ip_network(p[family]) for p in row.openvpn for family in ("ipv4", "ipv6")]
        for row in rows
    }


def _holders(db: Session, node_number: int, ids: set[str]) -> dict[str, _Holder]:
    """Return whose these connections of a node are; those that have ended are known from the address log."""
    found: dict[str, _Holder] = {}
    for chunk in _chunks(ids):
        ended = db.execute(
            select(AddressUse)
            .where(AddressUse.connection_id.in_(chunk), AddressUse.node_number == node_number)
            .order_by(AddressUse.id)
        ).scalars()
        for use in ended:
            found[use.connection_id] = _Holder(
                use.user_name, use.profile_id, use.client_id, use.device, use.choice, use.ipv4, use.ipv6
            )
        living = db.execute(
            select(
                Connection.id,
                User.name,
                Connection.profile_id,
                Authorization.client_id,
                Connection.display_name,
                Connection.choice,
                Connection.ipv4,
                Connection.ipv6,
            )
            .join(User, User.id == Connection.user_id)
            .outerjoin(Authorization, Authorization.id == Connection.authorization_id)
            .where(Connection.id.in_(chunk), Connection.node_number == node_number)
        )
        for row in living:
            found[row.id] = _Holder(
                row.name,
                row.profile_id,
                row.client_id,
                row.display_name,
                row.choice,
                row.ipv4,
                row.ipv6,
            )
    return found


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]
