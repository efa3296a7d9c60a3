"""What people see and do on the portal's pages."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, func, inspect, select, text, update

from portal_app import db as database_module
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import (
    AuditEvent,
    Authorization,
    BrowserSession,
    Connection,
    NodeStatus,
    Offer,
    Profile,
    User,
    VpnSession,
)
from portal_app.services import users
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, add_user, browser, csrf_token
from tests.portal.conftest import seen_up
from tests.portal.pages import elements, form_of, make_configuration, problem, send

HOSTILE = "<script>alert(1)</script>\"'><img src=x>{{7*7}}&"
USER_PAGES = ["/", "/devices", "/configurations", "/account", "/password", "/status"]
ADMIN_PAGES = [
    "/admin/",
    "/admin/nodes",
    "/admin/nodes/0",
    "/admin/profiles",
    "/admin/profiles/employees",
    "/admin/system",
    "/admin/connections",
    "/admin/connections?show=all",
    "/admin/users",
    "/admin/users/1",
    "/admin/users/add",
    "/admin/users/1/permissions",
    "/admin/who-had-it",
    "/admin/history",
    "/admin/statistics",
    "/admin/audit",
    "/admin/tokens",
    "/admin/tokens?show=revoked",
    "/admin/tokens/add",
]
#: Pages that have a script of ours; all others have none.
LIVE_PAGES = ["/", "/admin/connections", "/admin/connections?show=all"]


def signed_in(app: Flask, name: str = "alice", permissions: list[str] | None = None) -> FlaskClient:
    return browser(app, add_user(name, permissions))


def live_connections() -> list[Connection]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(Connection)))


def begin_use(connection: Connection, user_name: str, number: int = 1, **changes: Any) -> None:
    values = {
        "node_number": connection.node_number,
        "session_id": f"{number:032x}",
        "connection_id": connection.id,
        "user_name": user_name,
        "profile_id": connection.profile_id,
        "protocol": connection.protocol,
        "ipv4": connection.ipv4,
        "ipv6": connection.ipv6,
        "started_at": utc_now() - timedelta(minutes=5),
    }
    with transaction() as db:
        db.add(VpnSession(**values | changes))


@pytest.mark.parametrize("url", [*USER_PAGES, *ADMIN_PAGES, "/sign-in", "/nothing-here"])
def test_every_page_is_locked_down(app: Flask, node: AgentServer, url: str) -> None:
    """W4, W5."""
    page = signed_in(app, permissions=["admin"]).get(url, follow_redirects=False)

    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    scripts = list(elements(page.text, "script"))
    if url in LIVE_PAGES:
        (script,) = scripts
        assert f"script-src 'nonce-{script['nonce']}'; connect-src 'self';" in policy
        assert str(script["src"]).startswith(("/static/live.js?v=", "/static/copy.js?v="))
    else:
        assert "script-src 'none'; connect-src 'none';" in policy
        assert scripts == []
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self';" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert page.headers["Cache-Control"] == "no-store"
    assert "camera=()" in page.headers["Permissions-Policy"]
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert not any(
        "style" in e or "onclick" in e for e in elements(page.text, "p", "div", "a", "button", "svg")
    )
    own = [e.get("href") or e.get("src") or "" for e in elements(page.text, "link", "img", "script")]
    assert all(address.startswith(("/static/", "/brand/")) for address in own)


@pytest.mark.parametrize("url", [*USER_PAGES, *ADMIN_PAGES, "/nothing-here"])
def test_every_page_can_be_read_by_a_screen_reader(app: Flask, node: AgentServer, url: str) -> None:
    client = signed_in(app, permissions=["admin"])
    make_configuration(client)
    page = client.get(url).text

    assert [e["lang"] for e in elements(page, "html")] == ["en"]
    assert len(list(elements(page, "h1"))) == 1
    assert len(list(elements(page, "main"))) == 1
    assert len(re.findall(r"<title>[^<]+ · [^<]+</title>", page)) == 1
    labels = {e.get("for") for e in elements(page, "label")}
    for field in elements(page, "input", "select", "textarea"):
        if field.get("type") != "hidden" and "hidden" not in field:
            assert field.get("id") in labels, field
    assert all("scope" in e for e in elements(page, "th"))
    identifiers = [e["id"] for e in elements(page, "h2", "input", "select", "main", "span") if "id" in e]
    assert len(identifiers) == len(set(identifiers))


def test_static_files_are_cached_by_their_content(client: FlaskClient) -> None:
    address = re.search(r'href="(/static/style.css\?v=\w+)"', client.get("/sign-in").text)
    assert address
    with client.get(address[1]) as style:
        assert style.status_code == 200
        assert "immutable" in style.headers["Cache-Control"]
        assert "http" not in style.text, "no third-party host"


def test_hostile_names_are_only_text(app: Flask, node: AgentServer) -> None:
    """W6."""
    client = signed_in(app, HOSTILE, ["admin"])
    assert make_configuration(client, name=HOSTILE[:60]).status_code == 200
    issued = make_configuration(client, "legacy+openvpn+udp", name=HOSTILE[:60])
    with transaction() as db:
        db.execute(update(Profile).values(display_name=HOSTILE[:60]))
        db.execute(update(NodeStatus).values(error=HOSTILE))
    seen_up(0, info={"held": HOSTILE, "problems": [HOSTILE], "v": HOSTILE, "rel_load_average": []})
    for number, connection in enumerate(live_connections()):
        begin_use(connection, HOSTILE, number, origin="<b>origin</b>")

    pages = [client.get(url) for url in [*USER_PAGES, *ADMIN_PAGES]] + [issued]
    for listed in ("/admin/connections", "/admin/users"):
        pages += [client.get(listed, query_string={"search": HOSTILE})]
    for connection in live_connections():
        pages += [client.get("/admin/connections/end", query_string={"connection": connection.id})]
    pages.append(client.get(f"/sign-in/{HOSTILE}"))
    for page in pages:
        assert not list(elements(page.text, "img", "b")), page.request.path
        assert all(str(e.get("src")).startswith("/static/") for e in elements(page.text, "script"))
        assert "49" not in re.findall(r"alert\(1\).*?(49)&", page.text)
    assert "&lt;script&gt;" in pages[0].text


def test_a_wireguard_configuration_is_shown_once_with_text_file_and_code(
    app: Flask, node: AgentServer
) -> None:
    """W22, S9."""
    client = signed_in(app)
    page = make_configuration(client)

    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    config = re.search(r"<textarea[^>]*>([^<]*)</textarea>", page.text)
    assert config
    private_key = re.search(r"PrivateKey = (\S+)", config[1].replace("&#43;", "+"))
    assert private_key
    link = next(e for e in elements(page.text, "a") if "download" in e)
    assert unquote(str(link["href"])).split(",", 1)[1].strip() == config[1].replace("&#43;", "+").strip()
    assert str(link["download"]).endswith(".conf")
    assert list(elements(page.text, "svg", "path"))
    assert node.peers == {c.id for c in live_connections()}
    for url in USER_PAGES:
        assert private_key[1] not in client.get(url).text
    assert private_key[1] not in everything_stored()


def everything_stored() -> str:
    found = []
    with database_module.engine().connect() as connection:
        for table in inspect(connection).get_table_names():
            found += [str(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]  # noqa: S608
    return "\n".join(found)


def test_an_openvpn_configuration_can_be_saved_as_a_file(app: Flask, node: AgentServer) -> None:
    """W22."""
    page = make_configuration(signed_in(app), "legacy+openvpn+tcp", "Laptop")

    assert page.status_code == 200
    link = next(e for e in elements(page.text, "a") if "download" in e)
    config = unquote(str(link["href"]))
    assert config.startswith("data:application/x-openvpn-profile")
    assert "<tls-crypt>" in config
    assert str(link["download"]).endswith(".ovpn")
    assert config.index("1195 tcp") < config.index("1195 udp")
    assert not list(elements(page.text, "path"))[2:], "no code: it would be too dense"


def test_sending_the_form_again_makes_nothing_twice(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    form = form_of(client.get("/configurations").text)
    form |= {"choice": "employees+wireguard+udp", "display_name": "Router"}
    first, reloaded = client.post("/configurations", data=form), client.post("/configurations", data=form)

    assert (first.status_code, reloaded.status_code) == (200, 409)
    assert "was sent before" in problem(reloaded.text)
    assert len(live_connections()) == 1


def test_a_wrong_choice_is_said_at_the_form(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    for choice, name in (
        ("nothing", "Router"),
        ("lab+openvpn+udp", "Router"),
        ("employees+wireguard+udp", " "),
        ("employees+wireguard+udp", "x" * 65),
        ("employees+wireguard+udp", "a\u0007b"),
    ):
        page = make_configuration(client, choice, name)
        assert (page.status_code, bool(problem(page.text))) == (400, True), choice

    assert live_connections() == []


@pytest.mark.parametrize("settings_changes", [{"max_portal_connections": 2}])
def test_a_user_makes_as_many_configurations_as_allowed(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    form = form_of(client.get("/configurations").text)
    assert [make_configuration(client).status_code for _ in range(2)] == [200, 200]
    page = client.get("/configurations").text
    assert "You have 2 of 2" in page
    assert "form_key" not in page

    late = client.post(
        "/configurations", data=form | {"choice": "employees+wireguard+udp", "display_name": "x"}
    )
    assert late.status_code == 403
    assert len(live_connections()) == 2


@pytest.mark.parametrize("settings_changes", [{"max_portal_connections": 0}])
def test_downloads_can_be_switched_off(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    assert "form_key" not in client.get("/configurations").text
    assert "switched off" in client.get("/").text

    assert make_configuration(client).status_code == 403
    assert live_connections() == []


def test_no_capacity_is_said_at_the_form(app: Flask, node: AgentServer) -> None:
    seen_up(0, failing_since=utc_now())
    page = make_configuration(signed_in(app))

    assert page.status_code == 503
    assert page.headers["Retry-After"]
    assert "no capacity" in problem(page.text)


def test_a_user_ends_an_own_configuration_and_the_node_hears_it(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    make_configuration(client)
    connection = live_connections()[0]

    assert send(client, f"/connections/{connection.id}/end").location == "/configurations"
    assert live_connections() == []
    assert node.peers == set()
    assert send(client, f"/connections/{connection.id}/end").status_code == 404


def test_a_user_ends_a_connection_of_an_app_where_it_is_listed(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    assert phone.connect().status_code == 200
    connection = live_connections()[0]
    begin_use(connection, "alice")
    page = phone.browser.get("/devices").text
    assert str(connection.ipv4) in page

    ended = send(phone.browser, f"/connections/{connection.id}/end", next="/devices")
    assert ended.location == "/devices"
    assert live_connections() == []


def test_revoking_an_app_ends_its_connection_and_its_tokens(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    page = phone.browser.get("/devices").text
    assert "eduVPN for Linux" in page
    with transaction(read_only=True) as db:
        authorization_id = db.scalar(select(Authorization.id))

    assert send(phone.browser, f"/apps/{authorization_id}/revoke").location == "/devices"
    assert phone.info().status_code == 401
    assert node.peers == set()
    assert "Nothing yet." in phone.browser.get("/devices").text
    with transaction(read_only=True) as db:
        event = db.scalars(select(AuditEvent).where(AuditEvent.action == "app revoked")).one()
    assert (event.actor, event.object) == ("alice", "alice")
    assert event.details == {"client": "org.eduvpn.app.linux"}


def test_nobody_sees_or_ends_what_is_anothers(app: Flask, node: AgentServer) -> None:
    """W7."""
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    make_configuration(phone.browser, name="Alice's router")
    for number, connection in enumerate(live_connections()):
        begin_use(connection, "alice", number)
    mallory = signed_in(app, "mallory", ["staff"])
    with transaction(read_only=True) as db:
        authorization_id = db.scalar(select(Authorization.id))

    assert send(mallory, f"/apps/{authorization_id}/revoke").status_code == 404
    for connection in live_connections():
        assert send(mallory, f"/connections/{connection.id}/end").status_code == 404
    assert len(live_connections()) == 2
    assert len(node.peers) == 2
    for url in USER_PAGES:
        page = mallory.get(url).text
        assert "Alice" not in page
        assert "eduVPN for Linux" not in page or url == "/", "where every app is offered"
        assert not any(str(c.ipv4) in page for c in live_connections())


def test_what_was_used_earlier_is_listed_with_its_amount(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    make_configuration(client)
    begin_use(live_connections()[0], "alice", ended_at=utc_now(), received_bytes=1536, sent_bytes=3 * 2**20)
    page = client.get("/devices").text

    assert ">Connected<" not in page
    assert "1.5 KiB" in page
    assert "3.0 MiB" in page


def test_profiles_without_the_permission_are_not_there(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["research"]))
    client, researcher = signed_in(app), signed_in(app, "rosa", ["research"])

    assert "Laboratory" not in client.get("/").text + client.get("/configurations").text
    assert make_configuration(client, "lab+wireguard+udp").status_code == 400
    assert "Laboratory" in researcher.get("/").text
    assert make_configuration(researcher, "lab+wireguard+udp").status_code == 200


@pytest.mark.parametrize("url", ADMIN_PAGES)
def test_pages_of_administrators_need_the_right_at_each_request(
    app: Flask, node: AgentServer, url: str
) -> None:
    """W8."""
    assert app.test_client().get(url).status_code == 303
    assert signed_in(app, "bob", ["staff"]).get(url).status_code == 403
    admin = signed_in(app, permissions=["staff", "admin"])
    assert admin.get(url).status_code == 200
    assert "/admin/nodes" not in signed_in(app, "carol").get("/").text
    with transaction() as db:
        db.execute(update(User).where(User.name == "alice").values(permissions=["staff"]))

    assert admin.get(url).status_code == 403


def test_an_administrator_sees_how_the_nodes_are(app: Flask, make_nodes: Any) -> None:
    make_nodes(3)
    seen_up(0, info={"rel_load_average": [80, 1, 1], "cpu_count": 4, "v": "0.1.0", "w_peer_count": 5})
    seen_up(1, failing_since=utc_now(), error="certificate?")
    seen_up(2, maintenance_mode=True)
    with transaction() as db:
        full = Offer.node_number == 1, Offer.profile_id == "lab"
        db.execute(update(Offer).where(*full).values(capacity=10, allocated=9, full_since=utc_now()))
    page = signed_in(app, permissions=["admin"]).get("/admin/nodes").text

    rows = {row.partition("</a>")[0]: row for row in page.split('<th scope="row"><a href="/admin/nodes/')[1:]}
    states = [re.findall(r"<span class=\"tag \w+\">([^<]+)</span>", row)[0] for row in rows.values()]
    assert states == ["Up, busy", "Does not answer", "Maintenance"]
    assert "certificate?" in page
    assert "80%<br><small>work for 3.2 CPU, it has 4</small>" in page
    assert page.count("is nearly full") == 1
    node1 = page.partition(">node1</a>")[2].partition(">node2</a>")[0]
    assert "profile lab: 90% of 10 WireGuard addresses in use" in node1


def test_an_administrator_sees_why_a_node_was_chosen(app: Flask, make_nodes: Any) -> None:
    make_nodes(2)
    seen_up(0, info={"rel_load_average": [41, 1, 1], "o_client_count": 0})
    seen_up(1, maintenance_mode=True)
    make_configuration(signed_in(app))
    (connection,) = live_connections()
    admin = signed_in(app, "root", ["admin"])

    assert connection.choice == (
        "node0: 41 % busy, 1021 free addresses; wireguard: asked for; without node1 (in maintenance);"
        " open to everybody; 1 of 3 configurations by hand"
    )
    listed = "/admin/connections?show=all"
    assert f"<summary>node0</summary><small>{connection.choice}</small>" in admin.get(listed).text

    with transaction() as db:
        db.execute(update(Connection).values(choice=None))
    assert '<td data-label="Node">node0</td>' in admin.get(listed).text


def test_an_administrator_finds_a_connection_by_user_and_by_address(app: Flask, node: AgentServer) -> None:
    for name in ("alice", "bob_1", "bob%2"):
        make_configuration(signed_in(app, name), name="Router")
    admin = signed_in(app, "root", ["admin"])
    by_name = {c.user_id: c for c in live_connections()}

    def users_at(search: str, show: str = "all") -> list[str]:
        page = admin.get("/admin/connections", query_string={"search": search, "show": show}).text
        return sorted(re.findall(r'data-label="User"><a [^>]+>([^<]+)<', page))

    assert users_at("") == ["alice", "bob%2", "bob_1"]
    assert users_at("BOB") == ["bob%2", "bob_1"]
    assert users_at("bob%") == ["bob%2"]
    assert users_at("b_1") == [], "only the begin of a name has an index"
    assert users_at("bob_1") == ["bob_1"]
    assert users_at(str(by_name[1].ipv4)) == ["alice"]
    assert users_at(str(by_name[1].ipv6).upper()) == ["alice"]
    assert users_at("198.51.100.200") == []
    assert users_at("\0") == ["alice", "bob%2", "bob_1"]
    begin_use(by_name[2], "bob_1", ipv4="10.64.0.77", origin="203.0.113.200")
    assert users_at("10.64.0.77") == users_at("203.0.113.200") == ["bob_1"]
    for search in ("10.64.0.77", "203.0.113.200", "BOB", ""):
        assert users_at(search, "now") == ["bob_1"], search
    assert users_at("alice", "now") == users_at(str(by_name[1].ipv4), "now") == []


def test_long_lists_of_connections_have_pages(
    app: Flask, node: AgentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal_app.services.connection_list.PAGE_SIZE", 2)
    for name in ("alice", "bob", "carol"):
        make_configuration(signed_in(app, name))
    admin = signed_in(app, "root", ["admin"])

    first = admin.get("/admin/connections?show=all").text
    assert first.count('data-label="User"') == 2
    assert 'rel="prev"' not in first
    (onward,) = (e["href"] for e in elements(first, "a") if e.get("rel") == "next")
    second = admin.get(str(onward)).text
    assert second.count('data-label="User"') == 1
    assert 'rel="next"' not in second
    (back,) = (e["href"] for e in elements(second, "a") if e.get("rel") == "prev")
    again = admin.get(str(back)).text
    assert again.count('data-label="User"') == 2
    for somewhere in ("99", "x", "٣", "W10", "WzEsMl0", "bnVsbA", "1" * 3000, "\0", *UNUSABLE):
        for query in ({"after": somewhere}, {"before": somewhere}):
            assert admin.get("/admin/connections", query_string=query).status_code == 200


def place(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


#: Cursors of the right shape with values that no database takes.
UNUSABLE = [
    place({"t": moment}, name)
    for moment, name in (
        ("2026-01-01T00:00:00+00:00", "\ud800"),
        ("0001-01-01T00:00:00+14:00", "x"),
        ("9999-12-31T23:59:59-14:00", "x"),
        ("2026-01-01T00:00:00", "x"),
    )
]


@pytest.mark.parametrize(
    ("method", "url", "status"), [("GET", "/nothing", 404), ("DELETE", "/", 405), ("POST", "/apps", 405)]
)
def test_errors_are_readable_pages_that_tell_nothing(
    client: FlaskClient, method: str, url: str, status: int
) -> None:
    """W20."""
    page = client.open(url, method=method)

    assert page.status_code == status
    assert page.mimetype == "text/html"
    assert page.headers["Content-Security-Policy"]
    assert len(list(elements(page.text, "h1"))) == 1
    assert "Traceback" not in page.text


def test_a_bug_is_a_page_that_tells_nothing(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """W20."""
    client = signed_in(app)

    def fail(*_args: object) -> None:
        raise RuntimeError("/etc/causeway SELECT secret")

    monkeypatch.setattr("portal_app.services.profiles.offered", fail)
    page = client.get("/")
    assert page.status_code == 500
    assert "SELECT" not in page.text
    assert "/etc" not in page.text


def test_a_silent_database_is_a_readable_page(app: Flask, tmp_path: Any) -> None:
    """R21."""
    client = signed_in(app)
    database_module.connect_to(f"sqlite:///{tmp_path}/nowhere/portal.sqlite")
    page = client.get("/")

    assert page.status_code == 503
    assert page.headers["Retry-After"]
    assert page.mimetype == "text/html"
    assert "Connections that are up stay up" in page.text
    with client.get("/static/style.css") as style:
        assert style.status_code == 200


def test_a_database_that_only_reads_still_shows_pages(app: Flask, node: AgentServer) -> None:
    """R28: reads work, writes are 503, no node is told anything new."""
    client = signed_in(app)
    form = form_of(client.get("/configurations").text)
    with transaction() as db:
        for session in db.scalars(select(BrowserSession)):
            session.last_seen_at -= timedelta(minutes=5)
    before = len(node.calls)
    with reading_only():
        pages = [client.get(url).status_code for url in USER_PAGES]
        form |= {"choice": "employees+wireguard+udp", "display_name": "Router"}
        written = client.post("/configurations", data=form)

    assert pages == [200] * len(USER_PAGES)
    assert written.status_code == 503
    assert len(node.calls) == before
    assert client.post("/configurations", data=form).status_code == 200


@contextmanager
def reading_only() -> Iterator[None]:
    engine = database_module.engine()
    engine.dispose()
    statement = {
        "sqlite": "PRAGMA query_only = ON",
        "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    }[engine.dialect.name]

    def close_for_writing(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        if engine.dialect.name == "postgresql":
            connection.commit()

    event.listen(engine, "connect", close_for_writing)
    yield
    event.remove(engine, "connect", close_for_writing)
    engine.dispose()


@pytest.mark.parametrize(
    "path", ["/apps/{n}/revoke", "/apps/-1/revoke", "/connections/{n}/end", "/connections/%00/end"]
)
def test_a_number_that_no_row_can_have_is_not_found(node, make_app_user, path):
    """I8."""
    app = make_app_user()
    page = app.browser.get("/devices")

    for number in (2**31, 2**63, 10**40):
        answer = app.browser.post(path.format(n=number), data={"csrf_token": csrf_token(page.text)})
        assert answer.status_code == 404


@pytest.mark.parametrize("path", ["/static/none.css", "/static/"])
def test_what_is_not_there_is_not_cached(client, path):
    assert client.get(path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("client_id", "redirect_uri", "source"),
    [
        ("org.eduvpn.app.linux", "http://127.0.0.1:53211/callback", "http://127.0.0.1:53211"),
        ("org.eduvpn.app.linux", "http://[::1]:53211/callback", "http:"),
        ("org.eduvpn.app.ios", "org.eduvpn.app.ios:/api/callback", "org.eduvpn.app.ios:"),
    ],
)
def test_the_approval_form_may_lead_to_its_app_and_nowhere_else(
    app: Flask, client_id: str, redirect_uri: str, source: str
) -> None:
    """W4, O13; an IPv6 literal is no host-source of the CSP grammar, so its scheme stands for it."""
    phone = VpnApp(app, add_user("alice"), client_id=client_id, redirect_uri=redirect_uri)
    policy = phone.ask().headers["Content-Security-Policy"]

    assert f"form-action 'self' {source};" in policy
    assert "script-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self';" in phone.browser.get("/").headers["Content-Security-Policy"]


def test_who_is_refused_can_sign_out_and_who_is_not_finds_the_way_back(app: Flask) -> None:
    client = signed_in(app)
    forbidden = client.get("/admin/nodes").text
    assert "Go to the start page" in forbidden
    assert "/configurations" in forbidden
    with transaction() as db:
        db.execute(update(User).values(is_disabled=True))
    disabled = client.get("/devices").text

    assert "Go to the start page" not in disabled
    assert "/configurations" not in disabled
    assert "Sign out" in disabled


@pytest.mark.parametrize("field", ["display_name", "choice", "form_key"])
def test_a_field_that_comes_twice_or_is_huge_is_refused(app: Flask, node: AgentServer, field: str) -> None:
    client = signed_in(app)
    form: dict[str, Any] = form_of(client.get("/configurations").text)
    form |= {"choice": "employees+wireguard+udp", "display_name": "Router"}
    assert client.post("/configurations", data=form | {field: ["a", "b"]}).status_code == 400
    assert client.post("/configurations", data=form | {field: "x" * 70_000}).status_code == 413

    assert live_connections() == []


def test_disabling_a_user_cuts_what_was_made_by_hand_and_by_apps(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    make_configuration(phone.browser)
    assert len(node.peers) == 2

    assert users.disable("alice", actor="root", now=utc_now()) == 2
    assert node.peers == set()
    assert phone.info().status_code == 401
    assert phone.refresh().status_code == 400


def test_a_lost_permission_cuts_only_what_it_allowed(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["research"]))
    client = signed_in(app, permissions=["research"])
    make_configuration(client, "lab+wireguard+udp")
    make_configuration(client, "employees+wireguard+udp")
    cut = users.set_permissions("alice", [], access_permissions=None, actor="root", now=utc_now())

    assert cut == 1
    assert [c.profile_id for c in live_connections()] == ["employees"]
    assert len(node.peers) == 1


def test_a_user_is_deleted_with_everything_but_the_log(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    make_configuration(phone.browser)
    assert users.delete("alice", actor="root", now=utc_now()) == 2

    with transaction(read_only=True) as db:
        assert db.scalar(select(func.count()).select_from(User)) == 0
        assert db.scalar(select(func.count()).select_from(Authorization)) == 0
        assert "alice" in list(db.scalars(select(AuditEvent.object)))
    assert node.peers == set()
    assert phone.browser.get("/").status_code == 303
