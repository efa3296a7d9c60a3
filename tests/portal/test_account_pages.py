"""Home, devices, account, status: what users find there, and what of it is theirs alone."""

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from portal_app import db as database_module
from portal_app import login
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AddressUse, AuditEvent, BrowserSession, Connection, Profile, User, VpnSession
from portal_app.services import audit, own_data
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import HOST, VpnApp, add_user
from tests.portal.conftest import seen_up
from tests.portal.pages import (
    PASSWORD,
    add_account,
    elements,
    is_signed_in,
    make_configuration,
    send,
    sign_in,
)
from tests.portal.test_pages import HOSTILE, begin_use, live_connections, signed_in

WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/142.0.0.0 Safari/537.36"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Mobile/15E148 Safari/604.1"
ANDROID = "Mozilla/5.0 (Android 16; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 15_1) AppleWebKit/605.1.15 Version/19.0 Safari/605.1.15"
LINUX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


def audit_rows(action: str) -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent).where(AuditEvent.action == action)))


@pytest.mark.parametrize(
    ("user_agent", "offered"),
    [
        (WINDOWS, "eduVPN for Windows"),
        (IPHONE, "eduVPN for iOS"),
        (ANDROID, "eduVPN for Android"),
        (MAC, "eduVPN for macOS"),
        (LINUX, "eduVPN for Linux"),
    ],
)
def test_the_app_for_the_own_system_is_offered_first(app: Flask, user_agent: str, offered: str) -> None:
    page = signed_in(app).get("/", headers={"User-Agent": user_agent}).text

    own, _, others = page.partition("<summary>Other systems</summary>")
    assert re.findall(r">(eduVPN for \w+)<", own) == [offered]
    assert len(re.findall(r">eduVPN for \w+<", others)) == 4


@pytest.mark.parametrize("user_agent", ["", "curl/8", HOSTILE, "x" * 5000])
def test_who_does_not_say_their_system_chooses_one(app: Flask, user_agent: str) -> None:
    page = signed_in(app).get("/", headers={"User-Agent": user_agent}).text

    assert "Choose your system" in page
    assert len(re.findall(r">eduVPN for \w+<", page)) == 5


@pytest.mark.parametrize("settings_changes", [{"client_sets": ["LC"]}])
def test_only_apps_that_may_connect_are_offered(app: Flask) -> None:
    page = signed_in(app).get("/", headers={"User-Agent": WINDOWS}).text

    assert "https://app.letsconnect-vpn.org/windows/" in page
    assert "eduVPN" not in page


@pytest.mark.parametrize(
    "settings_changes", [{"client_sets": ["govVPN"], "support_contact": "help@example.org"}]
)
def test_without_a_public_app_users_are_told_whom_to_ask(app: Flask) -> None:
    page = signed_in(app).get("/", headers={"User-Agent": WINDOWS}).text

    assert '<a href="mailto:help@example.org">help@example.org</a>' in page
    assert "for Windows" not in page


@pytest.mark.parametrize("settings_changes", [{"support_contact": "https://help.example.org/vpn?a=1&b=2"}])
def test_who_may_connect_to_nothing_is_told_so_and_whom_to_ask(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(Profile).values(permissions=["research"]))
    client = signed_in(app)

    for url in ("/", "/configurations", "/status"):
        page = client.get(url).text
        assert "nothing that your account may connect to" in page, url
    assert '<a href="https://help.example.org/vpn?a=1&amp;b=2">' in client.get("/").text


@pytest.mark.parametrize("url", ["/apps", "/connections"])
def test_addresses_of_before_lead_to_the_one_list(app: Flask, url: str) -> None:
    answer = signed_in(app).get(url)

    assert (answer.status_code, answer.location) == (303, "/devices")


def test_apps_and_downloads_are_in_one_list_with_where_they_are_connected(
    app: Flask, node: AgentServer
) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    assert phone.connect().status_code == 200
    make_configuration(phone.browser, name="Router")
    begin_use(live_connections()[0], "alice", 1, origin="203.0.113.9")
    page = phone.browser.get("/devices").text

    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)[1:]
    app_row, router = next(r for r in rows if "eduVPN" in r), next(r for r in rows if "Router" in r)
    connected = next(r for r in rows if "203.0.113.9" in r)
    assert "node0" in connected
    assert "Disconnect eduVPN for Linux" in app_row
    assert "Revoke eduVPN for Linux" in app_row
    assert "End Router" in router
    assert "Rename Router" in router
    assert "Rename" not in app_row


def test_what_is_open_without_its_configuration_is_still_shown(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    make_configuration(client)
    (connection,) = live_connections()
    begin_use(connection, "alice")
    send(client, f"/connections/{connection.id}/end")

    page = client.get("/devices").text
    assert "Still connected" in page
    assert "Ended configuration" in page


def test_a_download_is_renamed_by_its_user_only(app: Flask, node: AgentServer) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    (of_app,) = live_connections()
    make_configuration(phone.browser, name="Router")
    download = next(c for c in live_connections() if c.id != of_app.id)
    mallory = signed_in(app, "mallory", ["admin"])
    url = f"/connections/{download.id}/rename"

    assert send(mallory, url, display_name="Mine").status_code == 404
    assert send(phone.browser, f"/connections/{of_app.id}/rename", display_name="x").status_code == 404
    for bad in ("", " ", "x" * 65, "a\nb"):
        assert send(phone.browser, url, display_name=bad).status_code == 400
    assert "Router" in phone.browser.get("/devices").text
    assert audit_rows("configuration renamed") == []

    assert send(phone.browser, url, display_name=HOSTILE[:60]).location == "/devices"
    page = phone.browser.get("/devices").text
    assert "Rename &lt;script&gt;" in page
    assert "Router" not in page
    (row,) = audit_rows("configuration renamed")
    assert (row.actor, row.object) == ("alice", download.id)
    with transaction(read_only=True) as db:
        called = db.scalars(select(AddressUse.device).where(AddressUse.connection_id == download.id))
        assert list(called) == [HOSTILE[:60]]


def test_sessions_tell_browsers_apart_without_keeping_what_they_sent(app: Flask) -> None:
    add_account()
    here, there = app.test_client(), app.test_client()
    here.environ_base["HTTP_USER_AGENT"] = LINUX
    there.environ_base["HTTP_USER_AGENT"] = f"{IPHONE} <b>secret-build-7</b>"
    sign_in(here)
    sign_in(there)

    page = here.get("/account").text
    first, second = re.findall(r'<th scope="row">(.*?)</th>', page)
    assert first.startswith("Firefox on Linux")
    assert "This browser" in first
    assert second == "Safari on iOS"
    with transaction(read_only=True) as db:
        assert "secret-build" not in json.dumps([row.data for row in db.scalars(select(BrowserSession))])


def test_signing_out_the_others_keeps_this_browser_and_other_users(app: Flask) -> None:
    add_account()
    add_account("bob")
    here, there, bob = (app.test_client() for _ in range(3))
    for client, name in ((here, "alice"), (there, "alice"), (bob, "bob")):
        sign_in(client, name)

    done = send(here, "/account/end-others")
    assert "All other browsers are signed out" in here.get(done.location).text
    assert [is_signed_in(client) for client in (here, there, bob)] == [True, False, True]
    (row,) = audit_rows("other browsers signed out")
    assert (row.actor, row.details["sessions"]) == ("alice", 1)


def test_an_idle_browser_is_told_why_it_must_sign_in_again(app: Flask) -> None:
    add_account()
    client = app.test_client()
    sign_in(client)
    with transaction() as db:
        db.execute(update(BrowserSession).values(last_seen_at=utc_now() - timedelta(hours=1)))

    page = client.get("/devices", follow_redirects=True).text
    assert "You were signed out after 30 minutes without use" in page
    assert "signed out" not in app.test_client().get("/sign-in").text


def test_a_session_that_ended_otherwise_is_not_called_idle(app: Flask) -> None:
    add_account()
    client = app.test_client()
    sign_in(client)
    with transaction() as db:
        db.execute(update(BrowserSession).values(expires_at=utc_now()))
    assert "Your session here has ended" in client.get("/sign-in").text

    forged = app.test_client()
    forged.set_cookie(login.SESSION_COOKIE, HOSTILE[:20], domain=HOST, path="/", secure=True)
    page = forged.get("/sign-in").text
    assert "Your session here has ended" in page
    assert not list(elements(page, "script"))


def test_the_export_has_what_is_stored_about_one_user_and_no_secret(app: Flask, node: AgentServer) -> None:
    add_account("alice", permissions=["staff"])
    add_account("bob")
    with transaction(read_only=True) as db:
        alice = db.scalars(select(User).where(User.name == "alice")).one()
    phone = VpnApp(app, alice).authorize()
    phone.connect()
    make_configuration(phone.browser, name="Router")
    make_configuration(signed_in(app, "carol"), name="Carol's")
    connection = next(c for c in live_connections() if c.display_name == "Router")
    begin_use(connection, "alice", ended_at=utc_now())
    with transaction() as db:
        now = utc_now()
        audit.record(db, "user enabled", actor="bob", object="alice", source="198.51.100.9", now=now)
        audit.record(db, "user enabled", actor="bob", object="carol", now=now)

    answer = send(phone.browser, "/account/export")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="my-data-')
    found: dict[str, Any] = json.loads(answer.text)

    assert found["user"]["permissions"] == ["staff"]
    assert [row["client_id"] for row in found["authorizations"]] == ["org.eduvpn.app.linux"]
    assert len(found["connections"]) == 2
    assert [row["connection_id"] for row in found["vpn_sessions"]] == [connection.id]
    assert {one.ipv4 for one in live_connections() if one.display_name != "Carol's"} == {
        row["ipv4"] for row in found["addresses"]
    }
    assert ("bob", None) in [(row["actor"], row["source"]) for row in found["acts"]]
    assert found["complete"] is True
    text = answer.text
    assert "carol" not in text.lower()
    assert not re.search(r"argon2|hash|token", text)
    for one in live_connections():
        assert one.public_key is None or one.public_key not in text
    assert [row.actor for row in audit_rows("own data exported")] == ["alice"]


def leave_traces_of(name: str, address: str) -> None:
    """Write what stays in the log of somebody with this name who was deleted long ago."""
    long_ago = utc_now() - timedelta(days=100)
    kept = {"connection_id": "c" * 32, "profile_id": "employees", "protocol": "wireguard", "node_number": 0}
    times = {"started_at": long_ago, "ended_at": long_ago + timedelta(hours=1)}
    with transaction() as db:
        db.add(VpnSession(session_id="5" * 32, user_name=name, ipv4=address, origin=address, **kept, **times))
        db.add(AddressUse(user_name=name, ipv4=address, **kept, **times))
        for action, actor in (("signed in", name), ("user deleted", "root")):
            audit.record(db, action, actor=actor, object=name, source=address, now=long_ago)


def test_who_has_a_name_again_sees_nothing_of_who_had_it_before(app: Flask, node: AgentServer) -> None:
    """W7, P4."""
    client = signed_in(app, "jdoe")
    leave_traces_of("jdoe", "198.51.100.99")
    with transaction() as db:
        audit.record(db, "user enabled", actor="root", object="jdoe", now=utc_now())
    add_account("root", permissions=["admin"])
    admin = app.test_client()
    sign_in(admin, "root")
    with transaction(read_only=True) as db:
        user_id = db.scalars(select(User.id).where(User.name == "jdoe")).one()

    text = send(client, "/account/export").text
    assert "user enabled" in text
    for seen in (text, client.get("/devices").text, admin.get(f"/admin/users/{user_id}").text):
        assert "198.51.100.99" not in seen
        assert "user deleted" not in seen
    assert json.loads(text)["vpn_sessions"] == []


@pytest.mark.parametrize("name", ["visitor", "controller", "cli", "api:inventory"])
def test_a_user_of_an_older_release_with_a_name_of_nobody_gets_nobodys_acts(app: Flask, name: str) -> None:
    add_account("bob")
    client = signed_in(app, name)
    with transaction() as db:
        audit.record(db, "sign-in failed", actor=name, object="bob", source="198.51.100.7", now=utc_now())

    text = send(client, "/account/export").text
    assert "198.51.100.7" not in text
    assert "bob" not in text


def test_an_export_reads_no_table_whole_and_lets_others_write(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in(app)
    engine = database_module.engine()
    asked: list[tuple[str, Any]] = []
    rows = own_data._rows

    def watched(db: Session, model: Any, which: Any, order: Any) -> list[Any]:
        if model is AddressUse and engine.dialect.name == "sqlite":
            query = select(model).where(which).order_by(order.desc()).limit(own_data.MOST)
            text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
            plan = [row[3] for row in db.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
            asked.append(("plan", [step for step in plan if "address_uses" in step]))
        # Somebody connects meanwhile.
        with engine.connect() as other:
            if engine.dialect.name == "sqlite":
                other.exec_driver_sql("PRAGMA busy_timeout = 0")
            other.execute(update(Profile).values(display_name="Other"))
            other.rollback()
        return rows(db, model, which, order)

    monkeypatch.setattr(own_data, "_rows", watched)
    assert send(client, "/account/export").status_code == 200
    for _name, plan in asked:
        assert plan
        assert all("USING INDEX ix_address_uses_user_name_started_at" in step for step in plan), plan


def test_an_export_can_be_had_a_few_times_at_once(app: Flask) -> None:
    client, other = signed_in(app), signed_in(app, "bob")
    for _ in range(own_data.PER_USER.burst):
        assert send(client, "/account/export").status_code == 200
    answer = send(client, "/account/export")

    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= own_data.PER_USER.refill_seconds + 1
    assert len(audit_rows("own data exported")) == own_data.PER_USER.burst
    assert send(other, "/account/export").status_code == 200


def test_looking_at_the_account_exports_nothing(app: Flask) -> None:
    client = signed_in(app)

    assert client.get("/account/export").status_code == 405
    assert client.post("/account/export").status_code == 403
    assert app.test_client().get("/account").status_code == 303
    assert audit_rows("own data exported") == []


def states(page: str) -> list[str]:
    return re.findall(r'</h2> <span class="tag \w+">([^<]+)<', page)


def test_status_says_what_a_connect_would_find_without_naming_nodes(app: Flask, make_nodes: Any) -> None:
    make_nodes(2)
    client = signed_in(app)
    assert states(client.get("/status").text) == ["Available"] * 3

    seen_up(1, failing_since=utc_now(), error="certificate of node1 is wrong")
    page = client.get("/status").text
    assert states(page) == ["Limited"] * 3
    assert "node1" not in page

    seen_up(0, maintenance_mode=True)
    page = client.get("/status").text
    assert states(page) == ["Not available"] * 3
    assert "New connections are not possible" in page


def test_status_shows_only_profiles_that_the_user_may_use(app: Flask, node: AgentServer) -> None:
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["research"]))

    assert "Laboratory" not in signed_in(app).get("/status").text
    assert app.test_client().get("/status").status_code == 303


def notice(begins: int, ends: int, text: str) -> dict[str, str]:
    now = utc_now()
    times = {"from": now + timedelta(hours=begins), "until": now + timedelta(hours=ends)}
    return {"text": text} | {key: moment.isoformat() for key, moment in times.items()}


@pytest.mark.parametrize(
    "settings_changes",
    [{"notices": [notice(48, 50, "Later <b>work</b>."), notice(24, 25, "Sooner."), notice(-3, -1, "Over.")]}],
)
def test_planned_work_is_announced_until_it_is_over(app: Flask) -> None:
    client = signed_in(app)
    for url in ("/", "/status"):
        page = client.get(url).text
        assert page.index("Sooner.") < page.index("Later &lt;b&gt;work&lt;/b&gt;.")
        assert "Over." not in page


@pytest.mark.parametrize("settings_changes", [{"support_contact": "help@example.org"}])
def test_errors_say_whom_to_ask_also_without_the_database(app: Flask, tmp_path: Any) -> None:
    client = signed_in(app)
    database_module.connect_to(f"sqlite:///{tmp_path}/nowhere/portal.sqlite")

    for url, status in (("/", 503), ("/nothing", 404)):
        page = client.get(url)
        assert page.status_code == status
        assert "mailto:help@example.org" in page.text
    assert "It may have moved" in client.get("/nothing").text


@pytest.mark.parametrize("settings_changes", [{"support_contact": "help@example.org"}])
def test_a_disabled_user_is_told_what_happened_and_whom_to_ask(app: Flask) -> None:
    client = signed_in(app)
    with transaction() as db:
        db.execute(update(User).values(is_disabled=True))
    page = client.get("/account")

    assert page.status_code == 403
    assert "This account is disabled" in page.text
    assert "mailto:help@example.org" in page.text


def test_a_full_list_says_the_limit_and_how_to_make_room(app: Flask, node: AgentServer) -> None:
    client = signed_in(app)
    for _ in range(3):
        assert make_configuration(client).status_code == 200
    page = client.get("/configurations").text

    assert "You have 3 of 3 configurations." in page
    assert "End one below" in page
    with transaction(read_only=True) as db:
        assert len(db.scalars(select(Connection.id)).all()) == 3


def test_how_to_import_is_open_for_the_own_system(app: Flask, node: AgentServer) -> None:
    page = signed_in(app).get("/configurations", headers={"User-Agent": ANDROID}).text

    opened = re.findall(r'<details class="steps-of" open>\s*<summary>([^<]+)<', page)
    assert opened == ["Android (this device)"]


def test_the_password_page_of_before_still_changes_it(app: Flask) -> None:
    add_account()
    client = app.test_client()
    sign_in(client)
    new = "another phrase 88"

    assert "Change the password" in client.get("/password").text
    wrong = send(client, "/password", current_password="x", new_password=new, repeated_password=new)
    assert wrong.status_code == 403
    done = send(client, "/password", current_password=PASSWORD, new_password=new, repeated_password=new)
    assert done.location == "/account?done=password"
