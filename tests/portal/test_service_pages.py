"""What administrators see of the service and do to nodes: overview, nodes, profiles, system."""

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from portal_app import migrations
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.controller import housekeeping
from portal_app.controller.leader import DatabaseLock
from portal_app.db import engine, transaction
from portal_app.models import (
    AuditEvent,
    BrowserSession,
    Node,
    NodeStatus,
    Offer,
    PeriodicJob,
    Portal,
    Profile,
    UsageDay,
)
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import authorities, connections, in_force, jobs, maintenance, peers
from portal_app.services.paging import PAGE_SIZE
from portal_app.settings import Settings
from portal_app.texts import Percent, Text, text
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, add_user, csrf_token
from tests.portal.conftest import PROFILES, apply_plan, seen_up
from tests.portal.pages import elements
from tests.portal.real_agent import RealAgent
from tests.portal.test_pages import begin_use, live_connections, make_configuration, signed_in

ROLE = Path(__file__).parents[2] / "roles" / "portal" / "vars" / "main.yml"
PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
DEPLOYMENT = Path(__file__).parents[2] / "vpn_control" / "variables.yml"
ACTS = {
    "maintenance": {"state": "on", "notice": ""},
    "drain": {"minutes": "0", "notice": ""},
    "call-off": {},
    "reconcile": {},
    "reconcile/confirmed": {"removed": "0"},
}

#: With room for many nodes.
MANY_RANGES = {"lab": PROFILES["lab"]}


@pytest.fixture
def admin(app: Flask) -> FlaskClient:
    return signed_in(app, "root", ["admin"])


def press(client: FlaskClient, act: str, number: int = 0, **form: str) -> TestResponse:
    """Send one of the forms of a node's page."""
    token = csrf_token(client.get(f"/admin/nodes/{number}").text)
    return client.post(f"/admin/nodes/{number}/{act}", data={"csrf_token": token} | ACTS[act] | form)


def status(number: int = 0) -> NodeStatus:
    with transaction(read_only=True) as db:
        return db.get_one(NodeStatus, number)


def events(action: str) -> list[tuple[str, str | None, str | None]]:
    with transaction(read_only=True) as db:
        found = db.scalars(select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.id))
        return [(event.actor, event.object, event.source) for event in found]


def certificate(days_left: int, life: int = 1000) -> dict[str, Any]:
    ends = int((utc_now() + timedelta(days=days_left, minutes=5)).timestamp())
    return {"serial": "4f2a9c", "not_before": ends - 86400 * life, "not_after": ends}


def test_overview_names_what_needs_attention_and_leads_there(
    app: Flask, make_nodes: Any, admin: FlaskClient
) -> None:
    make_nodes(4)
    seen_up(0, info={"certificate": certificate(20), "clock_skew_seconds": -9})
    seen_up(1, failing_since=utc_now(), error="node1: no answer in time")
    seen_up(2, failing_since=utc_now(), error="held: other deployment", info={"held": "other deployment"})
    now = utc_now()
    with transaction() as db:
        db.execute(update(Offer).where(Offer.profile_id == "lab").values(capacity=100, allocated=92))
        db.add(PeriodicJob(name="expire", started_at=now))
        db.add(PeriodicJob(name="prune", started_at=now - timedelta(hours=4)))
        db.add(PeriodicJob(name="forbidden", started_at=now, failed_at=now, error="<b>broken</b>"))
        db.add(Portal(name="p2", seen_at=now - timedelta(minutes=7), digests={}))
    page = admin.get("/admin/").text

    found = page.partition('id="attention"')[2].partition("</section>")[0]
    for said in (
        "node1 does not answer",
        "node1: no answer in time",
        "node2 holds still",
        "clock is 9 s behind",
        "certificate ends on",
        "Profile Laboratory: 92% of its WireGuard addresses are given out.",
        "“prune” has not run when it should have",
        "“forbidden” failed.",
        "&lt;b&gt;broken&lt;/b&gt;",
        "Portal p2 is silent.",
    ):
        assert said in found, said
    links = re.findall(r'href="(/admin/[^"]+)"', found)
    assert {"/admin/nodes/0", "/admin/nodes/1", "/admin/profiles/lab", "/admin/system"} <= set(links)
    assert all(admin.get(link).status_code == 200 for link in set(links))
    levels = re.findall(r'<li class="(\w+)">', found)
    assert levels == sorted(levels), "what is bad comes first"


def test_overview_of_a_healthy_service_says_so(app: Flask, node: AgentServer, admin: FlaskClient) -> None:
    with transaction() as db:
        for name in jobs.WHAT:
            db.add(PeriodicJob(name=name, started_at=utc_now()))
    page = admin.get("/admin/").text

    assert "Nothing. All nodes answer" in page
    assert 'class="concerns"' not in page


def test_overview_without_a_controller_says_that_nobody_watches(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    assert "No controller works" in admin.get("/admin/").text
    assert "No controller leads." in admin.get("/admin/system").text


def test_overview_before_the_first_plan_is_a_page(app: Flask, admin: FlaskClient) -> None:
    page = admin.get("/admin/")

    assert page.status_code == 200
    assert "No plan was applied yet" in page.text
    for url in ("/admin/nodes", "/admin/profiles", "/admin/system"):
        assert admin.get(url).status_code == 200


def test_overview_counts_users_and_their_connections(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    for name in ("alice", "bob"):
        make_configuration(signed_in(app, name))
    first, second = live_connections()
    begin_use(first, "alice", 1)
    begin_use(second, "alice", 2)
    page = admin.get("/admin/").text

    assert "<dt>Users online</dt><dd>1</dd>" in page
    assert re.search(r"<dt>Connections in use</dt><dd><a [^>]+>2</a>", page)
    row = page.partition(">Employees</a>")[2].partition("</tr>")[0]
    assert '<td data-label="Connected">2</td>' in row
    assert "2 of 1,021" in row


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("permissions", [["helpdesk"], ["auditor"], ["staff"], []])
def test_only_an_administrator_acts_on_nodes(
    app: Flask, node: AgentServer, act: str, permissions: list[str]
) -> None:
    client = signed_in(app, "eve", permissions)
    token = csrf_token(client.get("/password").text)
    before = len(node.calls)

    answer = client.post(f"/admin/nodes/0/{act}", data={"csrf_token": token} | ACTS[act])

    assert answer.status_code == 403
    assert len(node.calls) == before
    assert status().maintenance_mode is False


@pytest.mark.parametrize("act", ACTS)
def test_no_other_site_acts_on_nodes(app: Flask, node: AgentServer, admin: FlaskClient, act: str) -> None:
    assert admin.post(f"/admin/nodes/0/{act}", data=ACTS[act]).status_code == 403
    assert node.calls == []


@pytest.mark.parametrize("role", ["helpdesk", "auditor"])
def test_who_may_only_see_gets_no_forms(app: Flask, node: AgentServer, role: str) -> None:
    page = signed_in(app, "hans", [role]).get("/admin/nodes/0")

    assert page.status_code == 200
    assert 'action="/admin/nodes' not in page.text


@pytest.mark.parametrize("act", ["drain", "reconcile/confirmed"])
def test_what_cuts_people_asks_for_the_password_again(
    app: Flask, node: AgentServer, admin: FlaskClient, act: str
) -> None:
    with transaction() as db:
        long_ago = utc_now() - timedelta(hours=1)
        db.execute(update(BrowserSession).values(created_at=long_ago, signed_in_at=long_ago))
    answer = press(admin, act)

    assert answer.status_code == 303
    assert "/sign-in" in answer.location or "confirm" in answer.location
    assert status().maintenance_mode is False


def test_what_was_typed_for_a_drain_is_there_after_the_password(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    long_ago = utc_now() - timedelta(hours=1)
    with transaction() as db:
        db.execute(update(BrowserSession).values(signed_in_at=long_ago))
    typed = {"minutes": "60", "notice": "Neue Platten & Lüfter", "downloads": "yes"}
    asked = press(admin, "drain", next="/admin/nodes/0?still=1&minutes=5", **typed)

    back = parse_qs(urlsplit(asked.location).query)["next"][0]
    assert urlsplit(back).path == "/admin/nodes/0"
    assert parse_qs(urlsplit(back).query) == {"still": ["1"]} | {name: [text] for name, text in typed.items()}
    page = admin.get(back).text
    assert '<option value="60" selected>' in page
    assert 'name="notice" value="Neue Platten &amp; Lüfter"' in page
    assert 'name="downloads" value="yes" checked>' in page
    assert '<details class="confirm" open>' in page
    assert '<details class="confirm" open>' not in admin.get("/admin/nodes/0").text


def test_maintenance_keeps_newcomers_away_and_tells_users(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    alice = VpnApp(app, add_user("alice")).authorize()
    alice.connect()

    answer = press(admin, "maintenance", notice="  New disks\r\n <b>tonight</b>. ")

    assert (answer.status_code, answer.location) == (303, "/admin/nodes/0")
    assert node.maintenance
    assert (status().maintenance_mode, status().notice) == (True, "New disks <b>tonight</b>.")
    assert events("node.maintenance") == [("root", "node0", "127.0.0.1")]
    assert "New disks &lt;b&gt;tonight&lt;/b&gt;." in alice.browser.get("/").text
    assert "New disks &lt;b&gt;tonight&lt;/b&gt;." in admin.get("/admin/nodes/0").text
    assert len(live_connections()) == 1

    press(admin, "maintenance", state="off")
    assert (node.maintenance, status().maintenance_mode, status().notice) == (False, False, None)


@pytest.mark.parametrize(
    ("act", "form"),
    [
        ("maintenance", {"state": "perhaps"}),
        ("maintenance", {"state": ""}),
        ("maintenance", {"notice": "x" * 501}),
        ("maintenance", {"notice": "bell \a"}),
        ("drain", {"minutes": "-5"}),
        ("drain", {"minutes": "7"}),
        ("drain", {"minutes": "\u0665"}),
        ("drain", {"minutes": "99999"}),
        ("drain", {"notice": "x" * 2001}),
    ],
)
def test_bad_input_changes_nothing(
    app: Flask, node: AgentServer, admin: FlaskClient, act: str, form: dict[str, str]
) -> None:
    assert press(admin, act, **form).status_code == 400
    assert (status().maintenance_mode, node.maintenance) == (False, False)
    assert events("node.maintenance") == []


@pytest.mark.parametrize("number", [7, 2**31, 2**63, 10**40])
def test_a_node_that_is_not_there_is_not_found(
    app: Flask, node: AgentServer, admin: FlaskClient, number: int
) -> None:
    assert admin.get(f"/admin/nodes/{number}").status_code == 404
    token = csrf_token(admin.get("/admin/nodes/0").text)
    for act, form in ACTS.items():
        answer = admin.post(f"/admin/nodes/{number}/{act}", data={"csrf_token": token} | form)
        assert answer.status_code == 404


def test_a_node_that_does_not_answer_is_not_said_to_be_in_maintenance(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    node.mode = "refuse"
    answer = press(admin, "maintenance")

    assert answer.status_code == 503
    assert "The node did not do it, nothing was changed" in answer.text
    assert status().maintenance_mode is False
    assert events("node.maintenance") == []


def test_draining_announces_the_cut_and_the_controller_does_it(
    app: Flask, node: AgentServer, admin: FlaskClient, agents: Agents
) -> None:
    """Apps lose theirs when the time has come, not before; what was downloaded stays."""
    alice = VpnApp(app, add_user("alice")).authorize()
    alice.connect()
    make_configuration(alice.browser)
    assert press(admin, "drain", minutes="15", notice="Go").status_code == 303
    cut_at = status().cut_at
    assert cut_at is not None
    assert timedelta(minutes=14) < cut_at - utc_now() <= timedelta(minutes=15)
    page = admin.get("/admin/nodes/0").text
    assert "Connections of apps here end at" in page
    assert "downloaded configurations stay" in page

    maintenance.cut_due(agents, utc_now())
    assert len(live_connections()) == 2
    maintenance.cut_due(agents, cut_at)

    assert [c.authorization_id for c in live_connections()] == [None]
    assert len(node.peers) == 1
    assert (status().cut_at, status().cuts_downloads, status().maintenance_mode) == (None, None, True)
    assert events("node.drain") == [("controller", "node0", None)]


def test_draining_with_downloads_leaves_nobody(
    app: Flask, node: AgentServer, admin: FlaskClient, agents: Agents
) -> None:
    make_configuration(signed_in(app))
    press(admin, "drain", downloads="yes")
    maintenance.cut_due(agents, utc_now())

    assert live_connections() == []


def test_a_cut_that_is_called_off_never_comes(
    app: Flask, node: AgentServer, admin: FlaskClient, agents: Agents
) -> None:
    VpnApp(app, add_user("alice")).authorize().connect()
    press(admin, "drain", minutes="5", notice="Go")
    assert press(admin, "call-off").status_code == 303
    maintenance.cut_due(agents, utc_now() + timedelta(hours=1))

    assert len(live_connections()) == 1
    assert (status().maintenance_mode, status().notice, status().cut_at) == (True, "Go", None)
    assert events("node.drain_called_off") == [("root", "node0", "127.0.0.1")]
    press(admin, "call-off")
    assert len(events("node.drain_called_off")) == 1, "there was nothing any more"


@pytest.mark.parametrize("act", ["called off", "moved", "maintenance off"])
def test_a_cut_that_has_begun_stops_when_it_is_no_longer_announced(
    app: Flask,
    node: AgentServer,
    admin: FlaskClient,
    agents: Agents,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
) -> None:
    """The page says that nobody is cut any more; so does who was slow meanwhile."""
    for name in ("alice", "bob", "carol"):
        VpnApp(app, add_user(name)).authorize().connect()
    press(admin, "drain", minutes="0")
    told = connections.tell

    def tell_and_think_again(*words: Any, **named: Any) -> None:
        told(*words, **named)
        if act == "called off":
            press(admin, "call-off")
        elif act == "moved":
            press(admin, "drain", minutes="15")
        else:
            press(admin, "maintenance", state="off")

    monkeypatch.setattr(maintenance, "_BATCH", 1)
    monkeypatch.setattr(connections, "tell", tell_and_think_again)
    maintenance.cut_due(agents, utc_now())

    assert len(live_connections()) == 2
    assert len(events("node.drain")) == 1
    assert (status().cut_at is not None) is (act == "moved")


def test_maintenance_by_another_way_leaves_an_announced_cut(
    app: Flask, node: AgentServer, admin: FlaskClient, agents: Agents
) -> None:
    """Who says nothing of it does not take it back."""
    press(admin, "drain", minutes="15", notice="Go", downloads="yes")
    announced = status()
    with transaction(read_only=True) as db:
        row = db.get_one(Node, 0)
    maintenance.switch(agents, row, on=True, actor="cli", now=utc_now())

    names = ("notice", "cut_at", "cuts_downloads", "ends_downloads")
    assert announced.cut_at is not None
    assert [getattr(status(), name) for name in names] == [getattr(announced, name) for name in names]

    press(admin, "maintenance", notice="")
    assert (status().notice, status().cut_at) == (None, announced.cut_at)
    maintenance.switch(agents, row, on=False, actor="cli", now=utc_now())
    assert [getattr(status(), name) for name in names] == [None] * 4


def test_what_a_command_drains_is_not_cut_by_the_controller(
    app: Flask, node: AgentServer, agents: Agents
) -> None:
    """It waits and cuts by itself; who interrupts it cuts nobody."""
    VpnApp(app, add_user("alice")).authorize().connect()
    with transaction() as db:
        db.execute(update(NodeStatus).values(maintenance_mode=True, cut_at=utc_now()))
    maintenance.cut_due(agents, utc_now() + timedelta(hours=1))

    assert len(live_connections()) == 1


def test_a_page_of_a_draining_node_counts_who_is_still_there(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    for name in ("alice", "bob"):
        VpnApp(app, add_user(name)).authorize().connect()
    node.active = node.peers
    press(admin, "maintenance")
    page = admin.get("/admin/nodes/0")

    assert "Still there: alice, bob" in page.text
    assert "<dt>Tunnels in use</dt><dd>2</dd>" in page.text
    assert '<strong data-live-text aria-live="polite">2 tunnels in use</strong>' in page.text
    nonce = re.search(r'<script src="/static/live\.js\?v=\w+" nonce="([^"]+)"', page.text)
    assert nonce
    assert f"script-src 'nonce-{nonce[1]}'" in page.headers["Content-Security-Policy"]
    still = admin.get("/admin/nodes/0?still=1")
    assert "<script" not in still.text
    assert "script-src 'none'" in still.headers["Content-Security-Policy"]

    node.active = set(list(node.peers)[:1])
    assert 'aria-live="polite">1 tunnel in use<' in admin.get("/admin/nodes/0").text
    node.active = set()
    assert "Nobody is connected any more" in admin.get("/admin/nodes/0").text


def test_a_node_is_given_what_it_should_have_at_once(
    app: Flask, make_agents: Any, admin: FlaskClient, agents: Agents
) -> None:
    (agent,) = make_agents()
    seen_up(0, utc_now() + timedelta(minutes=2))
    answer = press(admin, "reconcile")

    assert answer.location == "/admin/nodes/0?added=0&removed=0"
    assert "0 connections added, 0 removed" in admin.get(answer.location).text
    assert "1 connection added, 2 removed" in admin.get("/admin/nodes/0?added=1&removed=2").text
    assert events("node.reconcile") == [("root", "node0", "127.0.0.1")]
    assert agents.info(agent.node).deployment_id is not None


@pytest.fixture
def reinstalled(app: Flask, make_agents: Any) -> RealAgent:
    """A node behind which another machine answers than the one that is known."""
    (agent,) = make_agents()
    seen_up(0, utc_now() + timedelta(minutes=2), instance_id="f" * 32)
    return agent


def test_another_machine_gets_nothing_before_somebody_confirms(
    reinstalled: RealAgent, admin: FlaskClient, agents: Agents
) -> None:
    asked = press(admin, "reconcile")

    assert asked.status_code == 409
    assert "Another machine answers as this node" in asked.text
    assert "To confirm removes 0 connections from this node." in asked.text
    assert agents.info(reinstalled.node).deployment_id is None
    assert events("node.reconcile") == []

    assert press(admin, "reconcile/confirmed").status_code == 303
    assert status().instance_id == agents.info(reinstalled.node).instance_id
    assert events("node.reconcile") == [("root", "node0", "127.0.0.1")]


def test_who_confirms_lets_no_more_be_removed_than_the_page_said(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    VpnApp(app, add_user("alice")).authorize().connect()
    with transaction() as db:
        for connection in live_connections():
            db.delete(connection)
    before = list(node.calls)

    for said in ("0", "x", "-1", ""):
        answer = press(admin, "reconcile/confirmed", removed=said)
        assert answer.status_code == 409
        assert "Nothing was done" in answer.text
    assert [call for call in node.calls if call not in before and call[0] != "GET"] == []
    assert events("node.reconcile") == []


def test_numbers_in_the_address_are_only_numbers(app: Flask, node: AgentServer, admin: FlaskClient) -> None:
    for query in ("added=<b>&removed=1", "added=-1&removed=1", "added=\u0663&removed=1", "added=1"):
        page = admin.get(f"/admin/nodes/0?{query}")
        assert page.status_code == 200
        assert "connections added" not in page.text


def test_pages_of_nodes_call_profiles_by_their_names(
    app: Flask, node: AgentServer, admin: FlaskClient
) -> None:
    page = admin.get("/admin/nodes/0").text

    assert '<a href="/admin/profiles/employees">Employees</a>' in page
    assert 'data-label="Serves"><span>Employees, Laboratory' in admin.get("/admin/nodes").text


def test_a_profile_shows_what_a_device_gets_without_keys_and_addresses(
    app: Flask, node: AgentServer, admin: FlaskClient, settings: Settings
) -> None:
    page = admin.get("/admin/profiles/employees").text

    assert "PrivateKey = ••••••••" in page
    assert "Address = ••••••••/22,••••••••/" in page
    assert "Endpoint = node0.example.org:51820" in page
    assert "remote node0.example.org 1194 udp" in page
    assert "BEGIN" not in page
    for file in settings.tls_crypt_directory.glob("*.key"):
        assert file.read_text().strip().splitlines()[1] not in page
    assert "vpn_profiles" in page


@pytest.mark.parametrize(
    ("servers", "shown"),
    [
        (["@GW4@", "@GW6@"], "the node itself"),
        (["@GW6@", "192.0.2.53"], "the node itself<br><code>192.0.2.53</code>"),
        (["192.0.2.53", "192.0.2.54"], "<code>192.0.2.53</code><br><code>192.0.2.54</code>"),
        ([], "none"),
    ],
)
def test_a_profile_whose_names_the_node_resolves_says_so(
    app: Flask, node: AgentServer, admin: FlaskClient, servers: list[str], shown: str
) -> None:
    with transaction() as db:
        db.get_one(Profile, "employees").dns_servers = servers

    assert f"<dt>DNS servers</dt><dd>{shown}</dd>" in admin.get("/admin/profiles/employees").text


def test_a_profile_says_who_may_use_it(app: Flask, node: AgentServer, admin: FlaskClient) -> None:
    for permissions, hidden, said in (
        (None, False, "Everybody who may use the service."),
        ([], False, "Nobody: no permission is named."),
        (["staff", "<i>guests</i>"], False, "one of these permissions: staff, &lt;i&gt;guests&lt;/i&gt;"),
        (None, True, "Nobody: it is hidden."),
    ):
        with transaction() as db:
            db.execute(update(Profile).values(permissions=permissions, hidden=hidden))
        assert said in admin.get("/admin/profiles/lab").text
    assert admin.get("/admin/profiles/nothing").status_code == 404


def test_settings_are_shown_and_nothing_secret_is(
    app: Flask, node: AgentServer, admin: FlaskClient, settings: Settings
) -> None:
    page = admin.get("/admin/system").text

    assert all(f"<code>{f.name}</code>" in page for f in fields(Settings))
    assert settings.secret_key_file.read_text().strip() not in page
    assert "PRIVATE KEY" not in page
    assert f"in a file: {settings.client_ca_key_file}" in page


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_database_is_shown_without_its_password(settings: Settings) -> None:
    file = settings.database_url_file
    assert file is not None
    for url in (
        "postgresql+psycopg://causeway:hunter2@db1.example.org/causeway?sslmode=require",
        "postgresql+psycopg://db1.example.org/causeway?user=causeway&password=hunter2&sslpassword=hunter2",
    ):
        file.write_text(url)
        said = str(in_force.database(settings))
        assert "hunter2" not in said
        assert "db1.example.org/causeway" in said


def test_the_variable_of_each_setting_is_the_one_that_an_inventory_sets() -> None:
    role = yaml.safe_load(ROLE.read_text())
    texts = role["__portal_settings"] | role["__portal_optional_settings"]
    said = {
        key: found[0] for key, value in texts.items() if (found := re.findall(r"\bportal_\w+", str(value)))
    }
    # Their content is laid down beside settings.toml.
    said |= {"secret_key_file": "portal_secret_key", "client_ca_key_file": "portal_client_ca_key"}
    said |= {"logo_file": "portal_logo"}
    assert said.keys() <= in_force.VARIABLES.keys()

    playbooks = PLAYBOOKS / "group_vars" / "all"
    handed = yaml.safe_load((playbooks / "roles.yml").read_text())
    derived = yaml.safe_load((playbooks / "plan.yml").read_text()) | handed
    documented = yaml.safe_load(DEPLOYMENT.read_text())["argument_specs"]["deployment"]["options"]
    for key, variable in in_force.VARIABLES.items():
        own = said.get(key, f"portal_{key}")
        if own in handed:
            assert variable in documented or variable.startswith(("vault_", "node_agent_")), key
            assert variable in sources(own, derived), key
        else:
            assert variable == own


def sources(name: str, derived: Mapping[str, object]) -> set[str]:
    """Return every variable that one is made of."""
    found, ahead = set(), {name}
    while ahead := ahead - found:
        found |= ahead
        ahead = {word for one in ahead for word in re.findall(r"\b[a-z]\w+", str(derived.get(one, "")))}
    return found


def test_plan_and_database_matter_for_different_reasons(
    app: Flask, node: AgentServer, admin: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "current", lambda _engine: migrations.head())
    page = admin.get("/admin/system").text
    rows = re.findall(r'class="long">(.+?)</th>.*?Why it matters"><small>(.+?)</small>', page, re.DOTALL)
    (database,) = (why for what, why in rows if what.startswith("database"))

    assert database.startswith("Without the database")
    assert "profiles and nodes" in dict(rows)["plan"]


def test_system_lists_portals_jobs_and_errors(app: Flask, node: AgentServer, admin: FlaskClient) -> None:
    now, own = utc_now(), peers.host_name()
    seen_up(0, failing_since=now, error="<b>silent</b>")
    with transaction() as db:
        db.add(PeriodicJob(name="expire", started_at=now))
        db.add(Portal(name=own, seen_at=now, digests={"release": "1"}))
        db.add(Portal(name="p2", seen_at=now, digests={"release": "2"}))
        db.add(
            AuditEvent(
                at=now, actor="controller", action="node.held", object="node0", details={"error": "<u>"}
            )
        )
    page = admin.get("/admin/system").text

    assert "differs in release; run site.yml for both" in page
    assert "&lt;b&gt;silent&lt;/b&gt;" in page
    assert "error: &lt;u&gt;" in page
    assert "node.held" not in signed_in(app, "hans", ["helpdesk"]).get("/admin/system").text


@pytest.mark.parametrize("days", [(800, "good"), (100, "warn"), (3, "bad")])
def test_a_node_certificate_is_judged_by_what_is_left_of_its_life(days: tuple[int, str]) -> None:
    left, level = days
    report = authorities.of_node(3, "fra3", {"certificate": certificate(left)}, now=utc_now())

    assert report is not None
    assert (report.days_left, report.level, report.node) == (left, level, 3)
    assert (report.remedy is None) == (level == "good")


def test_a_job_that_failed_is_remembered_until_it_ends_well(app: Flask) -> None:
    job, now = housekeeping.Job("expire", timedelta(seconds=10), lambda _now: None), utc_now()
    housekeeping.claim(job, now)

    def errors() -> list[str | None]:
        with transaction(read_only=True) as db:
            return list(db.scalars(select(PeriodicJob.error)))

    housekeeping.note_end(job, "broken", now)
    assert errors() == ["broken"]
    housekeeping.note_end(job, None, now)
    assert errors() == [None]


@pytest.mark.parametrize("database", ["postgresql"])
def test_the_leader_is_whoever_holds_the_lock(app: Flask, admin: FlaskClient) -> None:
    assert "No controller leads." in admin.get("/admin/system").text
    lock = DatabaseLock(engine())
    assert lock.hold()

    assert f"The controller on {peers.host_name()} leads" in admin.get("/admin/system").text
    lock.release()


def test_texts_are_english_for_commands() -> None:
    day = utc_now().date()
    inner = text("%(percent)s of it", percent=Percent(7))

    assert str(text("plain 100 %")) == "plain 100 %"
    assert str(Text("on %(day)s: %(what)s", {"day": day, "what": inner})) == f"on {day:%Y-%m-%d}: 7 % of it"


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_node_among_many_is_named_and_not_chosen(admin: FlaskClient) -> None:
    """A list of a thousand would be most of a page of 60 kB: in three filters, and in the audit log."""
    apply_plan({number: f"192.0.2.{number}" for number in range(120)}, MANY_RANGES, max_nodes=128)
    for path in ("/admin/statistics", "/admin/history", "/admin/connections"):
        page = admin.get(path, query_string={"node": "node77"}).text
        (field,) = [e for e in elements(page, "input", "select") if e.get("name") == "node"]
        assert field.get("value") == "node77"
        assert "node78" not in page
    assert 'value="node77"' in admin.get("/admin/history?node=77").text
    assert admin.get("/admin/history?node=nowhere").status_code == 400
    details = "".join(re.findall(r'class="facts">.*?</ul>', admin.get("/admin/audit").text, re.DOTALL))
    assert "node3" in details
    assert "node119" not in details


@pytest.mark.parametrize("path", ["/admin/nodes", "/admin/profiles/employees", "/admin/statistics"])
def test_pages_of_many_nodes_have_some_of_them_each(admin: FlaskClient, path: str) -> None:
    apply_plan({number: f"192.0.2.{number}" for number in range(60)}, max_nodes=64)
    yesterday = (utc_now() - timedelta(days=1)).date().isoformat()
    counted = {"day": yesterday, "users": 1, "sessions": 1, "received_bytes": 1, "sent_bytes": 1}
    with transaction() as db:
        for number in (ALL_NODES, *range(60)):
            db.add(UsageDay(profile_id=ALL, node_number=number, peak_connections=number + 1, **counted))
    met: list[str] = []
    place: str | None = path
    while place is not None:
        page = admin.get(place).text
        shown = re.findall(r'<th scope="row">(?:<a [^>]*>)?(node[0-9]+)\b', page)
        assert len(shown) <= PAGE_SIZE
        met += shown
        (place,) = [e["href"] for e in elements(page, "a") if e.get("rel") == "next"] or [None]
    assert set(met) == {f"node{number}" for number in range(60)}
    assert len(met) == {"/admin/profiles/employees": 120}.get(path, 60)
