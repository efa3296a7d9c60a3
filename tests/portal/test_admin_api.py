"""The admin API: what the pages of administration can do, for scripts (issue 5, section 3)."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert, select, text, update

from portal_app.agents import Agents
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import Unavailable
from portal_app.models import (
    ApiToken,
    AuditEvent,
    Connection,
    IdempotentCall,
    LocalAccount,
    NodeStatus,
    User,
    VpnSession,
)
from portal_app.services import idempotency, maintenance, retention, tokens, users
from portal_app.services.throttles import Limit
from portal_app.services.tokens import Scope
from portal_app.views.admin_api import OPERATIONS
from portal_app.views.admin_api.document import parameters
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp, add_user, browser
from tests.portal.conftest import seen_up
from tests.portal.pages import ATTACKER, ELSEWHERE, PASSWORD, add_account, send
from tests.portal.scripts import API, Script, configured, make_token, of_user

ADMIN = "root"
HOSTILE = [
    "a/b",
    "https://idp.example.org/idp!https://sp.example.org!Xy",
    "<script>alert(1)</script>",
    "' OR 1=1 --",
    "50%25 off",
    "%2e%2e",
    "…",
    "Ünïcödé 😀",
    "a?b#c&d=e",
    "name with spaces",
    "{name}",
    "%(name)s",
    "\\..\\..",
    "x" * 255,
    "😀" * 255,
]


@pytest.fixture
def script(app: Flask) -> Script:
    return Script(app)


def only_one_database(test: Any) -> Any:
    return pytest.mark.parametrize("database", ["sqlite"])(test)


def acts() -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent).order_by(AuditEvent.id)))


# Users


def test_user_is_added_shown_and_listed(script: Script) -> None:
    added = script.post("/users", {"name": "alice", "permissions": ["staff", "admin", "staff"]})

    assert added.status_code == 201
    assert added.json == {
        "name": "alice",
        "permissions": ["admin", "staff"],
        "disabled": False,
        "has_password": False,
        "connections": 0,
        "created_at": added.json["created_at"],
        "last_seen_at": None,
    }
    created = datetime.fromisoformat(added.json["created_at"])
    assert added.json["created_at"].endswith("Z")
    assert abs(created - datetime.now(UTC)) < timedelta(minutes=5)
    assert script.get("/users/alice").json == added.json
    assert script.get("/users").json == {"items": [added.json], "next": None}
    assert [(act.action, act.actor, act.object) for act in acts()][-1] == (
        "user added",
        "api:script",
        "alice",
    )


def test_user_who_is_there_is_a_conflict_unless_said_otherwise(script: Script) -> None:
    add_account("alice", permissions=["staff"])

    assert script.post("/users", {"name": "alice"}).status_code == 409
    again = script.post("/users", {"name": "alice", "permissions": ["admin"], "exists_ok": True})

    assert again.status_code == 201
    assert again.json["permissions"] == ["staff"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "'name' is missing"),
        ({"name": ""}, "name: use 1 to 255"),
        ({"name": "x" * 256}, "name: use 1 to 255"),
        ({"name": " alice"}, "no space"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a\u202eb"}, "printable"),
        ({"name": "a\0b"}, "character that no text has"),
        ({"name": "\ud800"}, "character that no text has"),
        ({"name": 7}, "name: a text is needed"),
        ({"name": None}, "name: a text is needed"),
        ({"name": ["alice"]}, "name: a text is needed"),
        ({"name": "alice", "permissions": "staff"}, "permissions: a list is needed"),
        ({"name": "alice", "permissions": [7]}, "permissions[0]: a text is needed"),
        ({"name": "alice", "permissions": [" staff"]}, "permission ' staff'"),
        ({"name": "alice", "permissions": [""]}, "permissions[0]: use 1 to 255"),
        ({"name": "alice", "permissions": ["p"] * 501}, "permissions: at most 500"),
        ({"name": "alice", "exists_ok": "yes"}, "exists_ok: true or false"),
        ({"name": "alice", "exists_ok": 1}, "exists_ok: true or false"),
        ({"name": "alice", "password": PASSWORD}, "unknown field 'password'"),
        ({"name": "alice", "x" * 500: 1}, "unknown field 'x"),
        ([], "body: an object is needed"),
        ("alice", "body: an object is needed"),
        (None, "send JSON"),
    ],
)
@only_one_database
def test_wrong_user_is_refused_and_nothing_changed(script: Script, body: Any, says: str) -> None:
    # Lone surrogates cannot be sent but as escapes.
    text = None if body is None else json.dumps(body)
    answer = script.call("POST", "/users", data=text, content_type="application/json" if text else None)

    assert answer.status_code in (400, 415)
    assert says in answer.json["error"]
    assert len(answer.text) < 500
    assert script.get("/users").json["items"] == []


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        ("{", "application/json", 400),
        ("", "application/json", 400),
        ('{"name": "alice", "name": "bob"}', "application/json", 400),
        ('{"name": NaN}', "application/json", 400),
        ("[" * 60000, "application/json", 400),
        ("1" * 60000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        ('{"name": "alice"}', "text/plain", 415),
        ('{"name": "alice"}', "", 415),
        ("name=alice", "application/x-www-form-urlencoded", 415),
        ('{"name": "' + "x" * 70000 + '"}', "application/json", 413),
    ],
)
@only_one_database
def test_body_that_is_no_json_is_refused(script: Script, data: Any, kind: str, status: int) -> None:
    answer = script.call("POST", "/users", data=data, content_type=kind)

    assert answer.status_code == status, answer.text
    assert answer.json["error"]


@pytest.mark.parametrize("name", HOSTILE)
def test_user_may_have_any_name_that_can_be_written(script: Script, name: str) -> None:
    assert script.post("/users", {"name": name}).status_code == 201
    script.post("/users", {"name": "somebody else"})

    assert script.get(of_user(name)).json["name"] == name
    assert script.get(of_user(name, "/connections")).json == {"items": [], "next": None}
    assert script.patch(of_user(name), {"disabled": True}).json["user"]["disabled"] is True
    assert [u["name"] for u in script.get("/users", disabled="true").json["items"]] == [name]
    assert script.get("/audit", object=name).json["items"][0]["action"] == "user disabled"
    assert script.delete(of_user(name)).status_code == 200
    assert [u["name"] for u in script.get("/users").json["items"]] == ["somebody else"]


def test_users_are_searched_by_the_begin_of_their_name(script: Script) -> None:
    for name in ("Alan", "alice", "bob", "malice", "al%"):
        script.post("/users", {"name": name})

    def found(**query: str) -> list[str]:
        return [user["name"] for user in script.get("/users", **query).json["items"]]

    assert found(search="AL") == ["al%", "Alan", "alice"]
    assert found(search="al%") == ["al%"]
    assert found(search="nobody") == []
    script.patch("/users/alice", {"disabled": True})
    assert found(search="al", disabled="true") == ["alice"]
    first = script.get("/users", search="al", limit="2").json
    assert [user["name"] for user in first["items"]] == ["al%", "Alan"]
    assert found(search="al", cursor=first["next"]) == ["alice"]
    assert script.get("/users", search="").status_code == 400


def test_a_name_is_found_however_its_letters_are_put_together(script: Script) -> None:
    """An é is one character, or an e with an accent after it."""
    script.post("/users", {"name": "Ren\u00e9e"})

    typed = "Rene\u0301"
    assert [user["name"] for user in script.get("/users", search=typed).json["items"]] == ["Ren\u00e9e"]
    acts = script.get("/audit", object=typed + "e").json["items"]
    assert [act["action"] for act in acts] == ["user added"]


def test_name_is_found_however_an_accent_is_written(script: Script) -> None:
    assert script.post("/users", {"name": "e\u0301mile"}).json["name"] == "émile"
    assert script.get(of_user("e\u0301mile")).status_code == 200


def test_permissions_that_go_cut_what_they_allowed(
    script: Script, make_app_user: Callable[..., VpnApp], node: AgentServer
) -> None:
    device = make_app_user("alice", ["staff"])
    assert device.connect().status_code == 200

    same = script.patch("/users/alice", {"permissions": ["guest"]})
    assert (same.json["user"]["permissions"], same.json["connections_ended"]) == (["guest"], 0)
    disabled = script.patch("/users/alice", {"permissions": ["staff"], "disabled": True})

    assert disabled.json["connections_ended"] == 1
    assert disabled.json["user"] | {"disabled": True, "permissions": ["staff"]} == disabled.json["user"]
    assert node.peers == set()
    assert device.connect().status_code == 401
    assert script.patch("/users/alice", {"disabled": False}).json["user"]["disabled"] is False
    actions = [act.action for act in acts() if act.actor == "api:script"]
    assert actions == ["permissions set", "permissions set", "user disabled", "user enabled"]


def test_what_is_so_already_is_no_act(script: Script) -> None:
    add_account("alice")
    before = len(acts())

    assert script.patch("/users/alice", {"disabled": False, "permissions": []}).status_code == 200
    assert len(acts()) == before
    assert script.patch("/users/alice", {}).status_code == 400


def test_deleted_user_is_gone_with_everything(
    script: Script, make_app_user: Callable[..., VpnApp], node: AgentServer
) -> None:
    make_app_user("alice").connect()

    assert script.delete("/users/alice").json == {"connections_ended": 1}
    assert node.peers == set()
    assert script.delete("/users/alice").status_code == 404


def test_link_sets_a_password_once(app: Flask, script: Script, client: FlaskClient) -> None:
    script.post("/users", {"name": "alice"})
    made = script.post("/users/alice/link")

    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    path = made.json["url"].removeprefix(ORIGIN)
    new = {"new_password": PASSWORD, "repeated_password": PASSWORD}
    assert send(client, path, page=path, **new).status_code == 303
    assert script.get("/users/alice").json["has_password"] is True
    assert send(app.test_client(), path, page="/sign-in", **new).status_code == 404


def test_user_without_local_account_gets_no_link(script: Script) -> None:
    add_user("alice")

    assert script.post("/users/alice/link").status_code == 404


def test_authorizations_are_listed_and_ended(
    script: Script, make_app_user: Callable[..., VpnApp], app: Flask, node: AgentServer
) -> None:
    phone = make_app_user("alice")
    laptop = VpnApp(app, phone.user).authorize()
    bob = make_app_user("bob")
    for device in (phone, laptop, bob):
        assert device.connect().status_code == 200
    first, _second = script.get("/users/alice/authorizations").json["items"]
    assert (first["client_id"], first["app"]) == (phone.client_id, "eduVPN for Linux")
    assert script.get("/users/alice/authorizations", limit=1).json["items"] == [first]

    of_bob = script.get("/users/bob/authorizations").json["items"][0]["id"]
    assert script.delete(f"/users/alice/authorizations/{of_bob}").status_code == 404
    one = script.delete(f"/users/alice/authorizations/{first['id']}")
    assert one.json == {"authorizations_ended": 1, "connections_ended": 1}
    assert (phone.info().status_code, laptop.info().status_code) == (401, 200)
    rest = script.delete("/users/alice/authorizations")

    assert rest.json == {"authorizations_ended": 1, "connections_ended": 1}
    assert (laptop.info().status_code, bob.info().status_code) == (401, 200)
    assert script.delete("/users/alice/authorizations").json == {
        "authorizations_ended": 0,
        "connections_ended": 0,
    }
    assert len(node.peers) == 1
    ended = script.get("/audit", action="app ended").json["items"]
    assert [(a["object"], a["details"]) for a in ended] == [("alice", {"client": laptop.client_id})] * 2


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@only_one_database
def test_unknown_user_is_not_found(script: Script, method: str) -> None:
    body = {"disabled": True} if method == "PATCH" else None
    assert script.call(method, "/users/nobody", body).json == {"error": "no user 'nobody'"}


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("POST", "/link"),
        ("GET", "/authorizations"),
        ("DELETE", "/authorizations"),
        ("GET", "/connections"),
        ("POST", "/configurations"),
    ],
)
@only_one_database
def test_nothing_of_an_unknown_user_is_found(script: Script, method: str, rest: str) -> None:
    body = {"profile_id": "employees", "protocol": "wireguard"} if rest == "/configurations" else None
    assert script.call(method, f"/users/nobody{rest}", body).status_code == 404


# Configurations and connections


@pytest.mark.parametrize("protocol", ["wireguard", "openvpn"])
def test_configuration_is_made_for_a_user(script: Script, node: AgentServer, protocol: str) -> None:
    add_account("alice")
    answer = script.post(
        "/users/alice/configurations",
        {"profile_id": "employees", "protocol": protocol, "display_name": "Router", "prefer_tcp": True},
    )

    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    made = answer.json
    assert made["content_type"] == f"application/x-{protocol}-profile"
    assert ("[Interface]" if protocol == "wireguard" else "<cert>") in made["configuration"]
    assert "Router" in made["file_name"]
    assert made["expires_at"] > shown_time(utc_now() + timedelta(days=80))
    assert node.peers == {made["connection_id"]}
    (listed,) = script.get("/users/alice/connections").json["items"]
    assert (listed["id"], listed["display_name"], listed["client_id"]) == (
        made["connection_id"],
        "Router",
        None,
    )
    assert script.get(f"/connections/{made['connection_id']}").json == listed
    assert "PrivateKey" not in json.dumps(listed)


def test_configuration_may_last_less_than_a_session(script: Script, node: AgentServer) -> None:
    add_account("alice")
    body = {"profile_id": "employees", "protocol": "wireguard"}
    made = script.post("/users/alice/configurations", body | {"expires_in": 3600}).json

    hour = utc_now() + timedelta(hours=1)
    assert shown_time(hour - timedelta(minutes=1)) < made["expires_at"] <= shown_time(hour)
    assert script.get(f"/connections/{made['connection_id']}").json["expires_at"] == made["expires_at"]
    longest = script.post("/users/alice/configurations", body | {"expires_in": 90 * 86400})
    assert longest.status_code == 201, longest.text


def shown_time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def test_how_many_a_user_may_have_does_not_count(script: Script, node: AgentServer) -> None:
    add_account("alice")
    for _number in range(portal().settings.max_portal_connections + 1):
        configured(script)

    assert len(script.get("/users/alice/connections").json["items"]) == 4


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"profile_id": "nothing"}, 404, "no such profile"),
        ({"profile_id": None}, 400, "profile_id: a text"),
        ({"protocol": "openvpn", "profile_id": "lab"}, 406, "does not offer"),
        ({"protocol": "ipsec"}, 400, "use one of wireguard, openvpn"),
        ({"node": "nowhere"}, 503, "no capacity"),
        ({"display_name": "  "}, 400, "display_name"),
        ({"display_name": "a\nb"}, 400, "display_name"),
        ({"display_name": "x" * 65}, 400, "display_name"),
        ({"prefer_tcp": "yes"}, 400, "prefer_tcp"),
        ({"expires_in": "P1D"}, 400, "expires_in: a whole number"),
        ({"expires_in": 59}, 400, "expires_in: use 60 to"),
        ({"expires_in": 90 * 86400 + 1}, 400, "expires_in: at most 7776000 seconds"),
        ({"expires_in": 10**300}, 400, "expires_in: use 60 to"),
        ({"expires_at": "P1D"}, 400, "unknown field"),
    ],
)
@only_one_database
def test_impossible_configuration_is_refused(
    script: Script, node: AgentServer, changes: dict[str, Any], status: int, says: str
) -> None:
    add_account("alice")
    body = {"profile_id": "employees", "protocol": "wireguard"} | changes

    answer = script.post("/users/alice/configurations", body)

    assert (answer.status_code, says in answer.json["error"]) == (status, True), answer.text
    assert node.peers == set()
    assert script.get("/connections").json["items"] == []


@only_one_database
def test_who_may_not_use_the_service_gets_no_configuration(script: Script, node: AgentServer) -> None:
    """It is no refusal of the token, which apps of API v3 would be told by 401 and scripts by 403."""
    add_account("alice")
    script.patch("/users/alice", {"disabled": True})
    answer = script.post("/users/alice/configurations", {"profile_id": "lab", "protocol": "wireguard"})

    assert answer.status_code == 409
    assert "disabled" in answer.json["error"]
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["staff"]}])
@only_one_database
def test_user_without_access_gets_no_configuration(script: Script, node: AgentServer) -> None:
    add_account("alice")
    answer = script.post("/users/alice/configurations", {"profile_id": "lab", "protocol": "wireguard"})

    assert (answer.status_code, "may not use" in answer.json["error"]) == (409, True)


def test_connections_are_filtered(
    script: Script, make_nodes: Callable[..., list[AgentServer]], make_app_user: Callable[..., VpnApp]
) -> None:
    make_nodes(2)
    make_app_user("alice").connect()
    add_account("bob")
    lab = configured(script, "bob", profile_id="lab", node="node1")
    openvpn = configured(script, "bob", protocol="openvpn", node="node0")
    with transaction() as db:
        db.add(
            VpnSession(
                node_number=1, session_id="s", connection_id=lab["connection_id"], user_name="bob",
                profile_id="lab", protocol="wireguard", ipv4="10.63.4.2", started_at=utc_now(),
            )
        )  # fmt: skip

    def ids(**query: str) -> set[str]:
        return {found["id"] for found in script.get("/connections", **query).json["items"]}

    of_lab, of_openvpn = lab["connection_id"], openvpn["connection_id"]
    everything = ids()
    (of_alice,) = everything - {of_lab, of_openvpn}
    assert ids(user="alice") == {of_alice}
    assert ids(user="bob") == {of_lab, of_openvpn}
    assert ids(user="nobody") == set()
    assert ids(profile="lab") == ids(active="true") == {of_lab}
    assert ids(active="false") == {of_alice, of_openvpn}
    assert ids(protocol="openvpn") == {of_openvpn}
    assert of_lab in ids(node="node1")
    assert of_openvpn not in ids(node="node1")
    assert ids(user="bob", protocol="wireguard") == {of_lab}
    (active,) = script.get("/connections", active="true").json["items"]
    assert active["active"] is True
    assert active["sessions"][0]["ipv4"] == "10.63.4.2"


def test_connection_is_ended_at_its_node(script: Script, node: AgentServer) -> None:
    add_account("alice")
    made = configured(script)["connection_id"]

    assert script.delete(f"/connections/{made}").json == {"connections_ended": 1}
    assert node.peers == set()
    assert script.delete(f"/connections/{made}").status_code == 404
    assert script.get(f"/connections/{made}").status_code == 404
    last = acts()[-1]
    assert (last.action, last.object, last.actor, last.source, last.details) == (
        "connection ended", "alice", "api:script", "127.0.0.1",
        {"connection": made, "profile": "employees", "node": "node0"},
    )  # fmt: skip


@pytest.mark.parametrize("named", ["x", "' OR 1=1 --", "%00", "A" * 32, "0" * 33, "..", "%2e%2e"])
def test_what_is_no_connection_is_not_found(script: Script, named: str) -> None:
    assert script.get(f"/connections/{named}").status_code == 404


# Nodes


def test_nodes_are_listed_and_shown(script: Script, make_nodes: Callable[..., list[AgentServer]]) -> None:
    make_nodes(2)
    with transaction() as db:
        db.execute(update(NodeStatus).where(NodeStatus.node_number == 1).values(answered_at=None))

    listed = script.get("/nodes").json
    assert [(n["name"], n["state"]) for n in listed["items"]] == [("node0", "up"), ("node1", "never seen")]
    assert listed["next"] is None
    shown = script.get("/nodes/node0").json
    assert shown | listed["items"][0] == shown
    assert [p["profile"] for p in shown["profiles"]] == ["employees", "lab", "legacy"]
    assert script.get("/nodes/nowhere").json == {"error": "no node 'nowhere'"}


def test_maintenance_is_set_at_the_node_and_users_are_told(script: Script, node: AgentServer) -> None:
    cut_at = utc_now() + timedelta(hours=1)
    on = script.put(
        "/nodes/node0/maintenance", {"on": True, "notice": "New <disks>", "cut_at": cut_at.isoformat()}
    )

    assert on.status_code == 200
    assert (on.json["maintenance"], on.json["notice"], on.json["cut_at"]) == (
        True, "New <disks>", shown_time(cut_at)
    )  # fmt: skip
    assert node.maintenance is True
    off = script.put("/nodes/node0/maintenance", {"on": False})
    assert (off.json["maintenance"], off.json["notice"], off.json["cut_at"]) == (False, None, None)
    assert node.maintenance is False
    assert [(a.action, a.actor, a.object, a.source) for a in acts()[-2:]] == [
        ("node.maintenance", "api:script", "node0", "127.0.0.1")
    ] * 2


@pytest.mark.parametrize("downloads", [None, False, True])
def test_cut_that_users_are_told_of_comes(
    script: Script,
    make_app_user: Callable[..., VpnApp],
    node: AgentServer,
    agents: Agents,
    downloads: bool | None,
) -> None:
    make_app_user("alice").connect()
    download = configured(script)["connection_id"]
    cut_at = utc_now().replace(microsecond=0) + timedelta(hours=1)
    body = {"on": True, "cut_at": cut_at.isoformat()}
    more = {} if downloads is None else {"downloads": downloads}
    assert script.put("/nodes/node0/maintenance", body | more).status_code == 200

    maintenance.cut_due(agents, cut_at - timedelta(seconds=1))
    assert len(node.peers) == 2
    maintenance.cut_due(agents, cut_at)

    assert node.peers == (set() if downloads else {download})
    shown = script.get("/nodes/node0").json
    assert (shown["maintenance"], shown["cut_at"]) == (True, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "'on' is missing"),
        ({"on": "true"}, "on: true or false"),
        ({"on": True, "downloads": True}, "downloads: goes with cut_at"),
        ({"on": False, "notice": "x"}, "go with maintenance on"),
        ({"on": True, "notice": ""}, "notice: use 1 to 500"),
        ({"on": True, "notice": " "}, "notice: use printable"),
        ({"on": True, "notice": "a\nb"}, "notice: use printable"),
        ({"on": True, "notice": "x" * 501}, "notice: use 1 to 500"),
        ({"on": True, "cut_at": "2001-01-01T00:00:00Z"}, "over already"),
        ({"on": True, "cut_at": "0001-01-01T00:00:00+14:00"}, "with its zone"),
        ({"on": True, "cut_at": "2099-01-01T00:00:00"}, "with its zone"),
        ({"on": True, "cut_at": "2099-02-30T00:00:00Z"}, "with its zone"),
        ({"on": True, "cut_at": "2099-W01-1T00:00:00Z"}, "with its zone"),
        ({"on": True, "cut_at": "tomorrow"}, "with its zone"),
        ({"on": True, "cut_at": 4070908800}, "cut_at: a text"),
    ],
)
@only_one_database
def test_wrong_maintenance_changes_nothing(
    script: Script, node: AgentServer, body: dict[str, Any], says: str
) -> None:
    answer = script.put("/nodes/node0/maintenance", body)

    assert (answer.status_code, says in answer.json["error"]) == (400, True), answer.text
    assert node.maintenance is False


@only_one_database
def test_node_that_does_not_answer_is_an_outage(script: Script, node: AgentServer) -> None:
    node.mode = "refuse"
    answer = script.put("/nodes/node0/maintenance", {"on": True})

    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert script.get("/nodes/node0").json["maintenance"] is False


def test_drain_cuts_apps_and_spares_downloads(
    script: Script, make_app_user: Callable[..., VpnApp], node: AgentServer
) -> None:
    make_app_user("alice").connect()
    download = configured(script)["connection_id"]

    drained = script.post("/nodes/node0/drain", {"notice": "New disks"}).json
    assert (drained["connections_ended"], drained["node"]["notice"]) == (1, "New disks")
    assert node.maintenance is True
    assert node.peers == {download}
    assert script.post("/nodes/node0/drain", {"downloads": True}).json["connections_ended"] == 1
    assert node.peers == set()
    assert {a.actor for a in acts() if a.action == "node.drain"} == {"api:script"}


def test_node_is_handed_everything_at_once(script: Script, node: AgentServer) -> None:
    add_account("alice")
    configured(script)
    node.connections.clear()

    assert script.post("/nodes/node0/reconcile").json == {"added": 1, "removed": 0}
    assert script.post("/nodes/node0/reconcile", {"confirm": False}).json == {"added": 0, "removed": 0}
    assert len(node.peers) == 1


def test_another_machine_has_to_be_confirmed(script: Script, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(NodeStatus).values(instance_id="f" * 32))

    refused = script.post("/nodes/node0/reconcile", {})
    assert (refused.status_code, "another machine" in refused.json["error"]) == (409, True)
    assert script.post("/nodes/node0/reconcile", {"confirm": True}).status_code == 200
    assert script.post("/nodes/node0/reconcile", {}).status_code == 200


@pytest.mark.parametrize("path", ["/nodes/nowhere", "/nodes/a%2fb", "/nodes/%3Cb%3E", "/nodes/..%2f"])
@only_one_database
def test_what_is_no_node_is_not_found(script: Script, path: str) -> None:
    assert script.get(path).status_code == 404


def test_profiles_and_status_are_shown(script: Script, node: AgentServer) -> None:
    profiles = script.get("/profiles").json["items"]
    assert [p["id"] for p in profiles] == ["employees", "lab", "legacy"]
    assert [p["protocols"] for p in profiles] == [["wireguard", "openvpn"], ["wireguard"], ["openvpn"]]
    assert profiles[0]["nodes"] == ["node0"]
    status = script.get("/status").json
    assert [n["state"] for n in status["nodes"]] == ["up"]
    assert [p["profile_id"] for p in status["profiles"]] == ["employees", "lab", "legacy"]
    assert status["profiles"][0]["wireguard_max_connection_count"] > 0


# History and audit log


def test_every_act_says_on_whom_and_where_it_came_from(
    app: Flask, make_app_user: Callable[..., VpnApp], node: AgentServer
) -> None:
    """A4: each call that changes something, as on the pages."""
    script = Script(app, source=ELSEWHERE)
    for changed in ({"permissions": ["staff"]}, {"permissions": [], "disabled": True}, {"disabled": False}):
        script.post("/users", {"name": "alice", "exists_ok": True})
        assert script.patch("/users/alice", changed).status_code == 200
    assert script.post("/users/alice/link").status_code == 201
    made = configured(script)["connection_id"]
    assert script.delete(f"/connections/{made}").status_code == 200
    configured(script)
    device = make_app_user("bob")
    device.connect()
    assert script.put("/nodes/node0/maintenance", {"on": True}).status_code == 200
    assert script.post("/nodes/node0/drain", {"downloads": True}).json["connections_ended"] == 2
    assert script.post("/nodes/node0/reconcile").status_code == 200
    assert script.delete("/users/bob/authorizations").status_code == 200
    assert script.delete("/users/alice").status_code == 200

    found = [act for act in acts() if act.actor == "api:script"]
    assert [(act.action, act.object) for act in found if act.source != ELSEWHERE] == []
    assert {act.action: act.object for act in found} == {
        "user added": "alice",
        "permissions set": "alice",
        "user disabled": "alice",
        "user enabled": "alice",
        "one-time link made": "alice",
        "configuration made": "alice",
        "connection ended": "alice",
        "node.maintenance": "node0",
        "node.drain": "node0",
        "node.reconcile": "node0",
        "app ended": "bob",
        "user deleted": "alice",
    }
    (first, _second) = (act for act in found if act.action == "configuration made")
    assert first.details == {"connection": made, "profile": "employees", "node": "node0"}


def test_configuration_without_its_audit_row_is_not_made(script: Script, node: AgentServer) -> None:
    """A4: they are one transaction."""
    add_account("alice")
    already = len(acts())
    with transaction() as db:
        db.execute(text("ALTER TABLE audit_events RENAME TO away"))
    try:
        script.http.application.config["PROPAGATE_EXCEPTIONS"] = False
        answer = script.post("/users/alice/configurations", {"profile_id": "lab", "protocol": "wireguard"})
    finally:
        with transaction() as db:
            db.execute(text("ALTER TABLE away RENAME TO audit_events"))

    assert answer.status_code in (500, 503)
    assert script.get("/connections").json["items"] == []
    assert node.peers == set()
    assert len(acts()) == already


def test_configuration_that_no_node_took_is_recorded_as_made_and_withdrawn(
    script: Script, make_nodes: Callable[..., list[AgentServer]]
) -> None:
    """The audit log says what was, and changes no row."""
    for node in make_nodes(2):
        node.mode = "refuse"
    add_account("alice")
    answer = script.post("/users/alice/configurations", {"profile_id": "lab", "protocol": "wireguard"})

    assert answer.status_code == 503
    found = acts()[-4:]
    assert [act.action for act in found] == [
        "configuration made", "configuration withdrawn", "configuration made", "configuration withdrawn"
    ]  # fmt: skip
    assert [act.details["connection"] for act in found[::2]] == [a.details["connection"] for a in found[1::2]]
    assert {(act.object, act.actor, act.source) for act in found} == {("alice", "api:script", "127.0.0.1")}


def sessions(count: int, **values: Any) -> None:
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [
        {
            "node_number": number % 2, "session_id": f"s{number:04}", "connection_id": f"{number:032x}",
            "user_name": ("alice", "bob", None)[number % 3], "profile_id": ("employees", "lab")[number % 2],
            "protocol": ("wireguard", "openvpn")[number % 2],
            # Several at the same moment.
            "started_at": begin + timedelta(minutes=number // 4), "ended_at": None,
            "sent_bytes": 2**40,
        }
        | values
        for number in range(count)
    ]  # fmt: skip
    with transaction() as db:
        db.execute(insert(VpnSession), rows)


def test_sessions_are_filtered(script: Script, node: AgentServer) -> None:
    sessions(24)

    def ids(**query: str) -> list[str]:
        return [found["id"] for found in script.get("/sessions", **query).json["items"]]

    assert len(ids()) == 24
    assert ids()[0].startswith("s002")
    assert set(ids(user="alice")) == {f"s{n:04}" for n in range(0, 24, 3)}
    assert set(ids(profile="lab")) == set(ids(protocol="openvpn")) == {f"s{n:04}" for n in range(1, 24, 2)}
    assert set(ids(node="node0")) == {f"s{n:04}" for n in range(0, 24, 2)}
    assert ids(node="node1") == []  # no such node any more: its sessions have its number
    assert ids(connection=f"{7:032x}") == ["s0007"]
    # From, and before; any zone.
    times = {"from": "2026-11-01T01:01:00+01:00", "until": "2026-11-01T00:02:00Z"}
    assert set(ids(**times)) == {"s0004", "s0005", "s0006", "s0007"}
    assert ids(user="alice", profile="lab", until="2026-11-01T00:01:00Z") == ["s0003"]
    (found,) = script.get("/sessions", connection=f"{7:032x}").json["items"]
    assert found | {"node": "1", "user": "bob", "sent_bytes": 2**40, "ended_at": None} == found
    assert found["started_at"] == "2026-11-01T00:01:00Z"


def test_audit_log_is_filtered(script: Script) -> None:
    script.post("/users", {"name": "alice"})
    users.add("bob", actor="test", now=datetime(2020, 1, 1, tzinfo=UTC))

    def found(**query: str) -> list[tuple[str, str]]:
        return [(a["actor"], a["object"]) for a in script.get("/audit", **query).json["items"]]

    assert found() == [("api:script", "alice"), ("cli", "script"), ("test", "bob")]
    assert found(actor="test") == [("test", "bob")]
    assert found(action="token made") == [("cli", "script")]
    assert found(object="alice") == [("api:script", "alice")]
    assert found(until="2021-01-01T00:00:00Z") == [("test", "bob")]
    assert len(found(**{"from": "2021-01-01T00:00:00Z"})) == 2
    assert found(actor="a") == []


# Paging


@pytest.mark.parametrize("limit", [1, 50, 119, 120, 200])
def test_every_item_is_met_once_page_by_page(script: Script, node: AgentServer, limit: int) -> None:
    now = utc_now()
    # By code points or by a language, as the database sorts: each once and in the database's order.
    names = [f"{'aBé_-Zß😀'[n % 8]}{'x' * (n % 3) * 80}{n}" for n in range(120)]
    with transaction() as db:
        db.execute(insert(User), [{"name": n, "permissions": [], "created_at": now} for n in names])
        db.execute(
            insert(AuditEvent),
            [{"at": now, "actor": "cli", "action": "test", "details": {}} for _ in range(118)],
        )
        user_id = db.scalar(select(User.id).limit(1))
        db.execute(
            insert(Connection),
            [
                {
                    "id": f"{n * 7919 % 120:032x}", "user_id": user_id, "node_number": 0,
                    "profile_id": "employees", "protocol": "openvpn", "display_name": "x", "created_at": now,
                    "expires_at": now, "generation": 0,
                }
                for n in range(120)
            ],
        )  # fmt: skip
    sessions(120)

    for path, key in (("/users", "name"), ("/connections", "id"), ("/sessions", "id"), ("/audit", "id")):
        if limit == 1 and path != "/users":
            continue
        found = [item[key] for item in script.all_items(path, limit=limit)]
        assert len(found) == len(set(found)) == 120, path
    assert {u["name"] for u in script.all_items("/users", limit=limit)} == set(names)
    started = [s["started_at"] for s in script.all_items("/sessions", limit=limit)]
    assert started == sorted(started, reverse=True)


def test_longest_names_have_a_next_page(script: Script) -> None:
    names = ["😀" * 254 + end for end in "abc"]
    for name in names:
        script.post("/users", {"name": name})

    assert {u["name"] for u in script.all_items("/users", limit=1)} == set(names)


def test_what_comes_and_goes_meanwhile_makes_nobody_appear_twice(script: Script) -> None:
    for name in "bdf":
        script.post("/users", {"name": name})
    first = script.get("/users", limit=2).json
    script.delete("/users/d")
    for name in "ace":
        script.post("/users", {"name": name})
    rest = script.get("/users", cursor=first["next"]).json

    assert [u["name"] for u in first["items"]] == ["b", "d"]
    assert [u["name"] for u in rest["items"]] == ["e", "f"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "limit: use 1 to 200"),
        ("limit=201", "limit: use 1 to 200"),
        ("limit=-1", "limit: use 1 to 200"),
        ("limit=many", "limit: a whole number"),
        ("limit=1e1", "limit: a whole number"),
        ("limit=" + "9" * 5000, "limit: a whole number"),
        ("limit=%D9%A3", "limit: a whole number"),  # an Arabic three
        ("limit=", "limit: a whole number"),
        ("limit=5&limit=6", "limit: comes 2 times"),
        ("cursor=x", "cursor: use what"),
        ("cursor=W10", "cursor: use what"),
        ("cursor=" + "W" * 2001, "cursor: use 0 to 2000"),
        ("cursor=bnVsbA&limit=3", "cursor: use what"),
        ("page=2", "unknown parameter 'page'; known are disabled, search, limit, cursor"),
        ("disabled=yes", "disabled: use true or false"),
        ("disabled", "disabled: use true or false"),
    ],
)
@only_one_database
def test_wrong_query_is_refused(script: Script, query: str, says: str) -> None:
    answer = script.call("GET", "/users", query_string=query)

    assert (answer.status_code, says in answer.json["error"]) == (400, True), answer.text


def test_cursor_of_another_list_is_refused(script: Script) -> None:
    sessions(3)
    cursor = script.get("/sessions", limit=1).json["next"]

    for path in ("/users", "/connections", "/audit"):
        assert script.get(path, cursor=cursor).status_code == 400


@pytest.mark.parametrize("value", ["\0", "'", "%", "_", "x" * 300, "\ufffd", "😀"])
@pytest.mark.parametrize("path", ["/connections", "/sessions", "/audit"])
def test_hostile_filters_find_nothing(script: Script, node: AgentServer, path: str, value: str) -> None:
    sessions(3)
    for name in ("user", "profile", "node", "connection", "actor", "action", "object"):
        answer = script.get(path, **{name: value})
        assert answer.status_code in (200, 400), (name, answer.text)
        if answer.status_code == 200:
            assert answer.json["items"] == []


# Tokens


def test_scopes_are_what_the_table_says(app: Flask, make_nodes: Callable[..., list[AgentServer]]) -> None:
    """The table: which call needs which scope. With every other scope together it is refused."""
    assert {operation.name: str(operation.scope) for operation in OPERATIONS} == TABLE
    for number, scope in enumerate(Scope):
        others = [other for other in Scope if other != scope]
        lacking = Script(app, make_token(f"lacking-{number}", others))
        having = Script(app, make_token(f"having-{number}", [scope]))
        for operation in OPERATIONS:
            path = operation.path
            for name in parameters(path):
                path = path.replace(f"{{{name}}}", "9999")
            if operation.scope == scope:
                refused = lacking.call(operation.method, path)
                assert (refused.status_code, str(scope) in refused.json["error"]) == (403, True), operation
                assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
                assert having.call(operation.method, path).status_code in (200, 400, 404, 415), operation
            else:
                assert having.call(operation.method, path).status_code == 403, operation


TABLE = {
    "list_users": "users:read",
    "add_user": "users:write",
    "get_user": "users:read",
    "change_user": "users:write",
    "delete_user": "users:write",
    "make_link": "users:write",
    "list_authorizations": "users:read",
    "end_authorizations": "users:write",
    "end_authorization": "users:write",
    "list_connections_of_user": "connections:read",
    "make_configuration": "configurations:write",
    "list_connections": "connections:read",
    "get_connection": "connections:read",
    "end_connection": "connections:write",
    "list_nodes": "nodes:read",
    "get_node": "nodes:read",
    "set_maintenance": "nodes:write",
    "drain_node": "nodes:write",
    "reconcile_node": "nodes:write",
    "list_profiles": "nodes:read",
    "status": "nodes:read",
    "list_sessions": "history:read",
    "list_acts": "audit:read",
}


def every_call(script: Script) -> list[tuple[str, int]]:
    found = []
    for operation in OPERATIONS:
        path = operation.path.replace("{authorization_id}", "1")
        for name in parameters(path):
            path = path.replace(f"{{{name}}}", "alice")
        found.append((operation.name, script.call(operation.method, path).status_code))
    return found


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer cwa_",
        "Bearer cwa_" + "A" * 43,
        "Bearer cwa_" + "A" * 5000,
        "Bearer cwa_' OR 1=1 --",
        "Basic cm9vdDpyb290",
        "Token {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {token} {token}",
    ],
)
@only_one_database
def test_call_without_a_good_token_is_refused(app: Flask, authorization: str | None) -> None:
    token = make_token()
    headers = {} if authorization is None else {"Authorization": authorization.format(token=token)}
    answer = app.test_client().get(f"{API}/users", headers=headers)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="Admin API"')
    assert list(answer.json) == ["error"]
    assert token not in answer.text


@only_one_database
def test_token_is_taken_from_the_header_only(app: Flask) -> None:
    token = make_token()
    client = app.test_client()

    assert client.get(f"{API}/users", query_string={"access_token": token}).status_code == 401
    assert client.post(f"{API}/users", data={"access_token": token}).status_code == 401
    client.set_cookie("token", token, domain="vpn.example.org")
    assert client.get(f"{API}/users").status_code == 401
    assert client.get(f"{API}/users", headers={"Authorization": f"bearer {token}"}).status_code == 200


@only_one_database
def test_session_of_an_admin_and_token_of_an_app_are_no_tokens(
    app: Flask, make_app_user: Callable[..., VpnApp]
) -> None:
    root = add_user(ADMIN, ["admin"])
    answer = browser(app, root).get(f"{API}/users")
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (401, False)
    device = make_app_user("alice", ["admin"])
    assert Script(app, device.tokens["access_token"]).get("/users").status_code == 401
    # And the other way round.
    device.tokens = {"access_token": make_token()}
    assert device.info().status_code == 401


def test_expired_and_revoked_tokens_are_good_for_nothing(app: Flask) -> None:
    expiring = Script(app, make_token("expiring", life=timedelta(hours=1)), source=ELSEWHERE)
    revoked = Script(app, make_token("revoked"), source=ATTACKER)
    assert (expiring.get("/users").status_code, revoked.get("/users").status_code) == (200, 200)

    with transaction() as db:
        db.execute(update(ApiToken).where(ApiToken.name == "expiring").values(expires_at=utc_now()))
    tokens.revoke("revoked", actor="test", now=utc_now())

    for script in (expiring, revoked):
        statuses = {status for _name, status in every_call(script)[:15]}
        assert statuses == {401}


def test_token_of_an_admin_is_good_while_its_maker_is_one(app: Flask) -> None:
    add_account(ADMIN, permissions=["admin"])
    script = Script(app, make_token("of-root", maker=ADMIN))
    now = utc_now()

    def status() -> int:
        return script.get("/users").status_code

    assert status() == 200
    users.set_permissions(ADMIN, ["helpdesk"], access_permissions=None, actor="test", now=now)
    assert status() == 401
    users.set_permissions(ADMIN, ["admin"], access_permissions=None, actor="test", now=now)
    assert status() == 200
    users.disable(ADMIN, actor="test", now=now)
    assert status() == 401
    users.enable(ADMIN, actor="test", now=now)
    assert status() == 200
    users.delete(ADMIN, actor="test", now=now)
    assert status() == 401
    # Somebody else who gets the name gets no token with it.
    add_account(ADMIN, permissions=["admin"])
    assert status() == 401


@pytest.mark.parametrize("body", [{"permissions": []}, {"disabled": True}])
def test_token_does_not_take_its_own_maker_away(app: Flask, body: dict[str, Any]) -> None:
    add_account(ADMIN, permissions=["admin"])
    script = Script(app, make_token("of-root", maker=ADMIN))

    assert script.patch(of_user(ADMIN), body).status_code == 409
    assert script.delete(of_user(ADMIN)).status_code == 409
    assert script.get(of_user(ADMIN)).json["permissions"] == ["admin"]


def test_wrong_tokens_are_throttled_by_source_and_keep_nobody_out(app: Flask) -> None:
    bad = Script(app, "cwa_" + "A" * 43, source=ATTACKER)
    good = make_token()
    statuses = [bad.get("/users").status_code for _ in range(tokens.PER_SOURCE.burst + 3)]

    assert statuses == [401] * tokens.PER_SOURCE.burst + [429] * 3
    assert int(bad.get("/users").headers["Retry-After"]) >= 1
    assert Script(app, "nonsense", source=ELSEWHERE).get("/users").status_code == 401
    # Behind the same address.
    assert Script(app, good, source=ATTACKER).get("/users").status_code == 200


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "portal_app.events" and record.levelno == logging.WARNING
    ]


def test_wrong_tokens_are_logged_with_their_source_until_they_are_throttled(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: with their source and without the token; a flood of them does not fill the log."""
    monkeypatch.setattr(tokens, "PER_SOURCE", Limit("admin API source", burst=3, refill_seconds=3600))
    for number in range(7):
        Script(app, "cwa_" + "A" * 43 if number % 2 else "no token", source=ATTACKER).get("/users")

    refused = [f"event=api_token_refused source={ATTACKER}"] * 3
    assert warnings(caplog) == [*refused, f"event=api_tokens_throttled source={ATTACKER}"]
    assert "AAAA" not in caplog.text


def test_call_beyond_the_scopes_of_its_token_is_logged(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """A3."""
    reader = Script(app, make_token("reader", [Scope.USERS_READ]), source=ELSEWHERE)
    assert reader.get("/users").status_code == 200
    assert warnings(caplog) == []

    assert reader.post("/users", {"name": "alice"}).status_code == 403
    assert warnings(caplog) == [f"event=api_scope_missing token=reader scope=users:write source={ELSEWHERE}"]


def test_use_is_noted_at_most_once_a_minute(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(app)

    def last_used() -> datetime | None:
        with transaction(read_only=True) as db:
            return db.scalar(select(ApiToken.last_used_at))

    assert last_used() is None
    script.get("/users")
    first = last_used()
    assert first is not None
    script.get("/users")
    assert last_used() == first
    with transaction() as db:
        db.execute(update(ApiToken).values(last_used_at=first - timedelta(seconds=61)))
    script.get("/users")
    assert last_used() >= first


def test_token_is_stored_hashed_and_no_secret_is_logged(
    app: Flask, node: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script = Script(app)
    script.post("/users", {"name": "alice"})
    link = script.post("/users/alice/link").json["url"].rsplit("/", 1)[1]
    key = {"Idempotency-Key": "k"}
    body = {"profile_id": "employees", "protocol": "wireguard"}
    made = script.post("/users/alice/configurations", body, headers=key).json["configuration"]
    private_key = made.split("PrivateKey = ")[1].split("\n")[0]
    Script(app, script.token[:-1] + "!").get("/users")
    Script(app, "cwa_" + "B" * 43).get("/users")

    with transaction(read_only=True) as db:
        stored = repr([tuple(row) for row in db.execute(select(ApiToken.__table__))])
        stored += repr([tuple(row) for row in db.execute(select(IdempotentCall.__table__))])
        stored += repr([tuple(row) for row in db.execute(select(AuditEvent.__table__))])
    for secret in (script.token, link, private_key, "B" * 43):
        assert secret not in stored
        assert secret not in caplog.text


# Idempotency


def with_key(key: str) -> dict[str, Any]:
    return {"headers": {"Idempotency-Key": key}}


def test_same_call_with_the_same_key_is_done_once(script: Script) -> None:
    first = script.post("/users", {"name": "alice"}, **with_key("k"))
    script.patch("/users/alice", {"permissions": ["staff"]})
    again = script.post("/users", {"name": "alice"}, **with_key("k"))

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert [a.action for a in acts()].count("user added") == 1
    assert script.post("/users", {"name": "alice"}, **with_key("l")).status_code == 409


def test_other_request_with_the_same_key_is_refused(script: Script) -> None:
    script.post("/users", {"name": "alice"}, **with_key("k"))

    for method, path, body in (
        ("POST", "/users", {"name": "bob"}),
        ("PATCH", "/users/alice", {"disabled": True}),
        ("DELETE", "/users/alice", None),
    ):
        assert script.call(method, path, body, **with_key("k")).status_code == 422
    assert script.get("/users/bob").status_code == 404
    assert script.get("/users/alice").json["disabled"] is False


def test_keys_of_two_tokens_are_not_the_same(app: Flask, script: Script) -> None:
    script.post("/users", {"name": "alice"}, **with_key("k"))
    other = Script(app, make_token("other"))

    assert other.post("/users", {"name": "bob"}, **with_key("k")).status_code == 201


def test_what_failed_is_tried_again(script: Script, node: AgentServer) -> None:
    body = {"on": True}
    node.mode = "refuse"
    assert script.put("/nodes/node0/maintenance", body, **with_key("k")).status_code == 503
    node.mode = "ok"
    assert script.put("/nodes/node0/maintenance", body, **with_key("k")).status_code == 200
    assert script.patch("/users/alice", {"disabled": True}, **with_key("l")).status_code == 404
    add_account("alice")
    assert script.patch("/users/alice", {"disabled": True}, **with_key("l")).status_code == 200


@pytest.mark.parametrize("error", [Unavailable("the database did not confirm a change"), RuntimeError("x")])
def test_call_that_may_have_been_done_is_not_done_twice(
    script: Script, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """I6: the answer to its commit was lost, or no other database has what was committed."""
    add = users.add

    def add_and_fail(*values: Any, **details: Any) -> bool:
        add(*values, **details)
        raise error

    script.http.application.config["PROPAGATE_EXCEPTIONS"] = False
    with monkeypatch.context() as patch:
        patch.setattr("portal_app.services.users.add", add_and_fail)
        assert script.post("/users", {"name": "alice"}, **with_key("k")).status_code in (500, 503)
    assert script.delete("/users/alice").status_code == 200
    again = script.post("/users", {"name": "alice"}, **with_key("k"))

    assert (again.status_code, "look whether it was" in again.json["error"]) == (409, True)
    assert script.get("/users/alice").status_code == 404
    assert script.post("/users", {"name": "alice"}, **with_key("l")).status_code == 201


def test_configuration_that_no_node_took_is_tried_again(script: Script, node: AgentServer) -> None:
    """Nothing of the first call is left: its connection was taken back."""
    add_account("alice")
    body = {"profile_id": "employees", "protocol": "wireguard"}
    node.mode = "refuse"
    assert script.post("/users/alice/configurations", body, **with_key("k")).status_code == 503
    assert script.get("/connections").json["items"] == []
    node.mode = "ok"
    seen_up(0)

    assert script.post("/users/alice/configurations", body, **with_key("k")).status_code == 201
    assert len(script.get("/connections").json["items"]) == 1


@pytest.mark.parametrize("what", ["configurations", "link"])
def test_secret_answer_is_not_kept_and_the_call_not_repeated(
    script: Script, node: AgentServer, what: str
) -> None:
    add_account("alice")
    body = {"profile_id": "employees", "protocol": "wireguard"} if what == "configurations" else None
    assert script.post(f"/users/alice/{what}", body, **with_key("k")).status_code == 201
    again = script.post(f"/users/alice/{what}", body, **with_key("k"))

    assert again.status_code == 409
    assert "secret" in again.json["error"]
    assert len(node.peers) == (what == "configurations")
    with transaction(read_only=True) as db:
        assert db.scalars(select(IdempotentCall.body)).all() == [None]


def test_call_that_is_under_way_is_not_done_twice(script: Script) -> None:
    """Also one that was cut short with its portal: nobody knows whether it was done."""
    with transaction() as db:
        token_id = db.scalar(select(ApiToken.id))
    path = f"{API}/users?".encode()
    digest = idempotency.digest([b"POST", path, b'{"name": "alice"}'])
    assert idempotency.begin(idempotency.Key(token_id, "k", digest), now=utc_now()) is None

    answer = script.call(
        "POST", "/users", data='{"name": "alice"}', content_type="application/json", **with_key("k")
    )
    assert (answer.status_code, "under way" in answer.json["error"]) == (409, True)
    assert script.get("/users/alice").status_code == 404


def test_key_is_kept_for_a_day(script: Script) -> None:
    script.post("/users", {"name": "alice"}, **with_key("k"))
    script.post("/users", {"name": "bob"}, **with_key("l"))
    with transaction() as db:
        db.execute(
            update(IdempotentCall)
            .where(IdempotentCall.key == "k")
            .values(created_at=utc_now() - timedelta(days=1))
        )

    assert script.post("/users", {"name": "alice"}, **with_key("k")).status_code == 409
    with transaction() as db:
        db.execute(update(IdempotentCall).values(created_at=utc_now() - timedelta(days=1)))
    assert retention.prune(retention=timedelta(days=30), now=utc_now()) == {"idempotent_calls": 1}


@pytest.mark.parametrize("key", ["", "x" * 65, "two words", "ü", "a\tb"])
@only_one_database
def test_wrong_key_is_refused(script: Script, key: str) -> None:
    assert script.post("/users", {"name": "alice"}, **with_key(key)).status_code == 400
    assert script.get("/users").json["items"] == []


# The surface


@only_one_database
def test_every_answer_is_json_and_stored_nowhere(script: Script, node: AgentServer) -> None:
    for path in ("/users", "/nodes", "/status", "/openapi.json", "/users/nobody", "/nothing", "/"):
        answer = script.get(path)
        assert answer.content_type == "application/json", path
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Set-Cookie" not in answer.headers


@only_one_database
def test_method_that_is_none_is_refused_with_those_that_are(script: Script) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        answer = script.call(method, "/users")
        assert answer.status_code == 405
        assert {"GET", "POST"} <= set(answer.headers["Allow"].replace(" ", "").split(","))
        assert answer.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/users/../nodes",
        "/users/%2e%2e/nodes",
        "/users/x/../../../../../healthz",
        "/users/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fhealthz",
        "/users/./x",
    ],
)
@only_one_database
def test_path_that_nginx_reads_as_another_one_means_nothing(script: Script, path: str) -> None:
    """It lets in by the path without dots, and hands over the one with them."""
    assert script.get(path).status_code == 404
    assert script.http.get(API + path).status_code == 404


@only_one_database
def test_body_where_none_belongs_is_refused(script: Script) -> None:
    add_account("alice")
    assert script.delete("/users/alice", {"really": True}).status_code == 400
    assert script.post("/users/alice/link", {}).status_code == 400
    assert script.get("/users/alice").status_code == 200


@only_one_database
def test_pages_and_apps_are_as_before(script: Script, client: FlaskClient) -> None:
    with transaction(read_only=True) as db:
        assert db.scalars(select(LocalAccount.user_id)).all() == []
    assert client.get("/api/v3/info").status_code == 401
    assert client.post("/sign-in").status_code == 403
