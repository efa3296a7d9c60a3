"""Sessions from the nodes' journals: each once, whatever is lost, comes twice or lies."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from node_agent.journal import Journal, OpenSession
from portal_app.db import transaction
from portal_app.errors import NodeUnreachable
from portal_app.models import AddressUse, AuditEvent, Connection, NodeStatus, User, VpnSession
from portal_app.services import connections, journal, nodes
from portal_app.services.journal import Position
from tests.portal.app_user import add_user
from tests.portal.conftest import apply_plan
from vpn_core.messages import Events, NodeInfo, SessionEvent

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
NODE = nodes.NodeRef(0, "node0", "192.0.2.10")
#: The first OpenVPN process of "legacy" on node 0 has this range (conftest.PROFILES, cut for four nodes).
ADDRESS, OTHER_ADDRESS, FOREIGN = ("10.64.0.5", "fd43:64::1003"), ("10.64.0.6", "fd43:64::1004"), "10.64.4.5"
JOURNAL = "a" * 32


@pytest.fixture(autouse=True)
def plan(app: Flask) -> None:
    apply_plan({0: "192.0.2.10", 1: "192.0.2.11"})


def make_connection(user: User | None = None, number: int = 0, protocol: str = "openvpn") -> str:
    user = user or add_user(f"user-{uuid.uuid4().hex[:8]}")
    wireguard = protocol == "wireguard"
    with transaction() as db:
        made = Connection(
            id=uuid.uuid4().hex,
            user_id=user.id,
            node_number=number,
            profile_id="lab" if wireguard else "legacy",
            protocol=protocol,
            public_key="3kQ0tq0mNqT3o7WcYf1YkYc0bK6q0oVQm8H6r7mX0Es=" if wireguard else None,
            position=0 if wireguard else None,
            ipv4="10.63.0.2" if wireguard else None,
            ipv6="fd43:63::2" if wireguard else None,
            display_name="test",
            created_at=NOON - timedelta(hours=1),
            expires_at=NOON + timedelta(days=90),
            generation=nodes.next_generation(db, number),
        )
        db.add(made)
    return made.id


@dataclass
class Told:
    """Entries of one journal, as an agent would write them."""

    entries: list[SessionEvent] = field(default_factory=list)
    sequence: int = 0

    def start(
        self, connection_id: str, minute: float, address: tuple[str, str] = ADDRESS, **changes: Any
    ) -> str:
        session_id = uuid.uuid4().hex
        self._add("start", session_id, connection_id, minute, address, **changes)
        return session_id

    def end(
        self,
        session_id: str,
        connection_id: str,
        minute: float,
        address: tuple[str, str] = ADDRESS,
        **changes: Any,
    ) -> None:
        counters = {"received_bytes": 1000, "sent_bytes": 2000}
        self._add("end", session_id, connection_id, minute, address, **(counters | changes))

    def _add(
        self,
        kind: str,
        session_id: str,
        connection_id: str,
        minute: float,
        address: tuple[str, str],
        **changes: Any,
    ) -> None:
        self.sequence += 1
        values = {
            "sequence": self.sequence,
            "kind": kind,
            "session_id": session_id,
            "connection_id": connection_id,
            "profile_id": "legacy",
            "protocol": "openvpn",
            "at": at(minute),
            "ipv4": address[0],
            "ipv6": address[1],
        }
        self.entries.append(SessionEvent(**(values | changes)))

    def answer(self, after: int = 0, first: int = 1, journal_id: str = JOURNAL) -> Events:
        entries = tuple(e for e in self.entries if e.sequence > after and e.sequence >= first)
        return Events(journal_id, first, self.sequence, entries)


def at(minute: float) -> int:
    return int((NOON + timedelta(minutes=minute)).timestamp())


def store(events: Events, before: Position | None = None, **options: Any) -> Position | None:
    options = {"log_origins": False, "now": NOON + timedelta(hours=2)} | options
    return journal.store(NODE, events, before or position(), **options)


def position() -> Position:
    with transaction(read_only=True) as db:
        status = db.get_one(NodeStatus, 0)
        return Position(status.journal_id, status.journal_sequence)


def sessions() -> list[VpnSession]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(VpnSession).order_by(VpnSession.started_at)))


def uses(*, with_address: bool = True) -> list[AddressUse]:
    with transaction(read_only=True) as db:
        chosen = select(AddressUse).order_by(AddressUse.started_at, AddressUse.id)
        return [u for u in db.scalars(chosen) if (u.ipv4 is not None) == with_address]


def actions() -> list[str]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent.action).where(AuditEvent.action.like("journal.%"))))


def test_session_is_a_row_with_its_user_times_and_bytes():
    user, told = add_user("alice"), Told()
    connection = make_connection(user)
    told.end(told.start(connection, 1), connection, 5)

    store(told.answer())

    (session,) = sessions()
    assert (session.user_name, session.ipv4, session.ipv6) == ("alice", *ADDRESS)
    assert (session.started_at, session.ended_at) == (
        NOON + timedelta(minutes=1),
        NOON + timedelta(minutes=5),
    )
    assert (session.received_bytes, session.sent_bytes) == (1000, 2000)
    (use,) = uses()
    assert (use.user_name, use.device, use.ipv4, use.started_at, use.ended_at) == (
        "alice",
        "test",
        ADDRESS[0],
        session.started_at,
        session.ended_at,
    )


def test_answer_that_comes_twice_counts_once():
    """R97."""
    told = Told()
    connection = make_connection()
    told.end(told.start(connection, 1), connection, 5)
    store(Events(JOURNAL, 1, 1, tuple(told.entries[:1])))
    before = position()
    store(told.answer(), before)
    store(told.answer())  # the same entries again: behind the position

    # A reader that began before the first one had stored: another leader was faster.
    told.end(told.start(connection, 6), connection, 7)
    assert store(told.answer(), before) is None

    assert len(sessions()) == len(uses()) == 1
    assert position().sequence == 2


def test_lost_answers_and_crashes_lose_nothing_and_double_nothing(tmp_path: Path):
    """R97: a real journal, read through a connection that loses what it likes."""
    kept = Journal(tmp_path / "journal", 30)
    kept.load()
    ids = [make_connection() for _ in range(3)]

    class Lossy:
        """Every second answer is lost after the agent has given it."""

        asked = 0

        def events(self, _node: Any, after: int, journal_id: str | None) -> Events:
            self.asked += 1
            if journal_id == kept.journal_id:
                kept.acknowledge(after)
            answer = kept.read(after if journal_id == kept.journal_id else 0)
            if self.asked % 2:
                raise NodeUnreachable("node0: the answer was lost")
            return Events.parse(answer.to_dict())

    lossy: Any = Lossy()
    written: list[str] = []
    for turn in range(30):
        session_id = uuid.uuid4().hex
        written.append(session_id)
        write_session(kept, session_id, ids[turn % 3], turn)
        asyncio.run(kept.flush())
        read(lossy, kept)
    while position().sequence < kept.head:
        read(lossy, kept)

    assert sorted(s.session_id for s in sessions()) == sorted(written)
    assert all(s.ended_at is not None for s in sessions())
    assert actions() == []


def write_session(kept: Journal, session_id: str, connection_id: str, minute: int) -> None:
    """Write one session as the agent does."""
    connection: Any = SimpleNamespace(connection_id=connection_id, profile_id="legacy", protocol="openvpn")
    session = OpenSession(
        session_id, connection_id, "legacy", "openvpn", at(minute), *ADDRESS, origin=None, last_at=at(minute)
    )
    kept.start(connection, session)
    kept.end(session, at(minute + 0.5))


def read(agents: Any, kept: Journal) -> None:
    info: Any = NodeInfo(
        v="1", node_number=0, instance_id="0" * 32, boot_id="0" * 32, node_uptime=1, now=0,
        maintenance_mode=False, cpu_count=1, load_average=(), rel_load_average=(), profiles={},
        wireguard_public_key=None, w_peer_count=0, o_client_count=0, connection_count=0, deployment_id=None,
        epoch=0, generation=0, journal_id=kept.journal_id, journal_head=kept.head,
    )  # fmt: skip
    with contextlib.suppress(NodeUnreachable):
        journal.read(agents, NODE, info, log_origins=False, now=NOON + timedelta(hours=2))


def test_gap_is_reported():
    """R97: the node kept less than we had not read."""
    told = Told()
    connection = make_connection()
    for minute in range(5):
        told.start(connection, minute)
    store(Events(JOURNAL, 1, 1, tuple(told.entries[:1])))

    store(told.answer(after=1, first=4))

    assert len(sessions()) == 3
    assert actions() == ["journal.gap"]
    assert position().sequence == 5


def test_node_that_forgot_everything_unread_is_a_gap_once():
    """R97: no portal fetched it for a month."""
    told = Told()
    told.start(make_connection(), 1)
    store(told.answer())

    store(Events(JOURNAL, 51, 50, ()))
    store(Events(JOURNAL, 51, 50, ()))

    assert actions() == ["journal.gap"]
    assert position().sequence == 50


def test_lost_journal_ends_what_was_open_and_is_reported():
    """R97: a node that was reinstalled, or lost its disk."""
    told, new = Told(), Told()
    connection = make_connection()
    told.start(connection, 1)
    store(told.answer())
    new.start(connection, 30)

    store(new.answer(journal_id="b" * 32))

    first, second = sessions()
    assert first.ended_at is not None
    assert second.ended_at is None
    assert [use.ended_at is None for use in uses()] == [False, True]
    assert actions() == ["journal.lost"]
    assert position() == Position("b" * 32, 1)


def test_session_told_after_the_end_of_its_connection_still_has_its_user():
    """I7: all portals were away, the client connected, and its time ran out before the journal was read."""
    told = Told()
    connection = make_connection(add_user("alice"))
    told.end(told.start(connection, 1), connection, 5)
    with transaction() as db:
        connections.end(db, Connection.id == connection, reason="expired", now=NOON + timedelta(hours=1))

    store(told.answer())

    assert [(use.user_name, use.ipv4) for use in uses()] == [("alice", ADDRESS[0])]
    assert [use.end_reason for use in uses(with_address=False)] == ["expired"]


def test_uses_of_one_address_never_overlap():
    """I7: the end of the first session was lost with a crash, or comes late."""
    told = Told()
    alice, bob = make_connection(add_user("alice")), make_connection(add_user("bob"))
    first = told.start(alice, 1)
    told.start(bob, 10)
    told.end(first, alice, 12)

    store(told.answer())

    assert [(use.user_name, use.started_at, use.ended_at) for use in uses()] == [
        ("alice", NOON + timedelta(minutes=1), NOON + timedelta(minutes=10)),
        ("bob", NOON + timedelta(minutes=10), None),
    ]


def test_clients_of_two_addresses_do_not_end_each_other():
    told = Told()
    told.start(make_connection(), 1)
    told.start(make_connection(), 2, OTHER_ADDRESS)

    store(told.answer())

    assert [use.ended_at for use in uses()] == [None, None]


def test_node_speaks_for_its_own_connections_only():
    """N7: a stolen node tells of another node's user."""
    told = Told()
    foreign = make_connection(add_user("alice"), number=1)
    told.start(foreign, 1)
    told.start(uuid.uuid4().hex, 2)

    store(told.answer())

    assert [session.user_name for session in sessions()] == [None, None]
    assert uses() == []


def test_node_speaks_for_its_own_addresses_only():
    """N7: an address of another node's range would put the blame on somebody else."""
    told = Told()
    told.start(make_connection(), 1, (FOREIGN, ADDRESS[1]))

    store(told.answer())

    assert [(use.ipv4, use.ipv6) for use in uses(with_address=False)] == [(None, ADDRESS[1])]


def test_wireguard_session_has_the_leased_addresses_whatever_the_node_says():
    """N7; the use of a WireGuard address is its lease, so a session adds none."""
    told = Told()
    connection = make_connection(protocol="wireguard")
    told.start(connection, 1, (FOREIGN, "fd43:64::99"), profile_id="lab", protocol="wireguard")

    store(told.answer())

    (session,) = sessions()
    assert (session.ipv4, session.ipv6) == ("10.63.0.2", "fd43:63::2")
    assert uses() == []


def test_time_of_a_node_does_not_lie_ahead_of_ours():
    told = Told()
    told.start(make_connection(), 60 * 24 * 365)

    store(told.answer(), now=NOON)

    assert sessions()[0].started_at == NOON


@pytest.mark.parametrize("log_origins", [True, False])
def test_origin_is_kept_only_if_that_is_switched_on(log_origins):
    """P3."""
    told = Told()
    told.start(make_connection(), 1, origin="198.51.100.7:4500")

    store(told.answer(), log_origins=log_origins)

    assert sessions()[0].origin == ("198.51.100.7:4500" if log_origins else None)


def test_end_without_its_start_brings_the_start_along():
    told = Told()
    connection = make_connection()
    told.end(uuid.uuid4().hex, connection, 9, started_at=at(3))

    store(told.answer())

    (session,) = sessions()
    assert (session.started_at, session.ended_at) == (
        NOON + timedelta(minutes=3),
        NOON + timedelta(minutes=9),
    )
    assert [use.ended_at for use in uses()] == [session.ended_at]


def test_thousand_entries_read_again_from_the_start_change_nothing():
    told = Told()
    ids = [make_connection() for _ in range(4)]
    for number in range(500):
        address = (f"10.64.0.{number % 200 + 2}", f"fd43:64::{number % 200 + 2:x}")
        told.end(told.start(ids[number % 4], number, address), ids[number % 4], number + 0.5, address)

    store(told.answer(), now=NOON + timedelta(days=1))

    with transaction(read_only=True) as db:
        assert db.scalar(select(func.count()).select_from(VpnSession)) == 500
        assert db.scalar(select(func.count()).select_from(AddressUse)) == 500
    with transaction() as db:
        db.execute(update(NodeStatus).values(journal_sequence=0))
    store(told.answer(), now=NOON + timedelta(days=1))
    with transaction(read_only=True) as db:
        assert db.scalar(select(func.count()).select_from(VpnSession)) == 500
        assert db.scalar(select(func.count()).select_from(AddressUse)) == 500


def read_alone(number: int, told: Told) -> None:
    """Read a node's journal as a thread of the controller does, beside others."""
    agents: Any = SimpleNamespace(events=lambda _node, after, _journal: told.answer(after))
    info: Any = SimpleNamespace(journal_id=JOURNAL, journal_head=told.sequence)
    node = nodes.NodeRef(number, f"node{number}", NODE.agent_address)
    journal.read(agents, node, info, log_origins=False, now=NOON + timedelta(hours=3))


def test_long_journals_are_stored_in_short_transactions_one_at_a_time_with_rests(monkeypatch):
    """R53: users of the same database get in between."""
    taken: list[tuple[float, float]] = []

    @contextlib.contextmanager
    def watched(*, read_only: bool = False) -> Iterator[Session]:
        began = time.monotonic()
        with transaction(read_only=read_only) as db:
            yield db
        if not read_only:
            taken.append((began, time.monotonic()))

    monkeypatch.setattr(journal, "transaction", watched)
    threads = []
    for number in (0, 1):
        told, connection = Told(), make_connection(number=number)
        for minute in range(120):
            told.end(told.start(connection, minute), connection, minute + 0.5)
        threads.append(threading.Thread(target=read_alone, args=(number, told)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(sessions()) == 240
    assert len(taken) >= 480 / 50
    for (began, ended), (next_began, _) in pairwise(sorted(taken)):
        assert next_began - ended >= min(0.5, ended - began)


def test_what_a_node_tells_from_time_to_time_is_stored_at_once(monkeypatch):
    """Only what comes right after another part waits."""
    slept: list[float] = []
    monkeypatch.setattr(journal, "_pace", journal._Pace())
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
    told, connection = Told(), make_connection()
    told.end(told.start(connection, 1), connection, 5)

    read_alone(0, told)

    assert len(sessions()) == 1
    assert sum(slept) == 0
