"""What administrators see of users and connections, what they may do to them, and what it cuts."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import (
    AuditEvent,
    Authorization,
    BrowserSession,
    Connection,
    NodeStatus,
    OneTimeLink,
    Profile,
    User,
)
from portal_app.services import live_usage, users
from portal_app.services.connection_list import sorts
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import VpnApp, add_user, browser, csrf_token
from tests.portal.pages import PASSWORD, add_account, elements, make_configuration, problem, send, sign_in
from tests.portal.test_pages import begin_use, live_connections
from vpn_core.messages import Usage

HOSTILE = "<script>alert(1)</script>\"'><img src=x>{{7*7}}&"
ACTS = ["link", "end", "disable", "enable", "delete", "permissions"]


def admin(app: Flask, name: str = "root", permissions: tuple[str, ...] = ("admin",)) -> FlaskClient:
    return browser(app, add_user(name, list(permissions)))


def user(name: str) -> User | None:
    with transaction(read_only=True) as db:
        return users.find(db, name)


def page_of(name: str) -> str:
    found = user(name)
    assert found is not None
    return f"/admin/users/{found.id}"


def names(page: str) -> list[str]:
    """Return whom a list shows, in its order."""
    return re.findall(r'data-label="(?:Name|User)"><a [^>]+>([^<]+)<', page)


def acts(action: str) -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent).where(AuditEvent.action == action)))


def sign_in_was_long_ago(ago: timedelta = timedelta(hours=1)) -> None:
    with transaction() as db:
        db.execute(update(BrowserSession).values(signed_in_at=utc_now() - ago))


# --- lists of users


def test_users_are_found_by_the_begin_of_their_name_in_any_case(app: Flask) -> None:
    for name in ("alice", "Alina", "bob", "al%ice", "xalice"):
        add_user(name)
    client = admin(app)

    def found(search: str) -> list[str]:
        return names(client.get("/admin/users", query_string={"search": search}).text)

    assert found("AL") == ["al%ice", "alice", "Alina"]
    assert found("al%") == ["al%ice"]
    assert found("a_") == []
    assert found("lice") == []
    assert found("") == ["al%ice", "alice", "Alina", "bob", "root", "xalice"]
    assert found(HOSTILE) == []


def test_users_are_filtered_by_state_and_by_role(app: Flask) -> None:
    for name, permissions in (("alice", []), ("bob", ["staff"]), ("helga", ['auditor"', "helpdesk"])):
        add_user(name, permissions)
    add_user("nearly", ['not "admin"', "administrator", "Admin"])
    with transaction() as db:
        db.execute(update(User).where(User.name == "bob").values(is_disabled=True))
    client = admin(app)

    def found(state: str) -> list[str]:
        return names(client.get("/admin/users", query_string={"state": state}).text)

    assert found("active") == ["alice", "helga", "nearly", "root"]
    assert found("disabled") == ["bob"]
    assert found("role") == ["helga", "root"]
    assert found("nonsense") == ["alice", "bob", "helga", "nearly", "root"]


@pytest.mark.parametrize("sort", ["name", "added"])
def test_users_have_pages_in_each_order(app: Flask, monkeypatch: pytest.MonkeyPatch, sort: str) -> None:
    monkeypatch.setattr("portal_app.services.paging.PAGE_SIZE", 2)
    client = admin(app)
    for name in ("Zoe", "adam", "Bob", "bob", "eve"):
        add_user(name)
    in_order = {
        "name": ["adam", "Bob", "bob", "eve", "root", "Zoe"],
        "added": ["root", "Zoe", "adam", "Bob", "bob", "eve"],
    }[sort]

    for order, expected in (("asc", in_order), ("desc", in_order[::-1])):
        url, seen = f"/admin/users?sort={sort}&order={order}", []
        while url:
            page = client.get(url).text
            seen += names(page)
            url = next((str(e["href"]) for e in elements(page, "a") if e.get("rel") == "next"), "")
        assert sorted(seen) == sorted(expected)
        assert [n.lower() for n in seen] == [n.lower() for n in expected]


def test_the_list_says_a_role_once(app: Flask) -> None:
    add_user("hans", ["helpdesk", "staff"])
    page = admin(app).get("/admin/users").text
    root, hans = (
        row.partition("Connections")[0] for row in reversed(page.split('data-label="Permissions"')[1:])
    )

    assert re.findall(r'class="tag[^"]*">([^<]+)<', root) == ["administrator"]
    assert re.findall(r'class="tag[^"]*">([^<]+)<', hans) == ["helpdesk", "staff"]


def test_the_list_shows_how_much_each_user_holds(app: Flask, node: AgentServer) -> None:
    make_configuration(browser(app, add_user("alice")))
    page = admin(app).get("/admin/users").text

    assert re.findall(r'data-label="Connections">(\d+)<', page) == ["1", "0"]


# --- a new user


def test_an_administrator_adds_a_user_and_sees_the_link_once(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    client = admin(app)
    page = send(client, "/admin/users/add", name=" Jose\u0301 ", permissions="staff\r\n\r\n research \n")

    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    (link,) = [str(e["value"]) for e in elements(page.text, "input") if e.get("id") == "link"]
    assert "for 1 hour" in page.text or "for 60 minutes" in page.text
    found = user("José")
    assert found is not None
    assert found.permissions == ["research", "staff"]
    token = link.rpartition("/")[2]
    assert token not in caplog.text
    assert token not in client.get(page_of("José")).text + client.get("/admin/users").text
    (act,) = acts("user added")
    assert (act.actor, act.object, act.source) == ("root", "José", "127.0.0.1")
    assert token not in str(act.details)
    assert app.test_client().get(f"/set-password/{token}").status_code == 200


@pytest.mark.parametrize(
    ("name", "permissions", "status"),
    [
        ("", "", 400),
        ("a\u0007b", "", 400),
        ("x" * 256, "", 400),
        ("visitor", "", 400),
        ("CLI", "", 400),
        ("controller", "", 400),
        ("api:inventory", "", 400),
        ("root", "", 409),
        ("bob", "a\u0000b", 400),
        ("bob", "x" * 256, 400),
        ("bob", "x" * 9000, 400),
    ],
)
def test_a_user_that_cannot_be_is_refused(app: Flask, name: str, permissions: str, status: int) -> None:
    client = admin(app)
    answer = send(client, "/admin/users/add", name=name, permissions=permissions)

    assert answer.status_code == status
    with transaction(read_only=True) as db:
        assert list(db.scalars(select(User.name))) == ["root"]
        assert list(db.scalars(select(OneTimeLink))) == []


# --- one user


def test_the_page_of_a_user_shows_devices_sessions_and_sign_ins(app: Flask, node: AgentServer) -> None:
    add_account("alice")
    found = user("alice")
    assert found is not None
    sign_in(app.test_client(), "alice", "wrong")
    assert sign_in(app.test_client(), "alice", PASSWORD).status_code == 303
    phone = VpnApp(app, found).authorize()
    phone.connect()
    make_configuration(phone.browser, name="Router")
    by_app, by_hand = sorted(live_connections(), key=lambda c: c.authorization_id is None)
    begin_use(by_app, "alice", 1, origin="203.0.113.7")
    begin_use(by_hand, "alice", 2, ended_at=utc_now(), received_bytes=1536, sent_bytes=3 * 2**20)
    page = admin(app).get(page_of("alice")).text

    assert "eduVPN for Linux" in page
    assert "Router" in page
    assert str(by_app.ipv4) in page
    assert "203.0.113.7" in page
    assert "1.5 KiB" in page
    assert "3.0 MiB" in page
    assert page.count("wrong password") == 1
    assert page.count(">signed in<") == 1
    assert str(by_app.choice) in page.replace("&#39;", "'")
    assert "Connections of apps: 1 of 3." in page


def test_tries_to_guess_a_password_are_on_the_page_of_who_was_meant(app: Flask) -> None:
    add_account("alice")
    sign_in(app.test_client(), "alice", "wrong", source="198.51.100.66")
    sign_in(app.test_client(), "nobody", "wrong")

    (failed,) = [act for act in acts("sign-in failed") if act.object is not None]
    assert (failed.object, failed.source) == ("alice", "198.51.100.66")
    assert "198.51.100.66" in admin(app).get(page_of("alice")).text


def test_the_helpdesk_sees_that_it_failed_and_not_where_anybody_was(app: Flask, node: AgentServer) -> None:
    """History and audit log are for who may search them (P2)."""
    add_account("alice")
    sign_in(app.test_client(), "alice", "wrong", source="198.51.100.66")
    make_configuration(browser(app, add_user("bob")))
    (connection,) = live_connections()
    begin_use(connection, "alice", ended_at=utc_now(), ipv4="10.61.0.77", origin="203.0.113.7")
    where = ("198.51.100.66", "10.61.0.77", "203.0.113.7")

    for role, seen in (("helpdesk", False), ("auditor", True), ("admin", True)):
        page = admin(app, f"a-{role}", (role,)).get(page_of("alice")).text
        assert "wrong password" in page
        assert 'id="history"' in page
        assert "Employees" in page.split('id="history"')[1]
        assert [address in page for address in where] == [seen] * 3, role


def test_why_names_the_rule_of_each_profile(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        for profile_id, values in (
            ("employees", {"permissions": ["staff", "board"]}),
            ("lab", {"permissions": ["research"]}),
            ("legacy", {"hidden": True}),
        ):
            db.execute(update(Profile).where(Profile.profile_id == profile_id).values(**values))
    add_user("alice", ["board"])
    client = admin(app)

    def rules() -> dict[str, tuple[str, str]]:
        page = client.get(page_of("alice")).text
        found = re.findall(
            r'data-label="Profile">(\w+) <small>.*?data-label="Allowed"><span[^>]*>(\w+)<.*?'
            r'data-label="Rule"><span>(.*?)</span></td>',
            page,
            re.DOTALL,
        )
        return {name: (allowed, re.sub(r"<[^>]+>|\s+", " ", rule)) for name, allowed, rule in found}

    found = rules()
    assert found["Employees"][0] == "yes"
    assert "Has what it asks for: board" in re.sub(" +", " ", found["Employees"][1])
    assert found["Laboratory"][0] == "no"
    assert "Needs one of: research" in re.sub(" +", " ", found["Laboratory"][1])
    assert found["Legacy"][0] == "no"
    assert "Hidden" in found["Legacy"][1]

    with transaction() as db:
        db.execute(update(Profile).values(permissions=None))
        db.execute(update(User).where(User.name == "alice").values(is_disabled=True))
    found = rules()
    assert found["Laboratory"][0] == "no"
    assert "account is disabled" in found["Laboratory"][1]


@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["vpn", "admin"]}])
def test_why_says_that_the_portal_is_closed_to_somebody(app: Flask, node: AgentServer) -> None:
    add_user("alice")
    page = admin(app).get(page_of("alice")).text

    assert "closed to this user" in page
    assert "<code>vpn</code>" in page
    assert '<span class="tag good">yes</span>' not in page


@pytest.mark.parametrize("user_id", ["0", "99", "2147483648", "-1", "x", "1%00"])
def test_a_user_that_is_not_there_is_not_found(app: Flask, user_id: str) -> None:
    client = admin(app)
    assert client.get(f"/admin/users/{user_id}").status_code == 404
    for act in ACTS:
        answer = send(client, f"/admin/users/{user_id}/{act}", permissions="")
        assert answer.status_code in (404, 405)  # what no number can be fits no address


# --- acts


def test_a_link_ends_the_one_before_and_is_not_logged(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    add_account("alice")
    client = admin(app)

    def link() -> str:
        page = send(client, page_of("alice") + "/link").text
        return next(str(e["value"]) for e in elements(page, "input") if e.get("id") == "link")

    first, second = (link().rpartition("/")[2] for _ in range(2))
    assert app.test_client().get(f"/set-password/{first}").status_code == 404
    assert app.test_client().get(f"/set-password/{second}").status_code == 200
    assert second not in caplog.text
    assert [act.actor for act in acts("one-time link made")] == ["root", "root"]


def test_a_helpdesk_makes_no_link_for_who_has_a_role(app: Flask) -> None:
    for name, permissions in (("alice", []), ("boss", ["admin"]), ("ann", ["auditor"])):
        add_account(name, permissions=permissions)
    helpdesk = admin(app, "helga", ("helpdesk",))

    assert send(helpdesk, page_of("alice") + "/link").status_code == 200
    for name in ("boss", "ann", "helga"):
        assert send(helpdesk, page_of(name) + "/link").status_code == 403, name
        assert "/link" not in helpdesk.get(page_of(name)).text
    assert [act.object for act in acts("one-time link made")] == ["alice"]


def test_language_cannot_be_chosen_where_what_is_shown_would_be_lost(app: Flask) -> None:
    add_account("carol")
    client = admin(app)

    assert 'name="language"' in client.get(page_of("carol")).text
    assert 'name="language"' not in send(client, page_of("carol") + "/link").text


def test_a_link_does_not_outlive_the_permissions_that_it_was_made_under(app: Flask) -> None:
    """Whoever made it for a user must not become what the user becomes."""
    add_account("carol")
    helpdesk = admin(app, "helga", ("helpdesk",))
    found = re.search(r"/set-password/[\w-]+", send(helpdesk, page_of("carol") + "/link").text)
    assert found
    visitor = app.test_client()
    assert visitor.get(found[0]).status_code == 200

    users.set_permissions("carol", ["admin"], access_permissions=None, actor="test", now=utc_now())

    assert visitor.get(found[0]).status_code == 404


def test_a_link_is_made_for_whom_the_page_was_about(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right before it is made, the user gets a role, or is deleted and somebody else gets the name."""
    add_account("carol")
    helpdesk, page = admin(app, "helga", ("helpdesk",)), page_of("carol")
    made = users.one_time_link

    def after_a_promotion(name: str, **details: Any) -> str:
        users.set_permissions(name, ["admin"], access_permissions=None, actor="test", now=utc_now())
        return made(name, **details)

    monkeypatch.setattr(users, "one_time_link", after_a_promotion)
    assert send(helpdesk, page + "/link").status_code == 403

    users.set_permissions("carol", [], access_permissions=None, actor="test", now=utc_now())

    def after_another_took_the_name(name: str, **details: Any) -> str:
        users.delete(name, actor="test", now=utc_now())
        add_user("somebody else")
        add_account(name)
        return made(name, **details)

    monkeypatch.setattr(users, "one_time_link", after_another_took_the_name)
    assert send(helpdesk, page + "/link").status_code == 404
    with transaction(read_only=True) as db:
        assert db.scalars(select(OneTimeLink)).all() == []


def test_disabling_says_what_it_cuts_does_it_and_offers_the_way_back(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    make_configuration(phone.browser)
    client = admin(app)
    before = client.get(page_of("alice")).text
    assert "2 connections are cut at once." in before
    assert "1 app has to be authorized again." in before

    answer = send(client, page_of("alice") + "/disable")
    assert answer.status_code == 303
    assert node.peers == set()
    after = client.get(answer.location).text
    assert "Disabled; 2 connections were cut." in after
    (act,) = acts("user disabled")
    assert (act.actor, act.object, act.source) == ("root", "alice", "127.0.0.1")

    enabled = send(client, page_of("alice") + "/enable")
    assert "Enabled" in client.get(enabled.location).text
    found = user("alice")
    assert found is not None
    assert not found.is_disabled


def test_deleting_leads_back_to_the_list(app: Flask, node: AgentServer) -> None:
    make_configuration(browser(app, add_user("alice")))
    client = admin(app)
    answer = send(client, page_of("alice") + "/delete")

    assert "1 connection was cut" in client.get(answer.location).text
    assert user("alice") is None
    assert node.peers == set()


def test_nobody_locks_themself_out(app: Flask) -> None:
    client = admin(app)
    own = page_of("root")
    page = client.get(own).text
    assert "another administrator" in page
    assert f"{own}/disable" not in page
    assert f"{own}/delete" not in page

    for act in ("disable", "delete"):
        assert send(client, f"{own}/{act}").status_code == 403
    for permissions in ("", "staff", "helpdesk"):
        answer = send(client, f"{own}/permissions", permissions=permissions, confirmed="yes")
        assert answer.status_code == 403
        assert "no longer be an administrator" in problem(answer.text)
    found = user("root")
    assert found is not None
    assert (found.permissions, found.is_disabled) == (["admin"], False)


def test_permissions_are_set_after_it_was_said_what_they_cut(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["research"]))
    alice = browser(app, add_user("alice", ["research"]))
    make_configuration(alice, "lab+wireguard+udp")
    make_configuration(alice, "employees+wireguard+udp")
    client = admin(app)
    url = page_of("alice") + "/permissions"

    asked = send(client, url, permissions="staff\n" + HOSTILE)
    assert asked.status_code == 200
    assert "1 connection is cut at once." in asked.text
    assert len(live_connections()) == 2
    (text,) = [e["value"] for e in elements(asked.text, "input") if e.get("name") == "permissions"]
    done = send(client, url, permissions=str(text), confirmed="yes")

    assert done.status_code == 303
    assert "1 connection was cut" in client.get(done.location).text
    found = user("alice")
    assert found is not None
    assert found.permissions == sorted(["staff", HOSTILE])
    assert [c.profile_id for c in live_connections()] == ["employees"]


def test_former_permissions_can_be_set_again(app: Flask) -> None:
    add_user("alice", ["research", "staff"])
    client = admin(app)
    url = page_of("alice") + "/permissions"
    assert ">research\nstaff</textarea>" in client.get(f"{url}?former=1").text, "nothing was set yet"
    done = send(client, url, permissions="guest", confirmed="yes")

    back = next(str(a["href"]) for a in elements(client.get(done.location).text, "a") if "former" in str(a))
    assert ">research\nstaff</textarea>" in client.get(back).text
    assert ">guest</textarea>" in client.get(url).text
    # Who had the name before is somebody else.
    users.delete("alice", actor="root", now=utc_now())
    users.add("alice", permissions=["new"], password=None, actor="root", now=utc_now())
    assert ">new</textarea>" in client.get(f"{page_of('alice')}/permissions?former=1").text


def test_ending_an_app_takes_its_tokens_and_only_that_users(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    add_user("bob")
    helpdesk = admin(app, "helga", ("helpdesk",))
    with transaction(read_only=True) as db:
        number = db.scalar(select(Authorization.id))

    assert send(helpdesk, f"{page_of('bob')}/apps/{number}/end").status_code == 404
    assert node.peers
    assert send(helpdesk, f"{page_of('alice')}/apps/{number}/end").status_code == 303
    assert node.peers == set()
    assert phone.info().status_code == 401
    (act,) = acts("app ended")
    assert (act.actor, act.object) == ("helga", "alice")


def test_ending_all_connections_leaves_apps_authorized(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    make_configuration(phone.browser)
    helpdesk = admin(app, "helga", ("helpdesk",))
    answer = send(helpdesk, page_of("alice") + "/end")

    assert "2 connections ended" in helpdesk.get(answer.location).text
    assert node.peers == set()
    assert phone.connect().status_code == 200


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("helpdesk", {"link", "end"}), ("auditor", set()), ("staff", set()), ("admin", set(ACTS))],
)
def test_each_role_does_what_it_may_and_sees_no_other_button(
    app: Flask, node: AgentServer, role: str, allowed: set[str]
) -> None:
    add_account("alice")
    found = user("alice")
    assert found is not None
    make_configuration(browser(app, found))
    client, url = admin(app, "root", (role,)), page_of("alice")
    (connection,) = live_connections()
    if role != "staff":
        page = client.get(url).text + client.get("/admin/connections?show=all").text
        for act in set(ACTS) - {"enable"}:
            assert (f"{url}/{act}" in page) == (act in allowed), act
        assert ("/admin/connections/end" in page) == ("end" in allowed)
        assert ("/admin/users/add" in client.get("/admin/users").text) == (role == "admin")
    if "end" not in allowed:
        for name in ACTS:
            assert send(client, f"{url}/{name}", permissions="").status_code == 403, name
        assert client.get(f"/admin/connections/end?connection={connection.id}").status_code == 403
        assert send(client, "/admin/connections/end", connection=connection.id).status_code == 403
        assert len(live_connections()) == 1
    for name in {"disable", "enable", "delete", "permissions"} - allowed:
        assert send(client, f"{url}/{name}", permissions="").status_code == 403
    if role != "admin":
        assert send(client, "/admin/users/add", name="eve", permissions="admin").status_code == 403
        assert user("eve") is None


@pytest.mark.parametrize("act", ["disable", "delete", "permissions", "link"])
def test_dangerous_acts_ask_for_the_password_again(app: Flask, act: str) -> None:
    """W8."""
    add_account("alice")
    client = admin(app)
    sign_in_was_long_ago()
    answer = send(
        client, f"{page_of('alice')}/{act}", permissions="x", confirmed="yes", next=page_of("alice")
    )

    assert answer.status_code == 303
    assert "confirm" in answer.location
    found = user("alice")
    assert found is not None
    assert (found.is_disabled, found.permissions) == (False, [])
    assert acts("one-time link made") == []


@pytest.mark.parametrize("page", ["/admin/users/add", "/admin/tokens/add", "permissions"])
def test_the_password_is_asked_before_a_form_is_filled_in(app: Flask, page: str) -> None:
    """And so early that there is time to fill it in."""
    add_account("alice")
    client = admin(app)
    url = f"{page_of('alice')}/permissions?x=1" if page == "permissions" else page
    sign_in_was_long_ago(timedelta(minutes=9))
    assert client.get(url).status_code == 200
    sign_in_was_long_ago(timedelta(minutes=11))
    asked = client.get(url, headers={"Referer": "https://vpn.example.org/admin/users"})

    assert asked.status_code == 303
    assert parse_qs(urlsplit(asked.location).query) == {"next": [url]}


def test_what_takes_something_away_is_red_and_nothing_else(app: Flask) -> None:
    add_account("alice")
    page = admin(app).get(page_of("alice")).text
    (link,) = re.findall(r'<details class="([^"]+)">\s*<summary>New one-time link…', page)
    (permissions,) = re.findall(r'<a class="([^"]+)"[^>]*>Set permissions…', page)
    (delete,) = re.findall(r'<details class="([^"]+)">\s*<summary>Delete…', page)

    assert ("calm" in link, "cuts" in permissions, "calm" in delete) == (True, True, False)


def test_acts_need_the_token_of_a_form(app: Flask) -> None:
    add_account("alice")
    client = admin(app)
    for url in [*(f"{page_of('alice')}/{act}" for act in ACTS), "/admin/users/add", "/admin/connections/end"]:
        assert (
            client.post(url, data={"name": "eve", "permissions": "", "confirmed": "yes"}).status_code == 403
        )
    found = user("alice")
    assert found is not None
    assert not found.is_disabled


# --- connections


def two_routers(app: Flask) -> list[Connection]:
    for name in ("alice", "bob"):
        make_configuration(browser(app, add_user(name)), name=f"{name}'s router")
    return sorted(live_connections(), key=lambda c: c.user_id)


def test_a_selection_is_ended_after_it_was_said_what_is_cut(app: Flask, node: AgentServer) -> None:
    chosen = two_routers(app)
    begin_use(chosen[0], "alice")
    helpdesk = admin(app, "helga", ("helpdesk",))
    query = {"connection": [c.id for c in chosen] + ["f" * 32], "next": "/admin/connections?show=all"}

    asked = helpdesk.get("/admin/connections/end", query_string=query)
    assert "End these 2 connections?" in asked.text
    assert "alice&#39;s router" in asked.text
    assert "has ended meanwhile" in asked.text
    assert len(node.peers) == 2

    form = {"csrf_token": csrf_token(asked.text), "connection": [c.id for c in chosen]}
    form["next"] = "/admin/connections?show=all"
    ended = helpdesk.post("/admin/connections/end", data=form)
    assert ended.location == "/admin/connections?show=all&done=2"
    assert node.peers == set()
    assert "2 connections ended" in helpdesk.get(ended.location).text
    assert {(a.actor, a.object) for a in acts("connection ended")} == {("helga", "alice"), ("helga", "bob")}
    assert helpdesk.post("/admin/connections/end", data=form).status_code == 404


@pytest.mark.parametrize(
    "ids", [[], ["x" * 33], ["0" * 32] * 201, [f"{n:032x}" for n in range(201)], ["\0"], ["nothing"]]
)
def test_a_selection_that_cannot_be_ends_nothing(app: Flask, node: AgentServer, ids: list[str]) -> None:
    two_routers(app)
    client = admin(app)
    token = csrf_token(client.get("/password").text)

    asked = client.get("/admin/connections/end", query_string={"connection": ids})
    sent = client.post("/admin/connections/end", data={"csrf_token": token, "connection": ids})
    assert asked.status_code in (400, 404)
    assert sent.status_code in (400, 404)
    assert len(live_connections()) == 2


def test_after_ending_one_comes_back_only_to_own_pages(app: Flask, node: AgentServer) -> None:
    client = admin(app)
    for number, target in enumerate(("https://evil.example/", "//evil.example", "/sign-out", "\\evil")):
        make_configuration(browser(app, add_user(f"user{number}")))
        (connection,) = live_connections()
        answer = send(client, "/admin/connections/end", connection=connection.id, next=target)
        assert answer.location == "/admin/connections?done=1"


def searched_addresses() -> list[tuple[str, str | None]]:
    with transaction(read_only=True) as db:
        searched = select(AuditEvent).where(AuditEvent.action == "address searched")
        return [(row.actor, row.object) for row in db.scalars(searched.order_by(AuditEvent.id))]


@pytest.mark.parametrize("show", ["now", "all"])
def test_where_somebody_comes_from_is_found_by_who_may_search_only(
    app: Flask, node: AgentServer, show: str
) -> None:
    """P2: the list does not answer what "Who had it" is for."""
    make_configuration(browser(app, add_user("alice")))
    (connection,) = live_connections()
    begin_use(connection, "alice", origin="203.0.113.7")
    found = {}
    for role in ("helpdesk", "auditor", "admin"):
        client = browser(app, add_user(f"a-{role}", [role]))
        for address in ("203.0.113.7", str(connection.ipv4)):
            page = client.get("/admin/connections", query_string={"show": show, "search": address})
            found[role, address] = names(page.text)

    assert found.pop(("helpdesk", "203.0.113.7")) == []
    assert set(map(tuple, found.values())) == {("alice",)}
    assert sorted(searched_addresses()) == sorted(
        (f"a-{role}", address)
        for role in ("helpdesk", "auditor", "admin")
        for address in ("203.0.113.7", connection.ipv4)
    )


def test_each_search_for_an_address_is_written_down_but_not_each_refresh(
    app: Flask, node: AgentServer
) -> None:
    client = browser(app, add_user("helper", ["helpdesk"]))
    live = {"X-Live": "1"}

    def ask(search: str, **headers: Any) -> None:
        assert client.get("/admin/connections", query_string={"search": search}, **headers).status_code == 200

    for search in ("", "alice", "10.61", "10.61.0.0/20"):
        ask(search)
    assert searched_addresses() == []
    ask("FD43:61::7")
    for _ in range(3):
        ask("fd43:61::7", headers=live)
    assert searched_addresses() == [("helper", "fd43:61::7")]
    ask("fd43:61::7")
    ask("10.61.0.9", headers=live)
    assert searched_addresses()[1:] == [("helper", "fd43:61::7"), ("helper", "10.61.0.9")], (
        "asking again is a question, and the header alone is no excuse"
    )


def test_connections_are_filtered_and_sorted(app: Flask, make_nodes: Any) -> None:
    make_nodes(2)
    alice, bob = two_routers(app)
    make_configuration(browser(app, add_user("Carol")), "legacy+openvpn+udp", "Laptop")
    with transaction(read_only=True) as db:
        carol = db.scalars(select(Connection).where(Connection.protocol == "openvpn")).one()
    for number, (connection, name) in enumerate([(bob, "bob"), (carol, "Carol"), (alice, "alice")]):
        begin_use(connection, name, number, started_at=utc_now() - timedelta(hours=3 - number))
    client = admin(app)

    for show in ("now", "all"):

        def found(show: str = show, **query: str) -> list[str]:
            return names(client.get("/admin/connections", query_string={"show": show} | query).text)

        assert found(sort="user") == ["alice", "bob", "Carol"]
        assert found(sort="user", order="desc") == ["Carol", "bob", "alice"]
        assert found(protocol="openvpn") == found(profile="legacy") == ["Carol"]
        assert found(profile="nothing") == found(node="7") == []
        for node in (f"node{alice.node_number}", str(alice.node_number)):
            assert sorted(found(node=node, protocol="wireguard")) == sorted(
                name for name, c in (("alice", alice), ("bob", bob)) if c.node_number == alice.node_number
            )
    now = names(client.get("/admin/connections").text)
    assert now == ["alice", "Carol", "bob"], "who came last is first"


@pytest.mark.parametrize("show", ["now", "all"])
def test_a_connection_is_found_however_the_letters_of_a_name_are_put_together(
    app: Flask, node: AgentServer, show: str
) -> None:
    make_configuration(browser(app, add_user("Ren\u00e9e")))
    with transaction(read_only=True) as db:
        begin_use(db.scalars(select(Connection)).one(), "Ren\u00e9e", 1)
    query = {"show": show, "search": "Rene\u0301"}

    assert names(admin(app).get("/admin/connections", query_string=query).text) == ["Ren\u00e9e"]


@pytest.mark.parametrize(
    ("show", "sort"), [(show, sort) for show in ("now", "all") for sort in sorts(show == "now")]
)
def test_connections_have_pages_in_each_order(
    app: Flask, node: AgentServer, monkeypatch: pytest.MonkeyPatch, show: str, sort: str
) -> None:
    monkeypatch.setattr("portal_app.services.paging.PAGE_SIZE", 2)
    for connection, name in zip(two_routers(app), ("alice", "bob"), strict=True):
        begin_use(connection, name, connection.user_id)
    alice = user("alice")
    assert alice is not None
    for number in range(3):
        make_configuration(browser(app, alice), name=f"Device {number}")
    known = {c.id for c in live_connections()}
    for number, connection_id in enumerate(sorted(known)):
        with transaction(read_only=True) as db:
            connection = db.get_one(Connection, connection_id)
        begin_use(connection, "alice", 100 + number)
    client = admin(app)
    url, seen, pages = f"/admin/connections?show={show}&sort={sort}", [], 0
    while url:
        page = client.get(url).text
        seen += [str(e["value"]) for e in elements(page, "input") if e.get("name") == "connection"]
        url = next((str(e["href"]) for e in elements(page, "a") if e.get("rel") == "next"), "")
        pages += 1
        assert pages < 10

    assert set(seen) == known
    if show == "all":
        assert len(seen) == len(known)


def test_a_node_says_what_its_connections_use_now(
    app: Flask, node: AgentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_usage, "_memory", live_usage._Memory())
    monkeypatch.setattr(live_usage, "_NEAREST_SECONDS", 0.0)
    alice, bob = two_routers(app)
    begin_use(alice, "alice")
    handshake = int(utc_now().timestamp()) - 30
    client = admin(app)

    def traffic(received: int) -> str:
        node.used[alice.id] = Usage(alice.id, "wireguard", True, received, 2048, last_handshake_at=handshake)
        page = client.get("/admin/connections").text
        found = re.search(r'data-label="Traffic">(.*?)</td>', page, re.DOTALL)
        assert found
        return found[1]

    first = traffic(1024)
    assert "1.0 KiB" in first
    assert "2.0 KiB" in first
    assert "handshake" in first
    assert "bit/s" not in first, "one answer makes no rate"
    assert "bit/s" in traffic(10_000_000)
    assert "bit/s" not in traffic(0), "counters began again"
    asked = [path for method, path in node.calls if path.startswith("/n/usage")]
    assert all(alice.id in path and bob.id not in path for path in asked)


def test_a_silent_node_costs_a_second_and_says_unknown(app: Flask, node: AgentServer) -> None:
    alice, _bob = two_routers(app)
    begin_use(alice, "alice")
    client = admin(app)
    node.mode = "silent"
    began = utc_now()
    page = client.get("/admin/connections")

    assert page.status_code == 200
    assert utc_now() - began < timedelta(seconds=4)
    assert '<td data-label="Traffic"><span><small>unknown</small></span></td>' in page.text


def test_a_node_that_is_known_to_be_away_is_not_asked(app: Flask, node: AgentServer) -> None:
    alice, _bob = two_routers(app)
    begin_use(alice, "alice")
    with transaction() as db:
        db.execute(update(NodeStatus).values(failing_since=utc_now()))
    before = len(node.calls)

    assert "<small>unknown</small>" in admin(app).get("/admin/connections").text
    assert len(node.calls) == before


@pytest.mark.parametrize("mode", ["garbage", "refuse", "huge"])
def test_an_answer_that_is_none_is_unknown(app: Flask, node: AgentServer, mode: str) -> None:
    alice, _bob = two_routers(app)
    begin_use(alice, "alice")
    client = admin(app)
    node.mode = mode

    assert "<small>unknown</small>" in client.get("/admin/connections").text


def test_a_session_whose_connection_has_ended_is_listed_and_cannot_be_ended(
    app: Flask, node: AgentServer
) -> None:
    alice, _bob = two_routers(app)
    begin_use(alice, "alice")
    begin_use(alice, HOSTILE, 2, connection_id="e" * 32)
    page = admin(app).get("/admin/connections")
    ticks = [e["value"] for e in elements(page.text, "input") if e.get("name") == "connection"]

    assert ticks == [alice.id]
    assert "its node was not heard since" in page.text
