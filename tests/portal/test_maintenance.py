"""``vpn-portal node show``, ``maintenance``, ``drain`` and ``enroll``; and what users of a node are told."""

import base64
import json
from typing import Any

import pytest
from sqlalchemy import func, select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AddressUse, AuditEvent, Connection, Node, NodeStatus
from portal_app.services import choice, identity
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, browser
from tests.portal.pages import make_configuration

#: The new key of a node.
KEY = base64.b64encode(b"n" * 32).decode()

pytestmark = pytest.mark.parametrize("database", ["sqlite"])


def status(number: int = 0) -> NodeStatus:
    with transaction(read_only=True) as session:
        return session.get_one(NodeStatus, number)


def connections(number: int = 0) -> int:
    with transaction(read_only=True) as session:
        return (
            session.scalar(
                select(func.count()).select_from(Connection).where(Connection.node_number == number)
            )
            or 0
        )


def connected(user: VpnApp, agent: AgentServer) -> None:
    """Let a user connect, with traffic on the tunnel."""
    assert user.connect().status_code == 200
    agent.active = agent.peers


def test_maintenance_keeps_new_connections_away_and_old_ones_alive(node, make_app_user, run):
    """R63: none from the acknowledgement on."""
    alice, bob = make_app_user("alice"), make_app_user("bob")
    connected(alice, node)

    assert run("node", "maintenance", "node0", "on").out == "node0: maintenance on\n"

    assert bob.connect().status_code == 503
    assert (node.maintenance, len(node.peers)) == (True, 1)
    assert json.loads(run("node", "maintenance", "node0", "off", "--json").out) == {
        "node": "node0", "maintenance": "off",
    }  # fmt: skip
    assert bob.connect().status_code == 200


def test_connect_that_had_chosen_a_node_before_its_maintenance_goes_elsewhere(
    node, make_app_user, run, monkeypatch
):
    """R63: the choice is made before the node's lock is taken."""
    choose = choice.choose

    def slowly(*arguments: Any, **options: Any) -> Any:
        found = choose(*arguments, **options)
        assert run("node", "maintenance", "node0", "on").status == 0
        return found

    bob = make_app_user("bob")
    monkeypatch.setattr(choice, "choose", slowly)

    assert bob.connect().status_code == 503
    assert (node.maintenance, len(node.peers), connections()) == (True, 0, 0)


def test_node_that_does_not_answer_is_not_said_to_be_in_maintenance(node, run):
    node.mode = "silent"

    done = run("node", "maintenance", "node0", "on")

    assert done.status == 1
    assert done.error == "vpn-portal: node0: no answer in time\n"
    assert status().maintenance_mode is False


def test_drain_without_cut_says_who_is_left(node, make_app_user, run):
    connected(make_app_user("alice"), node)

    done = run("node", "drain", "node0")

    assert done.status == 4
    assert done.out == (
        "node0: in maintenance, 1 user is connected: alice; to end their connections, repeat with --cut;"
        " to wait, with --within 2h; or let it serve again: vpn-portal node maintenance node0 off\n"
    )
    assert connections() == 1


def test_drain_ends_when_few_enough_are_left(node, make_app_user, run):
    for name in ("alice", "bob"):
        connected(make_app_user(name), node)
    node.active = set(sorted(node.peers)[:1])

    done = run("node", "drain", "node0", "--below", "2", "--within", "1h", "--json")

    assert done.status == 0
    assert len(json.loads(done.out)["users"]) == 1


def test_drain_waits_until_the_last_user_leaves(node, make_app_user, run, monkeypatch):
    """What the operator sees is told once per change, on stderr."""
    alice = make_app_user("alice")
    connected(alice, node)

    def leave(_seconds: float) -> None:
        assert alice.disconnect().status_code == 204

    monkeypatch.setattr("portal_app.cli.node.time.sleep", leave)

    done = run("node", "drain", "node0", "--within", "1h")

    assert done.status == 0
    assert done.out == "node0: in maintenance, nobody is connected\n"
    assert done.error.splitlines() == [
        "node0: takes no new connections", "node0: 1 user is connected: alice",
    ]  # fmt: skip


def test_drain_with_cut_ends_what_apps_have_and_keeps_downloads(node, make_app_user, app, run):
    alice = make_app_user("alice")
    connected(alice, node)
    assert make_configuration(browser(app, alice.user), "employees+wireguard+udp").status_code == 200
    assert connections() == 2

    done = run("node", "drain", "node0", "--cut")

    assert done.status == 0
    assert done.out == "node0: in maintenance, 1 connection ended\n"
    assert (connections(), len(node.peers)) == (1, 1)
    with transaction(read_only=True) as session:
        assert "drained" in session.scalars(select(AddressUse.end_reason)).all()
        actions = session.scalars(select(AuditEvent.action)).all()
    assert {"node.maintenance", "node.drain"} <= set(actions)

    assert run("node", "drain", "node0", "--cut", "--downloads").status == 0
    assert connections() == 0


def test_drain_with_cut_is_no_success_while_downloads_are_connected(node, make_app_user, app, run):
    """They pass traffic still: whoever takes the host away next must not read that nobody is there."""
    for name in ("alice", "bob"):
        user = make_app_user(name)
        connected(user, node)
        assert make_configuration(browser(app, user.user), "employees+wireguard+udp").status_code == 200
    node.active = node.peers

    done = run("node", "drain", "node0", "--cut")

    assert done.status == 4
    assert done.out == (
        "node0: in maintenance, 2 connections ended;"
        " 2 downloaded configurations still connected (alice, bob);"
        " to end their connections, repeat with --cut --downloads; to wait, with --within 2h;"
        " or let it serve again: vpn-portal node maintenance node0 off\n"
    )
    again = run("node", "drain", "node0", "--cut", "--json")
    assert again.status == 4
    assert json.loads(again.out) == {
        "node": "node0", "users": ["alice", "bob"], "cut": 0,
        "downloads": {"connections": 2, "users": ["alice", "bob"]},
    }  # fmt: skip
    few = run("node", "drain", "node0", "--cut", "--below", "3")
    assert (few.status, "2 downloaded configurations still connected (alice, bob)\n" in few.out) == (0, True)

    ended = run("node", "drain", "node0", "--cut", "--downloads")

    assert (ended.status, ended.out) == (0, "node0: in maintenance, 2 connections ended\n")
    assert (connections(), len(node.peers)) == (0, 0)


def test_show_names_those_who_downloaded_something_for_a_node(node, make_app_user, app, run):
    alice, bob = make_app_user("alice"), make_app_user("bob")
    connected(alice, node)
    assert make_configuration(browser(app, bob.user), "employees+wireguard+udp").status_code == 200

    data = json.loads(run("node", "show", "node0", "--json").out)

    assert data["downloads"] == {"connections": 1, "users": ["bob"]}
    assert any(
        line.split() == ["downloads", "1,", "of", "bob"]
        for line in run("node", "show", "node0").out.splitlines()
    )


APPS_END, DOWNLOADS_END = "Your connections to this server end at", "downloaded for this server end at"
DOWNLOADS_STAY = "downloaded for this server stay good"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--cut"], DOWNLOADS_STAY), (["--cut", "--downloads"], DOWNLOADS_END), ([], None)],
    ids=["keeps", "ends", "cuts nothing"],
)
def test_who_has_only_downloads_is_told_what_becomes_of_them(
    node, make_app_user, app, run, monkeypatch, words, said
):
    alice, bob, carol = (make_app_user(name) for name in ("alice", "bob", "carol"))
    connected(alice, node)
    for user in (bob, carol):
        assert make_configuration(browser(app, user.user), "employees+wireguard+udp").status_code == 200
    connected(carol, node)
    read: dict[str, str] = {}

    def look(_seconds: float) -> None:
        read.update({u.user.name: browser(app, u.user).get("/").text for u in (alice, bob, carol)})
        node.active = set()

    monkeypatch.setattr("portal_app.cli.node.time.sleep", look)

    assert run("node", "drain", "node0", "--within", "1h", *words).status == 0

    def told(name: str) -> set[str]:
        return {text for text in (APPS_END, DOWNLOADS_END, DOWNLOADS_STAY) if text in read[name]}

    everything = {APPS_END, said} if said else set()
    assert told("alice") == everything - {said}
    assert told("bob") == everything - {APPS_END}
    assert told("carol") == everything


def test_users_of_a_drained_node_are_told_when_and_why(node, make_app_user, app, run):
    alice, bob = make_app_user("alice"), make_app_user("bob")
    connected(alice, node)

    run("node", "maintenance", "node0", "on", "--notice", "New disks <b>tonight</b>.")

    for path in ("/", "/devices", "/status"):
        page = browser(app, alice.user).get(path).text
        assert "<strong>node0:</strong>" in page
        assert "New disks &lt;b&gt;tonight&lt;/b&gt;." in page
        assert "node0:" not in browser(app, bob.user).get(path).text
    run("node", "maintenance", "node0", "off")
    assert "New disks" not in browser(app, alice.user).get("/").text
    assert (status().notice, status().cut_at) == (None, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["drain", "node0", "--below", "0"], "--below 0: at least 1"),
        (["drain", "node0", "--downloads"], "--downloads: only with --cut"),
        (["drain", "node7"], "no node 'node7'; known are node0"),
        (["show", "node7"], "no node 'node7'; known are node0"),
        (["maintenance", "node0", "off", "--notice", "x"], "--notice: only with maintenance on"),
        (["maintenance", "node0", "on", "--notice", "x" * 501], "at most 500 printable characters"),
        (["drain", "node0", "--notice", "two\nlines"], "printable characters, in one line"),
        (["enroll", "node7=" + "a" * 32], "no node 'node7'; known are node0"),
        (["enroll", "node0=7"], "node0: '7' is no instance id"),
        (["enroll", "node0=" + "a" * 32, "node0=" + "b" * 32], "a node is named twice"),
    ],
)
def test_wrong_order_changes_nothing(node, run, words, said):
    before = status().maintenance_mode, status().instance_id

    done = run("node", *words)

    assert done.status == 1
    assert said in done.error
    assert (status().maintenance_mode, status().instance_id) == before
    assert node.maintenance is False


@pytest.mark.parametrize("words", [["drain", "node0", "--within", "soon"], ["enroll", "node0"]])
def test_wrong_word_is_refused_by_name(node, run, words):
    with pytest.raises(SystemExit) as ended:
        run("node", *words)
    assert ended.value.code == 2


def test_show_tells_what_a_node_serves(node, make_app_user, run):
    connected(make_app_user("alice"), node)

    data = json.loads(run("node", "show", "node0", "--json").out)
    lines = run("node", "show", "node0").out.splitlines()

    assert (data["state"], data["connections"]) == ("up", 1)
    assert [share["profile_id"] for share in data["shares"]] == ["employees", "lab"]
    assert data["shares"][0]["allocated"] == 1
    assert [p["name"] for p in data["processes"]] == ["employees-0", "employees-1", "legacy-0", "legacy-1"]
    assert lines[0] == "node0"
    assert lines[1].split() == ["state", "up"]
    assert any(line.split() == ["employees", "WireGuard", "0", "0", "1", "1021"] for line in lines)
    assert any(line.split()[:3] == ["legacy", "OpenVPN", "udp/1195"] for line in lines)


def test_enrolling_is_news_once(node, run):
    machine = "node0=" + "a" * 32

    assert run("node", "enroll", machine).out == "node0: enrolled\n"
    assert run("node", "enroll", machine).out == "no changes\n"
    assert json.loads(run("node", "enroll", "node0=" + "b" * 32, "--json").out) == {"enrolled": ["node0"]}
    assert status().instance_id == "b" * 32


def test_another_key_of_a_node_ends_what_names_the_old_one(node, make_app_user, agents):
    """A node was installed anew: who has the old key cannot get in, who came after it was seen can."""
    alice, bob, carol = (make_app_user(name) for name in ("alice", "bob", "carol"))
    assert alice.connect("lab").status_code == 200
    assert bob.connect("legacy").status_code == 200  # OpenVPN knows nothing of that key
    with transaction(read_only=True) as session:
        generation = session.get_one(Node, 0).generation
    assert carol.connect("lab").status_code == 200

    ended = identity.replace_key(agents, 0, "node0", KEY, generation=generation, now=utc_now())

    assert (ended, connections(), len(node.peers)) == (1, 2, 2)
    assert status().issued_public_key == KEY
    with transaction(read_only=True) as session:
        reasons = session.scalars(select(AddressUse.end_reason).where(AddressUse.user_name == "alice")).all()
    assert reasons == ["node_key_changed"]
