"""Whatever is lost, late, doubled or dies: after quiet each node has what it should, each session told once.

Random histories of two portals with a controller each, two nodes and three users, with the real services,
controllers, agents and files; ``wire.py`` and ``tests/agent/virtual_node.py`` say what is stood in for.
Without CAUSEWAY_HISTORIES they are the same in each run; CAUSEWAY_HISTORIES=5000 makes so many new ones.
"""

import base64
import contextlib
import hashlib
import logging
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from flask import Flask
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

import node_agent.agent
import node_agent.journal
import node_agent.openvpn
import node_agent.records
import node_agent.store
import node_agent.wireguard
import portal_app.controller.watch
import portal_app.services.connections
import portal_app.services.journal
from node_agent.management import Management
from portal_app import db
from portal_app.cli import deployment as deployment_command
from portal_app.cli import node as node_command
from portal_app.controller import housekeeping
from portal_app.controller.observation import Timing
from portal_app.controller.watch import Watch
from portal_app.db import transaction
from portal_app.errors import NoCommonProtocol
from portal_app.models import AddressUse, AuditEvent, Authorization, Connection, NodeStatus, User, VpnSession
from portal_app.services import authorizations, connections, nodes, plan, plan_file, transports, users
from portal_app.services.connections import Holder, Issued, Wanted
from portal_app.settings import Settings
from tests.agent.virtual_node import BEGIN, Node, Time, Truth
from tests.portal.app_user import LINUX
from tests.portal.wire import Act, Call, Fate, Network, Wire
from vpn_core.messages import OPENVPN, WIREGUARD
from vpn_core.plan import make_plan

HISTORIES = int(os.environ.get("CAUSEWAY_HISTORIES", "0"))
STEPS = 30
NAMES = ("alice", "bob", "carol")
#: A short life and few addresses: what ends and comes again is what can go wrong.
LIFE_SECONDS = 900
PROFILES: dict[str, Any] = {
    "legacy": {
        "display_name": "Legacy",
        "wireguard": {"ipv4": "10.61.0.0/28", "ipv6": "fd43:61::/108"},
        "openvpn": {"ipv4": "10.62.0.0/24", "ipv6": "fd43:62::/96", "udp_ports": [1194], "tcp_ports": []},
    }
}
TIMING = Timing(poll=5.0, moved=10.0, full=60.0)
#: Where the code under test reads a clock.
CLOCKED = (
    node_agent.agent,
    node_agent.openvpn,
    node_agent.records,
    node_agent.store,
    node_agent.wireguard,
    portal_app.controller.watch,
    portal_app.services.connections,
)


@dataclass
class App:
    """An app on a user's device, with a key of its own and what it was given: id, protocol, key."""

    user: str
    number: int
    key: str
    held: list[tuple[str, str, str | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Template:
    """What every history begins with."""

    app: Flask
    database: Path
    plan: dict[str, Any]


class History(RuleBasedStateMachine):
    """One history. Rules take the fates of the calls that they cause, in order; what is left is delivered."""

    template: Template

    FATES = st.lists(st.sampled_from(Fate), min_size=1, max_size=3)
    #: Of a message that comes in spite of all, when it likes.
    LATENESS = st.sampled_from([Fate.LATE, Fate.COPY_LATE, Fate.PAUSED, Fate.PAUSED_AFTER, Fate.TWICE])
    APPS = st.tuples(st.sampled_from(NAMES), st.sampled_from((0, 1, 2)))
    CONTROLLERS = st.sampled_from((0, 1))
    NODES = st.sampled_from((0, 1))
    RARELY = st.sampled_from((False, False, True))

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.directory = Path(tempfile.mkdtemp(prefix="history-", dir=_memory()))
        self.time = Time()
        self._make_it_repeatable()
        self._open_database(self.template.database)
        self.nodes = {
            share["number"]: Node(share, self.directory / name, self.time)
            for name, share in self.template.plan["nodes"].items()
        }
        self.network = Network(self.template.app, self.nodes, self.time)
        self.network.answered = self._answered
        self.wire = Wire(self.network)
        self._connect_the_portal()
        self.watches = [self._watch(), self._watch()]
        self.apps = {(name, n): App(name, n, _key(f"{name} {n}")) for name in NAMES for n in range(3)}
        #: What a node has not any more, and never may have again.
        self.gone: dict[int, set[str]] = {n: set() for n in self.nodes}
        self.cut: dict[int, set[str]] = {n: set() for n in self.nodes}
        self.had: dict[int, dict[str, int]] = {n: {} for n in self.nodes}
        self.served: dict[str, int] = {}
        self.copy: Path | None = None
        self.was_restored = False

    def _make_it_repeatable(self) -> None:
        """Our time everywhere, and the same random ids, keys and choices in each run of a history."""
        for module in CLOCKED:
            self.patches.setattr(module, "time", self.time)
        # Looks for an interface made anew, twice a second: most of what happens in an idle hour.
        self.patches.setattr(node_agent.agent, "WATCH_SECONDS", 3.0)
        # A few entries take several answers, and an answer several transactions.
        self.patches.setattr(node_agent.journal, "EVENTS_PER_ANSWER", 3)
        self.patches.setattr(portal_app.services.journal, "_PER_TRANSACTION", 2)
        # No users wait for this database.
        self.patches.setattr(portal_app.services.journal, "_LONGEST_REST_SECONDS", 0.0)
        source = random.Random(1)  # noqa: S311
        self.patches.setattr(os, "urandom", source.randbytes)
        self.patches.setattr(random, "_urandom", source.randbytes)
        for module in (node_command, deployment_command):
            self.patches.setattr(module, "print", lambda *_, **_options: None, raising=False)
            self.patches.setattr(module, "utc_now", self.now)

    def _connect_the_portal(self) -> None:
        extensions = self.template.app.extensions
        extensions["causeway"] = replace(extensions["causeway"], agents=self.wire)
        self.patches.setattr(Management, "attach", staticmethod(self._attach))
        self.patches.setattr(node_command, "Agents", lambda _settings: self.wire)
        self.patches.setattr(portal_app.controller.watch, "Lane", self._lane)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.time.time(), UTC)

    def _attach(self, path: Path, on_event: Any) -> Any:
        return next(n for n in self.nodes.values() if n.directory == path.parent).attach(path, on_event)

    def _lane(self, _name: str, _threads: int) -> Any:
        return Namespace(submit=self.network.begin)

    def _watch(self) -> Watch:
        return Watch(self.wire, log_origins=False, clock=self.now, timing=TIMING)

    def _open_database(self, copy: Path) -> None:
        db.engine().dispose()
        for file in self.directory.glob("portal.sqlite*"):
            file.unlink()
        shutil.copyfile(copy, self.directory / "portal.sqlite")
        db.connect_to(f"sqlite:///{self.directory}/portal.sqlite")

    @property
    def settings(self) -> Settings:
        found: Settings = self.template.app.extensions["causeway"].settings
        return found

    @initialize()
    def begin(self) -> None:
        for node in self.nodes.values():
            node.start()
        self.pass_time(1)
        for number in (0, 0, 1):
            self.round(number, [])

    def teardown(self) -> None:
        try:
            # Hypothesis tears down in any case, also after a failure.
            if sys.exc_info()[0] is None:
                self.quiet()
        finally:
            self.network.kill(None)
            for node in self.nodes.values():
                node.crash()
            db.engine().dispose()
            shutil.rmtree(self.directory)
            self.patches.undo()

    # --- what people do

    def _play(self, work: Callable[[], Any], fates: list[Fate]) -> Act:
        act = self.network.play(work, fates)
        self._replace_the_dead()
        return act

    def _replace_the_dead(self) -> None:
        """A controller that died in one act remembers nothing of the others."""
        while self.network.dead:
            owner = self.network.dead.pop()
            for number, watch in enumerate(self.watches):
                if watch is owner:
                    self.network.kill(watch)
                    self.watches[number] = self._watch()

    def _holder(self, app: App) -> Holder | None:
        """Return whom an app's token stands for, as each request looks it up; consent is given anew."""
        with transaction(read_only=True) as session:
            user = session.scalars(select(User).where(User.name == app.user)).one()
            chosen = select(Authorization).where(
                Authorization.user_id == user.id, Authorization.expires_at > self.now()
            )
            found = list(session.scalars(chosen.order_by(Authorization.id)))
        if user.is_disabled:
            return None
        if app.number >= len(found):
            authorizations.create(
                user, LINUX, scope="config", redirect_uri="", code_challenge="", now=self.now()
            )
            return self._holder(app)
        consent = found[app.number]
        return Holder(user.id, user.name, [], consent.client_id, consent.id, consent.expires_at)

    @rule(who=APPS, openvpn=st.booleans(), received=st.integers(1, 1000), seconds=st.sampled_from([0.5, 6]))
    def come(self, who: tuple[str, int], openvpn: bool, received: int, seconds: float) -> None:
        """What happens most of the time: somebody connects and is there."""
        self.connect(who, openvpn, new_key=False, seen=True, fates=[])
        self.use(who, received)
        self.pass_time(seconds)

    @rule(who=APPS, openvpn=st.booleans(), new_key=st.booleans(), seen=st.booleans(), fates=FATES)
    def connect(
        self, who: tuple[str, int], openvpn: bool, new_key: bool, seen: bool, fates: list[Fate]
    ) -> None:
        app = self.apps[who]
        if seen:
            self.round(0, [])
        with self.template.app.app_context():
            holder = self._holder(app)
        if holder is None:
            return
        if new_key:
            app.key = _key(app.key)
        key = None if openvpn else app.key
        accepts = transports.accepted(transports.OPENVPN_TYPE if openvpn else transports.WIREGUARD_TYPE)
        deaths = [node.deaths for node in self.nodes.values()]

        def work() -> Issued:
            issued = connections.connect(holder, Wanted("legacy", key, accepts), now=self.now())
            app.held.append((issued.connection_id, OPENVPN if openvpn else WIREGUARD, key))
            return issued

        act = self._play(work, fates)
        assert not isinstance(act.error, NoCommonProtocol)
        if act.done and act.result and deaths == [node.deaths for node in self.nodes.values()]:
            self._is_usable(act.result.connection_id, key)

    def _is_usable(self, connection_id: str, key: str | None) -> None:
        """I2: what was handed out works."""
        with transaction(read_only=True) as session:
            row = session.get(Connection, connection_id)
        if row is None:
            return
        node = self.nodes[row.node_number]
        assert connection_id in node.agent.store.entries, "handed out, and the node does not know it"
        if key is not None:
            assert node.interface.peers[key].allowed == {f"{row.ipv4}/32", f"{row.ipv6}/128"}

    @rule(who=APPS, fates=FATES)
    def disconnect(self, who: tuple[str, int], fates: list[Fate]) -> None:
        with self.template.app.app_context():
            holder = self._holder(self.apps[who])
        if holder is not None:
            self._play(lambda: authorizations.disconnect(holder, now=self.now()), fates)

    @rule(who=APPS, lateness=LATENESS)
    def come_and_go(self, who: tuple[str, int], lateness: Fate) -> None:
        """An admission is on its way while its connection ends."""
        self.connect(who, openvpn=False, new_key=False, seen=True, fates=[lateness])
        self.disconnect(who, fates=[])

    @rule(name=st.sampled_from(NAMES), fates=FATES)
    def disable(self, name: str, fates: list[Fate]) -> None:
        self._play(lambda: users.disable(name, actor="test", now=self.now()), fates)

    @rule(name=st.sampled_from(NAMES))
    def enable(self, name: str) -> None:
        self._play(lambda: users.enable(name, actor="test", now=self.now()), [])

    @rule(who=APPS, received=st.integers(1, 1000))
    def use(self, who: tuple[str, int], received: int) -> None:
        """A device sends something over whatever it was given last."""
        app = self.apps[who]
        if not app.held:
            return
        connection_id, protocol, key = app.held[-1]
        for node in self.nodes.values():
            if protocol == WIREGUARD:
                assert key is not None
                node.interface.use(key, node.owner(key), received)
            elif self._node_of(connection_id) == node.number:
                for process in node.openvpn.values():
                    process.arrive(connection_id, "legacy")
                    process.use(connection_id, received)
        self.pass_time(0.1)

    def _node_of(self, connection_id: str) -> int | None:
        with transaction(read_only=True) as session:
            row = session.get(Connection, connection_id)
        if row is not None:
            self.served[connection_id] = row.node_number
        return self.served.get(connection_id)

    # --- what machines do

    @rule(seconds=st.sampled_from([0.5, 2, 6, 31, 100, 200, 500]))
    def pass_time(self, seconds: float) -> None:
        began = self.time.elapsed
        latest = began + seconds
        for node in self.nodes.values():
            self.time.elapsed = began
            node.live_until(began + seconds)
            latest = max(latest, self.time.elapsed)
        self.time.elapsed = latest

    @rule(seconds=st.sampled_from([5, 30, 180, 600]), number=CONTROLLERS)
    def live(self, seconds: int, number: int) -> None:
        """Time passes, and one of the controllers does its work."""
        turns = min(6, seconds // 5)
        for _ in range(turns):
            self.pass_time(seconds / turns)
            self.round(number, [])
            self.end_expired([])

    @rule(number=CONTROLLERS, fates=FATES)
    def round(self, number: int, fates: list[Fate]) -> None:
        """A controller asks every node, writes down what it saw, and does what follows."""
        watch = self.watches[number]
        with self.network.owned_by(watch):
            self._play(watch.submit, fates)
            batch = []
            while not watch.seen.empty():
                batch.append(watch.seen.get())
            if batch and watch is self.watches[number]:
                self._play(lambda: watch.collect(batch), fates[2:])

    @rule(fates=FATES)
    def end_expired(self, fates: list[Fate]) -> None:
        self._play(lambda: housekeeping.expire(self.wire, self.now()), fates)

    @rule(number=NODES, lateness=LATENESS)
    def reconcile(self, number: int, lateness: Fate) -> None:
        """R95: whoever reads a whole set and sends it may be slow."""
        arguments = Namespace(name=self.nodes[number].name, confirm=False, json=False)
        self._play(lambda: node_command.run_reconcile(arguments, self.settings), [Fate.DELIVERED, lateness])

    def _come(self, who: tuple[str, int]) -> int | None:
        """Connect over WireGuard and use it; returns the number of the node, None when nobody was let in."""
        held = self.apps[who].held
        before = len(held)
        self.come(who, openvpn=False, received=10, seconds=0.5)
        return self._node_of(held[-1][0]) if len(held) > before else None

    @contextlib.contextmanager
    def _late_set(self, number: int, lateness: Fate) -> Iterator[None]:
        """A whole set is read before what happens in this context, and arrives after it."""
        late = self.network.late
        before = len(late)
        self.reconcile(number, lateness)
        sent = late[before:]
        del late[before:]
        yield
        # What came meanwhile has to be known before it can be missed.
        self.always()
        for call in sent:
            self.network.arrive(call)

    @rule(who=APPS, lateness=st.sampled_from([Fate.LATE, Fate.COPY_LATE]), newer=st.booleans())
    def change_while_a_set_is_late(self, who: tuple[str, int], lateness: Fate, newer: bool) -> None:
        """R95: one goes and others come meanwhile, perhaps with a newer set that the old one comes after."""
        number = self._come(who)
        if number is None:
            return
        with self._late_set(number, lateness):
            self.disconnect(who, fates=[])
            if newer:
                self.reconcile(number, Fate.DELIVERED)
            # Without a look at the nodes before, which may bring a newer set.
            for name in NAMES:
                self.connect((name, who[1]), openvpn=False, new_key=False, seen=False, fates=[])

    @rule(who=APPS, other=APPS, openvpn=st.booleans(), number=CONTROLLERS)
    def read_while_another_reads(
        self, who: tuple[str, int], other: tuple[str, int], openvpn: bool, number: int
    ) -> None:
        """R97: a controller stops with a part of a journal in its hands, another one reads that and more."""
        self.come(who, openvpn, received=10, seconds=6)
        parked = list(self.network.parked)
        # The first two ask how the nodes are.
        self.round(number, [Fate.DELIVERED, Fate.DELIVERED, Fate.PAUSED_AFTER])
        slow = [act for act in self.network.parked if act not in parked]
        self.come(other, openvpn, received=10, seconds=6)
        self.round(1 - number, [])
        for act in slow:
            self.network.resume(act)
        self._replace_the_dead()

    @rule(number=CONTROLLERS, dies=st.booleans())
    def lose_the_lead(self, number: int, dies: bool) -> None:
        watch = self.watches[number]
        if dies:
            self.network.kill(watch)
            self.watches[number] = self._watch()
        else:
            watch.forget()

    @precondition(lambda self: self.network.parked)
    @rule(which=st.integers(0, 20), fates=FATES)
    def wake_up(self, which: int, fates: list[Fate]) -> None:
        """What was paused goes on, perhaps long after."""
        parked = self.network.parked
        self.network.resume(parked[which % len(parked)], fates)
        self._replace_the_dead()

    @precondition(lambda self: self.network.late)
    @rule(which=st.integers(0, 20), lost=st.booleans())
    def arrive_late(self, which: int, lost: bool) -> None:
        call = self.network.late.pop(which % len(self.network.late))
        if not lost:
            self.network.arrive(call)

    @rule(number=NODES, how=st.sampled_from(["start", "stop", "crash", "reboot"]))
    def agent(self, number: int, how: str) -> None:
        node = self.nodes[number]
        if how == "start" and not node.is_up:
            node.start()
        elif how == "stop":
            node.stop()
        elif how != "start":
            node.crash()
        if how == "reboot":
            node.lose_interface()
            for process in node.openvpn.values():
                process.restart()

    @rule(
        number=NODES,
        how=st.sampled_from(["before", "torn", "after"]),
        file=st.sampled_from(["journal", "wanted"]),
        skip=st.integers(0, 2),
    )
    def agent_will_die(self, number: int, how: str, file: str, skip: int) -> None:
        """At one of its next writes, and comes back at once if that is soon."""
        node = self.nodes[number]
        if node.is_up:
            node.plan_crash(how, file, skip)
            self.pass_time(6)
            if not node.is_up:
                node.start()

    @rule(number=NODES, what=st.sampled_from(["interface", "openvpn", "clients"]))
    def lose(self, number: int, what: str) -> None:
        node = self.nodes[number]
        if what == "interface":
            node.lose_interface()
        for process in node.openvpn.values():
            if what == "openvpn":
                process.restart()
            elif what == "clients":
                for client in list(process.clients.values()):
                    process.leave(client)

    @rule(number=NODES, full=st.booleans())
    def fill_disk(self, number: int, full: bool) -> None:
        node = self.nodes[number]
        if node.disk_is_full and not full:
            node.empty_disk()
            # Until it is tried again.
            self.pass_time(7)
        elif full:
            node.fill_disk()

    @rule(number=NODES, on=st.booleans(), fates=FATES)
    def maintenance(self, number: int, on: bool, fates: list[Fate]) -> None:
        state, name = "on" if on else "off", self.nodes[number].name
        arguments = Namespace(name=name, state=state, notice=None, json=False)
        self._play(lambda: node_command.run_maintenance(arguments, self.settings), fates)

    # --- a backup

    @rule()
    def back_up(self) -> None:
        self.copy = self.directory / "copy.sqlite"
        self.copy.unlink(missing_ok=True)
        source, target = sqlite3.connect(self.directory / "portal.sqlite"), sqlite3.connect(self.copy)
        with contextlib.closing(source), contextlib.closing(target):
            source.backup(target)

    @precondition(lambda self: self.copy is not None)
    @rule(really=RARELY)
    def restore(self, really: bool) -> None:
        """R59: the portals stop, the database goes back, a new epoch begins. Rarer than the rest."""
        if self.copy is None or not really:
            return
        self.network.kill(None)
        self._open_database(self.copy)
        self.watches = [self._watch(), self._watch()]
        deployment_command.run_new_epoch(Namespace(), self.settings)
        for node in self.nodes.values():
            node.forget_sessions()
            for truth in node.truths:
                truth.forgotten = True
        for known in (*self.gone.values(), *self.cut.values(), *self.had.values()):
            known.clear()
        self.copy, self.was_restored = None, True

    @rule(who=APPS, lateness=st.sampled_from([Fate.LATE, Fate.COPY_LATE]), really=RARELY)
    def restore_while_a_set_is_late(self, who: tuple[str, int], lateness: Fate, really: bool) -> None:
        """R59, R95: what the epoch before says counts no more."""
        number = self._come(who) if really else None
        if number is None:
            return
        self.back_up()
        with self._late_set(number, lateness):
            self.restore(really=True)
            self.round(0, [])
            self._come(who)

    # --- what must hold at any time

    def _answered(self, call: Call, answer: Any) -> None:
        node = self.nodes[call.node]
        if call.method == "DELETE" and answer.status == 200 and not node.disk_is_full:
            self.cut[call.node].add(call.path.rpartition("/")[2])

    @invariant()
    def always(self) -> None:
        self.no_two_connections_share_anything()
        self.late_news_undoes_nothing()
        self.no_address_had_two_users_at_once()

    def no_two_connections_share_anything(self) -> None:
        """I1, in the agents; the database has constraints."""
        for node in self.nodes.values():
            entries = node.agent.store.entries.values() if node.is_up else ()
            owned = [v for c in entries for v in (c.public_key, c.ipv4, c.ipv6) if v is not None]
            assert len(set(owned)) == len(owned)

    def late_news_undoes_nothing(self) -> None:
        """R95: what a node was told to cut stays cut, and what it was told to let in stays in."""
        now = self.time.time()
        for number, node in self.nodes.items():
            if node.deaths != self.had[number].get("", 0):
                # What was not saved may be back.
                self.had[number] = {"": node.deaths}
                self.gone[number] = set(self.cut[number])
            if not node.is_up:
                continue
            entries = node.agent.store.entries
            had = {i: at for i, at in self.had[number].items() if i}
            assert not (self.gone[number] | self.cut[number]) & entries.keys(), "revived"
            vanished = {i for i, expires_at in had.items() if i not in entries and expires_at > now + 3}
            if vanished:
                with transaction(read_only=True) as session:
                    alive = set(session.scalars(select(Connection.id).where(Connection.id.in_(vanished))))
                assert not alive, "a newer admission was undone"
            self.gone[number] |= vanished
            self.had[number] = {"": node.deaths} | {i: c.expires_at for i, c in entries.items()}

    def no_address_had_two_users_at_once(self) -> None:
        """I7."""
        with transaction(read_only=True) as session:
            uses = session.execute(
                select(AddressUse.node_number, AddressUse.ipv4, AddressUse.started_at, AddressUse.ended_at)
                .where(AddressUse.ipv4.is_not(None))
                .order_by(AddressUse.node_number, AddressUse.ipv4, AddressUse.started_at, AddressUse.id)
            ).all()
        for one, other in pairwise(uses):
            if one[:2] == other[:2]:
                assert one.ended_at is not None, f"two users of {one.ipv4}"
                assert one.ended_at <= other.started_at, f"two users of {one.ipv4}"

    # --- what must hold after quiet

    @rule()
    def quiet(self) -> None:
        """No more faults: what was late or paused arrives, and the controllers do what they always do."""
        for node in self.nodes.values():
            node.crash_plan = None
            node.empty_disk()
            if not node.is_up:
                node.start()
        while self.network.parked:
            self.network.resume(self.network.parked[0])
        self.always()
        while self.network.late:
            self.network.arrive(self.network.late.pop())
            self.always()
        for turn in range(14):
            self.round(turn % 2, [])
            self.end_expired([])
            self.pass_time(6)
            if turn == 7 and self.was_restored:
                self._confirm()
        # What ended in the last seconds.
        self.round(0, [])
        for node in self.nodes.values():
            self._has_what_it_should(node)
            self._is_known(node)
            self._told_every_session(node)
        self._missed_nothing()

    def _confirm(self) -> None:
        """After a restore a node may hold back that most of what it has is to go: the operator says yes."""
        for node in self.nodes.values():
            if "would remove" in (self._status(node).error or ""):
                arguments = Namespace(name=node.name, confirm=True, json=False)
                self._play(lambda a=arguments: node_command.run_reconcile(a, self.settings), [])

    def _status(self, node: Node) -> NodeStatus:
        with transaction(read_only=True) as session:
            return session.get_one(NodeStatus, node.number)

    def _has_what_it_should(self, node: Node) -> None:
        """I4; what expires in these seconds may be there or not."""
        soon = self.time.time() + 3
        with transaction(read_only=True) as session:
            rows = nodes.wanted_set(session, node.number).connections
        wanted = {c.connection_id: c for c in rows if c.expires_at > soon}
        entries = {i: c for i, c in node.agent.store.entries.items() if c.expires_at > soon}
        assert entries == wanted
        going = {c.public_key for c in rows if c.expires_at <= soon}
        peers = {k: peer.allowed for k, peer in node.interface.peers.items() if k not in going}
        assert peers == {
            c.public_key: {f"{c.ipv4}/32", f"{c.ipv6}/128"} for c in wanted.values() if c.public_key
        }
        clients = {c.common_name for o in node.openvpn.values() for c in o.clients.values()}
        assert clients <= {c.connection_id for c in rows}

    def _is_known(self, node: Node) -> None:
        """The node is used again, and nothing of its journal waits."""
        status = self._status(node)
        assert (status.error, status.failing_since) == (None, None)
        assert status.maintenance_mode == node.agent.store.maintenance
        assert status.journal_id == node.agent.journal.journal_id
        assert status.journal_sequence == node.agent.journal.head

    def _told_every_session(self, node: Node) -> None:
        """R97."""
        chosen = select(VpnSession).where(VpnSession.node_number == node.number)
        with transaction(read_only=True) as session:
            rows = list(session.scalars(chosen.order_by(VpnSession.started_at)))
        lost = node.sessions_on_disk() - {row.session_id for row in rows}
        assert not lost, "sessions that were on the disk are not in the database"
        told: dict[int, list[VpnSession]] = {}
        for row in rows:
            truth = _truth_of(row, node.truths)
            assert truth is not None, f"a session that never was: {_words(row)}"
            told.setdefault(id(truth), []).append(row)
        for truth in node.truths:
            if not truth.forgotten:
                _compare(truth, told.get(id(truth), []), self.time.time())
        _count(rows, node.truths)

    def _missed_nothing(self) -> None:
        """Nobody is told that entries of a journal are missing; those that an old database forgot are."""
        with transaction(read_only=True) as session:
            said = list(session.scalars(select(AuditEvent.action).where(AuditEvent.action.like("journal.%"))))
        assert self.was_restored or not said, said


def _words(row: VpnSession) -> str:
    end = row.ended_at and format(row.ended_at, "%H:%M:%S")
    return f"{row.protocol} {row.connection_id[:6]} {row.started_at:%H:%M:%S} to {end} {row.received_bytes}"


def _truth_of(row: VpnSession, truths: list[Truth]) -> Truth | None:
    started_at = row.started_at.timestamp()
    for truth in truths:
        if truth.connection_id == row.connection_id and truth.start <= started_at <= truth.last:
            return truth
    return None


def _compare(truth: Truth, rows: list[VpnSession], now: float) -> None:
    said = f"{truth} against {[_words(row) for row in rows]}"
    assert rows or truth.outages, f"lost: {said}"
    # Of WireGuard an agent that was away sees the last handshake: one session may look like several.
    assert len(rows) <= 1 + (truth.outages if truth.protocol == WIREGUARD else 0), f"doubled: {said}"
    over_at = truth.over_at(now)
    if not rows or (over_at is not None and over_at > now - 12):
        return
    for one, other in pairwise(rows):
        assert one.ended_at is not None, f"never ended: {said}"
        assert one.ended_at <= other.started_at, f"doubled: {said}"
    last = rows[-1]
    assert (last.ended_at is None) == (over_at is None) or truth.is_in_doubt(now), f"wrong end: {said}"
    if over_at is None or last.ended_at is None or truth.outages:
        return
    assert abs(last.ended_at.timestamp() - over_at) <= 6, f"wrong end: {said}"
    assert sum(row.received_bytes or 0 for row in rows) <= truth.received, f"too many bytes: {said}"


def _count(rows: list[VpnSession], truths: list[Truth]) -> None:
    """Of a connection no byte is told twice; which of two sessions had it an agent that was away cannot
    know.
    """
    for connection_id in {row.connection_id for row in rows}:
        told = sum(row.received_bytes or 0 for row in rows if row.connection_id == connection_id)
        true = sum(truth.received for truth in truths if truth.connection_id == connection_id)
        assert told <= true, f"{connection_id}: {told} bytes of {true}"


def _key(seed: str) -> str:
    return base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()


def _memory() -> str | None:
    """Where files need no disk: what waits for it would take most of the time."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def database() -> str:
    return "sqlite"


@pytest.fixture
def settings_changes() -> dict[str, Any]:
    return {"session_expiry_seconds": LIFE_SECONDS, "max_app_connections": 2}


@pytest.fixture
def template(app: Flask, settings: Settings, tmp_path: Path) -> Template:
    entries = {
        f"node{number}": {
            "number": number,
            "hostname": f"node{number}.example.org",
            "agent_address": f"192.0.2.{number + 10}",
        }
        for number in (0, 1)
    }
    found = make_plan(PROFILES, entries, {"max_nodes": 2}).to_dict()
    now = datetime.fromtimestamp(BEGIN, UTC)
    plan.apply(plan_file.parse(found), now=now)
    with transaction() as session:
        session.add_all(User(name=name, permissions=[], created_at=now) for name in NAMES)
    db.engine().dispose()
    shutil.copyfile(tmp_path / "portal.sqlite", tmp_path / "template.sqlite")
    return Template(app, tmp_path / "template.sqlite", found)


@pytest.fixture
def silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.long
def test_after_quiet_each_node_has_what_it_should_and_each_session_is_told_once(
    template: Template, silent: None
) -> None:
    """I1, I2, I4, I7, R54, R56, R59, R72, R95, R97."""
    History.template = template
    run_state_machine_as_test(
        History,
        settings=hypothesis.settings(
            max_examples=HISTORIES or 50,
            stateful_step_count=STEPS,
            derandomize=not HISTORIES,
            database=None,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
