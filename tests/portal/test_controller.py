"""The controller against real agents: what it sees, repairs and refuses to believe."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import delete, insert, select, update

from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.controller import loop
from portal_app.controller.housekeeping import Job
from portal_app.controller.loop import Controller
from portal_app.controller.observation import Timing
from portal_app.controller.watch import FOLLOWING, Watch
from portal_app.db import transaction
from portal_app.errors import NodeUnreachable
from portal_app.models import AuditEvent, Connection, Deployment, Node, NodeStatus, User
from portal_app.services import connections, identity, maintenance, nodes
from portal_app.settings import Settings
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, add_user
from tests.portal.certificates import Deployment as Certificates
from tests.portal.conftest import seen_up
from tests.portal.real_agent import loopback_address

#: Whatever is the same on both databases is looked at on one.
on_sqlite = pytest.mark.parametrize("database", ["sqlite"])
on_postgresql = pytest.mark.parametrize("database", ["postgresql"])

QUICK = Timing(poll=0.2, moved=0.5, full=5.0)


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "did not come true in time"
        time.sleep(0.05)


@contextmanager
def running(settings: Settings, agents: Agents, timing: Timing = QUICK) -> Iterator[Controller]:
    controller = Controller(settings, agents=agents, timing=timing)
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        yield controller
    finally:
        controller.stop()
        thread.join(20)
        assert not thread.is_alive()
        # It leaves behind who still waits for a silent node, with a connection that is open.
        for left in threading.enumerate():
            if left.name.startswith(("living-", "failing-", "following-", "jobs-")):
                left.join(20)


def status(number: int = 0) -> NodeStatus:
    with transaction(read_only=True) as session:
        return session.get_one(NodeStatus, number)


def is_up(number: int = 0) -> bool:
    found = status(number)
    return found.answered_at is not None and found.failing_since is None and found.error is None


def ids() -> set[str]:
    with transaction(read_only=True) as session:
        return set(session.scalars(select(Connection.id)))


def connect(user: VpnApp) -> str:
    """Connect over OpenVPN and return the connection's id."""
    before = ids()
    response = user.connect("legacy")
    assert response.status_code == 200, response.text
    (new,) = ids() - before
    return new


def lost(*_arguments: Any, **_options: Any) -> None:
    """A call that no node ever sees, though its caller believes otherwise."""


def end(criterion: Any) -> list[connections.Ended]:
    with transaction() as session:
        return connections.end(session, criterion, reason="test", now=utc_now())


def make_connections(user: User, count: int, number: int = 0) -> set[str]:
    """Commit connections of the portal's pages without telling the node, as a portal that died would."""
    made = {uuid.uuid4().hex for _ in range(count)}
    now = utc_now()
    with transaction() as session:
        for connection_id in sorted(made):
            session.add(
                Connection(
                    id=connection_id,
                    user_id=user.id,
                    node_number=number,
                    profile_id="legacy",
                    protocol="openvpn",
                    display_name="test",
                    created_at=now,
                    expires_at=now + timedelta(days=1),
                    generation=nodes.next_generation(session, number),
                )
            )
    return made


def count_calls(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by a node's number each time the controller asks it how it is."""
    asked: list[int] = []
    answer = agents.info

    def info(node: Any, **options: Any) -> Any:
        asked.append(node.number)
        return answer(node, **options)

    monkeypatch.setattr(agents, "info", info)
    return asked


def generation(number: int = 0) -> int:
    with transaction(read_only=True) as session:
        return session.get_one(Node, number).generation


def row(connection_id: str) -> dict[str, Any]:
    with transaction(read_only=True) as session:
        found = session.get_one(Connection, connection_id)
        return {column.name: getattr(found, column.name) for column in Connection.__table__.columns}


def actions() -> list[str]:
    with transaction(read_only=True) as session:
        return list(session.scalars(select(AuditEvent.action)))


def test_node_that_answers_is_up_and_usable(make_agents, agents, settings, make_app_user):
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        connection = connect(make_app_user())

    assert agent.connections(agents) == {connection}
    assert status().instance_id == agent.info(agents).instance_id


@on_sqlite
def test_certificate_of_an_agent_is_shown_and_its_end_announced(
    make_agents, agents, settings, deployment, run, caplog, monkeypatch
):
    """R68. When it is announced: ``test_check_says_long_before_that_certificates_end``."""
    make_agents()
    serial = x509.load_pem_x509_certificate(deployment.node(0).certificate.read_bytes()).serial_number
    with running(settings, agents):
        eventually(is_up)
        assert "certificate_ends" not in caplog.text
        monkeypatch.setattr("portal_app.certificates.LEAST_LIFE", 1.0)
        eventually(lambda: "certificate_ends" in caplog.text)

    (node,) = json.loads(run("node", "list", "--json").out)
    assert node["certificate_serial"] == f"{serial:x}"
    (remark,) = [text for text in node["remarks"] if text.startswith("certificate ")]
    assert remark.endswith("; run site.yml, which renews it")
    assert f"serial {serial:x}, until 20" in run("node", "show", "node0").out


@on_sqlite
def test_end_of_what_a_portal_itself_shows_is_announced_each_day(
    agents, settings, deployment, caplog, monkeypatch
):
    """R67, R68: whether it leads or not."""
    web = x509.load_pem_x509_certificate(deployment.node(0).certificate.read_bytes())
    monkeypatch.setattr("portal_app.services.peers.web_certificate", lambda _name: web)
    monkeypatch.setattr("portal_app.certificates.LEAST_LIFE", 1.0)

    def announced() -> list[str]:
        return [said for said in caplog.messages if "event=certificate_ends" in said]

    with running(settings, agents):
        eventually(lambda: len(announced()) == 2)
        nodes, users = announced()
        assert 'certificate="This portal, shown to nodes"' in nodes
        assert "Run site.yml, which renews it." in nodes
        assert 'certificate="This portal, shown to users"' in users
        assert f"ends on {web.not_valid_after_utc:%Y-%m-%d}. Look at its renewal on this host" in users
        monkeypatch.setattr("portal_app.controller.loop.CERTIFICATES_SECONDS", 0.1)
    with running(settings, agents):
        eventually(lambda: len(announced()) > 4)


@on_sqlite
def test_node_that_does_not_answer_leaves_the_selection_and_says_why(make_agents, agents, settings):
    """R42, R44."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        agent.stop()
        eventually(lambda: status().failing_since is not None)
        assert "node0" in str(status().error)
        agent.start(agents)
        eventually(is_up)
        assert status().failing_since is None


def test_lost_admission_and_lost_cut_are_repaired(make_agents, agents, settings, make_app_user, monkeypatch):
    """I4, R54: a portal that dies between commit and call."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        first, second = connect(make_app_user("alice")), connect(make_app_user("bob"))
        with monkeypatch.context() as patch:
            patch.setattr(agents, "admit", lost)
            third = connect(make_app_user("carol"))
        end(Connection.id == first)  # and nobody tells the node
        eventually(lambda: agent.connections(agents) == {second, third})
        eventually(lambda: status().reconciled_generation > 0)


@on_postgresql
def test_loss_is_repaired_though_later_calls_went_through(
    make_agents, agents, settings, make_app_user, monkeypatch
):
    """I4: the highest generation applied does not prove that every one was."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        users = [make_app_user(name) for name in ("alice", "bob")]
        with monkeypatch.context() as patch:
            patch.setattr(agents, "admit", lost)
            unheard = connect(users[0])
        heard = connect(users[1])
        eventually(lambda: agent.connections(agents) == {unheard, heard})


def test_node_that_was_away_hears_of_the_cut_when_it_is_back(make_agents, agents, settings, make_app_user):
    """I3: at the latest 30 s after the node is back; here the first answer brings it."""
    (agent,) = make_agents()
    with running(settings, agents, Timing(poll=0.2, moved=3600)):
        eventually(is_up)
        gone, kept = connect(make_app_user("alice")), connect(make_app_user("bob"))
        agent.stop()
        eventually(lambda: status().failing_since is not None)
        end(Connection.id == gone)
        agent.start(agents)
        eventually(lambda: agent.connections(agents) == {kept})


def test_set_read_long_ago_neither_revives_nor_removes(make_agents, agents, settings, make_app_user):
    """R95: a leader that was paused while others went on."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        cut, kept = connect(make_app_user("alice")), connect(make_app_user("bob"))
        eventually(lambda: status().reconciled_generation == generation())
    with transaction(read_only=True) as session:
        old = nodes.wanted_set(session, 0)
    connections.tell(end(Connection.id == cut), agents=agents)
    seen_up(0)
    newer = connect(make_app_user("carol"))

    agents.put_set(agent.node, old)

    assert agent.connections(agents) == {kept, newer}


@on_sqlite
def test_leader_that_was_paused_calls_no_node_down(make_agents, agents, settings, monkeypatch):
    """R55: its calls ran into their deadlines while it slept; the new leader sees the nodes up."""
    make_agents()
    with running(settings, agents):
        eventually(is_up)
    before = status().answered_at
    woken = threading.Event()

    class Lost:
        def hold(self) -> bool:
            return not woken.is_set()

        def release(self) -> None:
            """Nothing is held."""

    def info(node: Any, **_options: Any) -> None:
        woken.set()
        raise NodeUnreachable("node0: no answer in time")

    monkeypatch.setattr(agents, "info", info)
    controller = Controller(settings, agents=agents, lock=Lost(), timing=QUICK)
    thread = threading.Thread(target=controller.run)
    thread.start()
    assert woken.wait(20)
    eventually(lambda: not controller.leads)
    controller.stop()
    thread.join(20)

    assert is_up()
    assert status().answered_at == before


def test_empty_database_does_not_clear_a_node(make_agents, agents, settings):
    """R58: a portal with another deployment's id, and no connections, holds the node's real certificates."""
    (agent,) = make_agents()
    made = make_connections(add_user("alice"), 5)
    with running(settings, agents):
        eventually(lambda: agent.connections(agents) == made)
    with transaction() as session:
        session.execute(update(Deployment).values(deployment_id="f" * 32))
        session.execute(delete(Connection))
        session.execute(update(Node).values(generation=1000))
    with running(settings, agents):
        eventually(lambda: str(status().error).startswith("held"))
        assert status().failing_since is not None
        assert agent.connections(agents) == made
        assert "node.held" in actions()


@on_postgresql
def test_set_that_lost_most_connections_needs_confirmation(make_agents, agents, settings, run_command):
    """R58: the same deployment, but most rows are gone."""
    (agent,) = make_agents()
    made = make_connections(add_user("alice"), 6)
    with running(settings, agents):
        eventually(lambda: agent.connections(agents) == made)
        with transaction() as session:
            session.execute(delete(Connection))
            nodes.next_generation(session, 0)
        eventually(lambda: "would remove" in str(status().error))
        assert agent.connections(agents) == made

        done = run_command("node", "reconcile", "node0", "--confirm")

        assert done.out == "node0: 0 added, 6 removed\n"
        eventually(is_up)
    assert agent.connections(agents) == set()


@on_sqlite
def test_mass_removal_that_was_meant_needs_no_confirmation(make_agents, agents, settings):
    """I3, R58: while the node was away most of its users left, and each end is on record."""
    (agent,) = make_agents()
    made = make_connections(add_user("alice"), 6)
    with running(settings, agents):
        eventually(lambda: agent.connections(agents) == made)
        agent.stop()
        end(Connection.id.in_(sorted(made)[1:]))
        agent.start(agents)
        eventually(lambda: agent.connections(agents) == {min(made)})
        eventually(is_up)


def test_database_of_yesterday_is_the_truth_once(make_agents, agents, settings, make_app_user):
    """R59: restored without a new epoch, so that the node's counter is ahead of ours."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
        users = [make_app_user(name) for name in ("alice", "bob", "carol")]
        old = connect(users[0])
        yesterday = row(old)
        kept, newer = connect(users[1]), connect(users[2])
        connections.tell(end(Connection.id == old), agents=agents)
        eventually(lambda: agent.connections(agents) == {kept, newer})
    with transaction() as session:
        session.execute(delete(Connection).where(Connection.id == newer))
        session.execute(insert(Connection).values(**yesterday))
        session.execute(update(Node).values(generation=1))
    with running(settings, agents):
        eventually(lambda: agent.connections(agents) == {kept, old})
        assert generation() > 1
        eventually(is_up)


@on_postgresql
def test_new_epoch_makes_a_restored_database_the_truth(make_agents, agents, settings, run_command):
    """R59: what restore does."""
    (agent,) = make_agents()
    made = make_connections(add_user("alice"), 2)
    with running(settings, agents):
        eventually(lambda: agent.connections(agents) == made)
        (gone, _kept) = sorted(made)
        with transaction() as session:
            session.execute(delete(Connection).where(Connection.id == gone))
            session.execute(update(Node).values(generation=1))
        assert run_command("deployment", "new-epoch").out.startswith("epoch 1 → 2")
        eventually(lambda: agent.connections(agents) == made - {gone})
        eventually(lambda: agent.info(agents).epoch == 2)
        eventually(is_up)


@on_sqlite
def test_older_epoch_is_reported_with_the_way_out(make_agents, agents, settings, run_command):
    """R59: the restored database does not know the epoch of the last restore."""
    (agent,) = make_agents()
    with transaction() as session:
        session.execute(update(Deployment).values(epoch=5))
    with running(settings, agents):
        eventually(lambda: agent.info(agents).epoch == 5)
    with transaction() as session:
        session.execute(update(Deployment).values(epoch=2))
    with running(settings, agents):
        eventually(lambda: status().error is not None)
        assert run_command("deployment", "new-epoch").out.startswith("epoch 2 → 6")
        eventually(is_up)
        eventually(lambda: agent.info(agents).epoch == 6)


def test_slow_job_holds_up_no_other(app, agents, settings, monkeypatch):
    """R19: no interval is missed while another job waits for nodes."""
    at_work, go_on, began = threading.Event(), threading.Event(), []

    def wait(_now: Any) -> None:
        at_work.set()
        assert go_on.wait(30)

    interval = timedelta(seconds=1)
    found = [
        Job("app_gone", interval, wait),
        Job("expire", interval, lambda _now: began.append(time.monotonic())),
    ]
    monkeypatch.setattr(loop, "jobs", lambda *_arguments: found)
    with running(settings, agents):
        assert at_work.wait(15)
        begin = time.monotonic()
        try:
            eventually(lambda: len([at for at in began if at > begin]) >= 4)
        finally:
            go_on.set()

    assert max(b - a for a, b in pairwise([begin, *(at for at in began if at > begin)])) <= 2


@on_postgresql
def test_other_machine_at_a_nodes_address_is_not_used(
    make_agents, agents, settings, run_command, monkeypatch
):
    """R60: a reinstalled or cloned node has the certificate, but is not the one that was known."""
    (agent,) = make_agents()
    with running(settings, agents):
        eventually(is_up)
    agent.stop()
    agent.wipe()
    agent.start(agents)
    made = make_connections(add_user("alice"), 2)
    with running(settings, agents):
        eventually(lambda: "another machine answers" in str(status().error))
        first = status().failing_since
        rounds = count_calls(agents, monkeypatch)
        eventually(lambda: len(rounds) > 5)
        assert status().failing_since == first
        assert agent.connections(agents) == set()
        assert "node.foreign" in actions()
        assert run_command("node", "reconcile", "node0").error.startswith(
            "vpn-portal: node0: another machine"
        )

        run_command("node", "reconcile", "node0", "--confirm")

        eventually(is_up)
    assert agent.connections(agents) == made


def test_clone_is_not_used_and_its_peers_are_left_alone(
    make_agents, agents, settings, run_command, make_app_user, monkeypatch
):
    """R60: whoever leads knows what the one before knew, and a connect needs no leader to notice."""
    (agent,) = make_agents()
    user = make_app_user()
    with running(settings, agents):
        eventually(is_up)
        had = {connect(user)}
    agent.stop()
    agent.start(agents, boot_id="c" * 32)

    assert make_app_user("bob").connect("legacy").status_code == 503
    with running(settings, agents):
        eventually(lambda: "two machines answer" in str(status().error), 60)
        assert make_app_user("carol").connect("legacy").status_code == 503
        assert "node.foreign" in actions()
        assert agent.connections(agents) == had
    agent.stop()
    agent.start(agents)
    with running(settings, agents):
        rounds = count_calls(agents, monkeypatch)
        eventually(lambda: len(rounds) > 5)
        assert "two machines answer" in str(status().error)
        assert run_command("node", "reconcile", "node0").error.startswith("vpn-portal: node0: two machines")

        run_command("node", "reconcile", "node0", "--confirm")

        eventually(is_up)
        assert user.connect("legacy").status_code == 200


@on_sqlite
def test_rebooted_node_takes_connections_before_the_controller_has_heard_it(
    make_agents, agents, settings, make_app_user
):
    """R60, R45: its boot is another one, and began after its last answer."""
    (agent,) = make_agents()
    user = make_app_user()
    with running(settings, agents):
        eventually(is_up)
    agent.stop()
    with transaction() as session:
        long_ago = utc_now() - timedelta(days=9999)
        session.execute(update(NodeStatus).values(answered_at=long_ago))
    agent.start(agents, boot_id="c" * 32)

    assert user.connect("legacy").status_code == 200


@on_sqlite
def test_maintenance_keeps_new_connections_away(make_agents, agents, settings, run_command, make_app_user):
    """R63: none from the acknowledgement on."""
    (agent,) = make_agents()
    user = make_app_user()
    with running(settings, agents):
        eventually(is_up)
        assert run_command("node", "maintenance", "node0", "on").out == "node0: maintenance on\n"
        assert user.connect("legacy").status_code == 503
        eventually(lambda: agent.info(agents).maintenance_mode)
        eventually(lambda: "maintenance" in run_command("node", "list").out)
        run_command("node", "maintenance", "node0", "off")
        connect(user)


@on_sqlite
def test_answer_from_before_does_not_undo_maintenance(make_agents, agents, monkeypatch):
    """R63: the node answered, then an operator set maintenance, then the answer was written down."""
    make_agents()
    answer = agents.info

    def info(node: Any, **options: Any) -> Any:
        given = answer(node, **options)
        with transaction() as session:
            session.execute(update(NodeStatus).values(maintenance_mode=True))
        return given

    monkeypatch.setattr(agents, "info", info)
    watch = Watch(agents, log_origins=False, clock=utc_now, timing=QUICK)
    watch.submit()
    seen = watch.seen.get(timeout=20)
    assert seen is not None
    assert not seen.info.maintenance_mode

    watch.collect([seen])

    assert status().maintenance_mode
    watch.stop()


@pytest.mark.parametrize("command", ["maintenance", "enroll", "suspect"])
def test_command_between_reading_and_writing_is_not_overwritten(make_agents, agents, monkeypatch, command):
    """R60, R63: the controller had judged the node, and had not yet written what it saw."""
    (agent,) = make_agents()
    commands: dict[str, Callable[[], Any]] = {
        "maintenance": lambda: maintenance.switch(agents, agent.node, on=True, actor="cli", now=utc_now()),
        "enroll": lambda: identity.enroll({"node0": "f" * 32}, utc_now()),
        "suspect": lambda: nodes.mark_suspect(0, utc_now()),
    }
    other = threading.Thread(target=commands[command])
    judge = Watch._judge

    def slowly(*arguments: Any) -> Any:
        judged = judge(*arguments)
        other.start()
        other.join(1)  # it ends now if nothing holds it up
        return judged

    monkeypatch.setattr(Watch, "_judge", slowly)
    watch = Watch(agents, log_origins=False, clock=utc_now, timing=QUICK)
    watch.submit()

    watch.collect([watch.seen.get(timeout=20)])

    other.join(20)
    found = status()
    written = {
        "maintenance": found.maintenance_mode,
        "enroll": found.instance_id == "f" * 32,
        "suspect": found.suspect_until is not None,
    }
    assert written[command]
    assert found.answered_at is not None
    watch.stop()


@pytest.fixture
def others(agent_servers: list[AgentServer], deployment: Certificates) -> Callable[[int], list[AgentServer]]:
    """Put so many more nodes beside node 0 and start what answers for them."""

    def make(count: int) -> list[AgentServer]:
        made = [AgentServer(deployment, number, loopback_address()) for number in range(1, count + 1)]
        agent_servers.extend(made)
        with transaction() as session:
            for server in made:
                session.add(
                    Node(number=server.number, name=f"other{server.number}", hostname="s.example.org",
                         agent_address=server.address)
                )  # fmt: skip
                session.flush()
                session.add(NodeStatus(node_number=server.number))
        return made

    return make


@on_postgresql
def test_silent_nodes_do_not_delay_the_others(make_agents, agents, settings, others, monkeypatch):
    """R98: while a silent node is asked once, the living one is asked again and again."""
    (agent,) = make_agents()
    asked = count_calls(agents, monkeypatch)
    silent = others(15)
    for server in silent:
        server.mode = "silent"
    with running(settings, agents):
        eventually(lambda: all(status(s.number).failing_since for s in silent))
        asked.clear()
        eventually(lambda: asked.count(1) == 3, seconds=30)
        first, last = asked.index(1), len(asked) - 1 - asked[::-1].index(1)
        assert asked[first:last].count(agent.number) >= 6


@on_postgresql
def test_nodes_that_fall_silent_at_once_do_not_delay_the_others(
    make_agents, agents, settings, others, monkeypatch
):
    """R98: they are noticed together, and the living one is asked again and again meanwhile."""
    (agent,) = make_agents()
    silent = others(20)
    asked = count_calls(agents, monkeypatch)
    with running(settings, agents):
        eventually(lambda: all(status(s.number).info for s in silent))
        for server in silent:
            server.mode = "silent"
        asked.clear()
        eventually(lambda: all(status(s.number).failing_since for s in silent))

    assert asked.count(agent.number) >= 5
    assert all(asked.count(server.number) <= 2 for server in silent)


@on_sqlite
def test_node_that_went_while_its_set_waited_holds_up_no_other(make_agents, agents, monkeypatch):
    """R98: the others' sets and journals do not wait for its deadline."""
    (agent,) = make_agents()
    called: list[object] = []
    monkeypatch.setattr(agents, "events", lambda *_a, **_o: called.append("events"))
    monkeypatch.setattr(agents, "put_set", lambda *_a, **_o: called.append("set"))
    watch = Watch(agents, log_origins=False, clock=utc_now, timing=QUICK)
    go_on = threading.Event()
    for _ in range(FOLLOWING):
        watch._lanes["following"].submit(lambda: go_on.wait(20))

    def round_of_one() -> None:
        watch.submit()
        seen = watch.seen.get(timeout=20)
        assert seen is not None
        watch.collect([seen])

    round_of_one()
    assert watch._memories[0].following
    agent.stop()
    round_of_one()
    go_on.set()
    eventually(lambda: not watch._memories[0].following)

    assert status().failing_since is not None
    assert called == []
    watch.stop()
