"""A node that goes takes its open sessions along: at the moment it goes, and nobody else's."""

import base64
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import delete, select

from portal_app.controller import housekeeping
from portal_app.db import transaction
from portal_app.errors import NodeUnreachable
from portal_app.models import AddressUse, AuditEvent, Connection, Node, User, VpnSession
from portal_app.services import leaving, nodes
from tests.portal.app_user import add_user
from tests.portal.commands import Done
from tests.portal.conftest import PROFILES, apply_plan
from vpn_core.messages import Events, SessionEvent
from vpn_core.plan import make_plan

#: Whole seconds, as a node counts.
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
JOURNAL = "a" * 32
#: Of the OpenVPN process of "legacy" on either node.
OPENVPN_ADDRESS = {0: "10.64.0.5", 1: "10.64.4.5"}


@pytest.fixture(autouse=True)
def plan(app: Flask) -> None:
    apply_plan({0: "127.0.0.254", 1: "127.0.0.253"})


@pytest.fixture
def leave(run: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """Apply a plan in which only node 0 is left."""

    def apply(*words: str, max_nodes: int = 4) -> Done:
        hosts = {
            "node0": {"number": 0, "hostname": "node0.example.org", "agent_address": "127.0.0.254"},
        }
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(make_plan(PROFILES, hosts, {"max_nodes": max_nodes}).to_dict()))
        return run("plan", "apply", str(file), *words)

    return apply


def connected(user: User, number: int, protocol: str = "openvpn") -> VpnSession:
    """Let a user be connected with a downloaded configuration since an hour before noon."""
    wireguard = protocol == "wireguard"
    ipv4 = f"10.63.{4 * number}.2" if wireguard else None
    connection_id, profile_id = uuid.uuid4().hex, "lab" if wireguard else "legacy"
    key = base64.b64encode(uuid.uuid4().bytes * 2).decode()
    who = {"user_name": user.name, "profile_id": profile_id, "node_number": number, "protocol": protocol,
           "connection_id": connection_id, "started_at": NOON - HOUR}  # fmt: skip
    session = VpnSession(session_id=uuid.uuid4().hex, ipv4=ipv4 or OPENVPN_ADDRESS[number], **who)
    with transaction() as db:
        db.add(
            Connection(
                id=connection_id, user_id=user.id, node_number=number, profile_id=profile_id,
                protocol=protocol, public_key=key if wireguard else None,
                position=0 if wireguard else None, ipv4=ipv4,
                ipv6=f"fd43:63::{number}:2" if wireguard else None,
                display_name="test", created_at=NOON - HOUR, expires_at=datetime.now(UTC) + DAY,
                generation=nodes.next_generation(db, number),
            )
        )  # fmt: skip
        db.add(AddressUse(ipv4=ipv4, **who))
        db.add(session)
        if not wireguard:
            db.add(AddressUse(ipv4=OPENVPN_ADDRESS[number], **who))
    return session


class Agent:
    """Stands for ``Agents``: ends a session when its connection is cut, and says so in its journal."""

    def __init__(self, sessions: list[VpnSession], *, answers: bool = True) -> None:
        self.sessions, self.answers = {s.connection_id: s for s in sessions}, answers
        self.events_said: list[SessionEvent] = []
        self.cuts: list[str] = []

    def info(self, node: Any, **_options: Any) -> Any:
        if not self.answers:
            raise NodeUnreachable(f"{node.name}: no answer in time")
        return SimpleNamespace(journal_id=JOURNAL, journal_head=len(self.events_said))

    def cut(self, node: Any, connection_id: str, _cut: Any, **_options: Any) -> None:
        self.cuts.append(connection_id)
        if not self.answers:
            raise NodeUnreachable(f"{node.name}: no answer in time")
        if session := self.sessions.pop(connection_id, None):
            self.events_said.append(
                SessionEvent(
                    sequence=len(self.events_said) + 1, kind="end", session_id=session.session_id,
                    connection_id=connection_id, profile_id=session.profile_id, protocol=session.protocol,
                    at=int(NOON.timestamp()), ipv4=session.ipv4, received_bytes=1000, sent_bytes=2000,
                )
            )  # fmt: skip

    def events(self, _node: Any, after: int, _journal: str | None, **_options: Any) -> Events:
        return Events(JOURNAL, 1, len(self.events_said), tuple(self.events_said[after:]))

    def together(self, calls: Any, **_options: Any) -> None:
        for call in calls:
            call()


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Agent]:
    def make(sessions: list[VpnSession], **options: Any) -> Agent:
        agent = Agent(sessions, **options)
        monkeypatch.setattr("portal_app.cli.plan.Agents", lambda _settings: agent)
        return agent

    return make


def session_of(before: VpnSession) -> VpnSession:
    with transaction(read_only=True) as db:
        return db.get_one(VpnSession, (before.node_number, before.session_id))


def uses(number: int) -> list[AddressUse]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AddressUse).where(AddressUse.node_number == number)))


def everybody_on_both() -> list[VpnSession]:
    alice, bob = add_user("alice"), add_user("bob")
    gone = [connected(alice, 1), connected(bob, 1, "wireguard")]
    return [*gone, connected(alice, 0), connected(bob, 0, "wireguard")]


def test_last_words_of_a_node_that_goes_are_heard(answering, leave):
    *gone, _, _ = everybody_on_both()
    agent = answering(gone)

    done = leave()

    assert done.status == 0
    assert any("cut 2 connections, its node is gone: alice, bob" in line for line in done.out.splitlines())
    assert "  node node1: removed (number 1)" in done.out.splitlines()
    assert sorted(agent.cuts) == sorted(s.connection_id for s in gone)
    for session in map(session_of, gone):
        assert (session.ended_at, session.received_bytes, session.sent_bytes) == (NOON, 1000, 2000)
    ends = {(use.protocol, use.ipv4 is None): use.end_reason for use in uses(1)}
    assert ends == {
        ("openvpn", True): "node_removed", ("openvpn", False): "disconnected",
        ("wireguard", False): "node_removed",
    }  # fmt: skip
    with transaction(read_only=True) as db:
        cut = db.scalars(select(AuditEvent.details).where(AuditEvent.action == "node.drain")).one()
    assert cut["cut"] == 2


@pytest.mark.parametrize("answers", [True, False], ids=["silent journal", "node is gone"])
def test_what_a_node_never_tells_ends_when_it_is_removed(answering, leave, monkeypatch, answers):
    monkeypatch.setattr(leaving, "_READ_SECONDS", 0.0)
    *gone, _, _ = everybody_on_both()
    answering([], answers=answers)
    before = datetime.now(UTC)

    done = leave("--json")

    assert json.loads(done.out)["cuts"][0]["because"] == "its node is gone"
    for session in map(session_of, gone):
        assert session.ended_at is not None
        assert before - timedelta(seconds=1) <= session.ended_at <= datetime.now(UTC)
        assert session.received_bytes is None
    assert {use.end_reason for use in uses(1)} == {"node_removed"}
    assert all(use.ended_at is not None for use in uses(1))


def test_sessions_of_other_nodes_go_on_when_one_goes(answering, leave):
    *gone, first, second = everybody_on_both()
    agent = answering(gone)

    leave()

    assert [session_of(s).ended_at for s in (first, second)] == [None, None]
    assert [use.ended_at for use in uses(0)] == [None, None, None]
    assert {first.connection_id, second.connection_id}.isdisjoint(agent.cuts)


@pytest.mark.parametrize(("words", "status"), [(["--dry-run"], 0), ([], 3)], ids=["dry run", "refused"])
def test_plan_that_is_not_applied_ends_nobody_on_the_node_it_leaves_out(answering, leave, words, status):
    *gone, _, _ = everybody_on_both()
    agent = answering(gone)

    assert leave(*words, max_nodes=4 if words else 8).status == status

    assert agent.cuts == []
    assert [session_of(s).ended_at for s in gone] == [None, None]


def test_number_that_comes_back_begins_with_nobody(answering, leave):
    """Databases of releases that left sessions open: the new node is not to show them as its own."""
    alice = add_user("alice")
    old = connected(alice, 1)
    with transaction() as db:
        db.execute(delete(Connection))
        db.execute(delete(Node).where(Node.number == 1))

    apply_plan({0: "127.0.0.254", 1: "127.0.0.253"})

    assert session_of(old).ended_at is not None


def test_controller_ends_what_is_open_on_forgotten_nodes_when_its_connection_ended(settings):
    """Databases of releases that left sessions open heal; what runs elsewhere goes on."""
    alice = add_user("alice")
    old, unknown, other = connected(alice, 1), connected(alice, 1), connected(alice, 0)
    with transaction() as db:
        db.execute(delete(Connection).where(Connection.node_number == 1))
        own = db.scalars(
            select(AddressUse).where(AddressUse.connection_id == old.connection_id, AddressUse.ipv4.is_(None))
        ).one()
        own.ended_at, own.end_reason = NOON, "node_removed"
        db.execute(delete(Node).where(Node.number == 1))

    for _ in range(2):  # the second finds nothing
        housekeeping.prune(replace(settings, retention_days=90), NOON + DAY)

    assert session_of(old).ended_at == NOON
    assert session_of(unknown).ended_at == NOON + DAY
    of_old = [use.ended_at for use in uses(1) if use.connection_id == old.connection_id]
    assert of_old == [NOON, NOON]
    assert all(use.ended_at is not None for use in uses(1))
    assert session_of(other).ended_at is None
    assert [use.ended_at for use in uses(0)] == [None, None]


def test_more_forgotten_sessions_than_one_transaction_closes_are_all_closed(monkeypatch):
    monkeypatch.setattr(leaving, "_BATCH", 2)
    alice = add_user("alice")
    left = [connected(alice, 1) for _ in range(5)]
    with transaction() as db:
        db.execute(delete(Connection))
        db.execute(delete(Node).where(Node.number == 1))

    assert leaving.close_forgotten(NOON) == 5 + 10

    assert all(session_of(s).ended_at == NOON for s in left)
