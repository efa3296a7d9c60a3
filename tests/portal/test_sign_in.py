"""Signing in, staying signed in, and what ends it."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from portal_app import login
from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AuditEvent, BrowserSession, LocalAccount, User
from portal_app.services import passwords, users
from portal_app.settings import Settings
from tests.portal.app_user import HOST, HttpsClient, csrf_token
from tests.portal.pages import PASSWORD, add_account, is_signed_in, problem, send, sign_in


def cookie(client: FlaskClient, name: str = login.SESSION_COOKIE) -> str | None:
    found = client.get_cookie(name, domain=HOST)
    return found.value if found else None


def sessions() -> int:
    with transaction(read_only=True) as db:
        return db.scalar(select(func.count()).select_from(BrowserSession)) or 0


def age_sessions(by: timedelta) -> None:
    with transaction() as db:
        for session in db.scalars(select(BrowserSession)):
            session.last_seen_at -= by


def test_signing_in_returns_to_exactly_the_address_that_asked_for_it(client: FlaskClient) -> None:
    add_account()
    target = "/oauth/authorize?state=a%20b%2Bc&x=1&x=%C3%BC&redirect_uri=http%3A%2F%2F127.0.0.1%3A5%2F"

    asked = client.get("/connections?state=a%20b%2Bc&x=1&x=%C3%BC")
    assert asked.status_code == 303
    page = client.get(asked.location)
    form = {"csrf_token": csrf_token(page.text), "user_name": "alice", "password": PASSWORD}
    field = next(i for i in page.text.split("<input") if 'name="next"' in i).split('value="')[1].split('"')[0]
    back = client.post("/sign-in", data=form | {"next": field.replace("&amp;", "&")})

    assert back.location == "/connections?state=a%20b%2Bc&x=1&x=%C3%BC"
    assert sign_in(client, target=target).location == target


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example.org/",
        "https://evil.example.org/",
        "/\\evil.example.org",
        "\\\\evil.example.org",
        "javascript:alert(1)",
        "/\t/evil.example.org",
        "/%0d%0aSet-Cookie:x=1\r\nX: y",
        " //evil.example.org",
        "http:evil.example.org",
        "evil",
        "",
        "/" + "a" * 9000,
        "/ümlaut",
        "///evil.example.org",
        "https:///evil.example.org",
        "/x\\..\\y",
    ],
)
def test_the_way_back_stays_on_the_portal(target: str) -> None:
    """W13."""
    assert login.own_path(target) == "/"


def test_the_session_cookie_is_bound_to_the_host_and_out_of_reach_of_scripts(client: FlaskClient) -> None:
    """W1."""
    add_account()
    line = next(h for h in sign_in(client).headers.getlist("Set-Cookie") if h.startswith("__Host-session="))

    attributes = {part.strip().lower() for part in line.split(";")[1:]}
    assert attributes == {"secure", "httponly", "path=/", "samesite=lax"}


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer_after_the_same_work(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W9."""
    add_account()
    add_account("waiting", password=None)
    work: list[str] = []
    verify = passwords._hasher.verify

    class Counting:
        def verify(self, password_hash: str, password: str) -> bool:
            work.append(password_hash.rsplit("$", 2)[0])
            return verify(password_hash, password)

    monkeypatch.setattr(passwords, "_hasher", Counting())
    monkeypatch.setattr(
        passwords, "_nobodys_hash", lambda: passwords.PasswordHasher(2, 19 * 1024, 1).hash("x")
    )
    answers = [sign_in(client, name, "not the password") for name in ("alice", "waiting", "nobody")]

    assert {a.status_code for a in answers} == {403}
    assert {problem(a.text) for a in answers} == {"User name or password is wrong."}
    assert (
        len(
            {
                a.text.replace(n, "").split("csrf_token")[0]
                for a, n in zip(answers, ("alice", "waiting", "nobody"), strict=True)
            }
        )
        == 1
    )
    assert len(work) == 3
    assert len(set(work)) == 1


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 255, "a\0b", "alice' OR 1=1 --", "ünï\u202ecode", "<script>"]
)
def test_hostile_user_names_are_only_wrong(client: FlaskClient, name: str) -> None:
    assert sign_in(client, name, PASSWORD).status_code in (400, 403)


def test_a_name_is_the_same_however_its_accents_are_typed(client: FlaskClient) -> None:
    add_account("zoe\u0308")

    assert sign_in(client, "zo\u00eb").status_code == 303


def test_a_sign_in_takes_no_session_id_from_the_browser(app: Flask, client: FlaskClient) -> None:
    """W1: session fixation."""
    add_account()
    client.set_cookie(login.SESSION_COOKIE, "chosen-by-somebody-else", domain=HOST, path="/", secure=True)
    sign_in(client)

    assert cookie(client) != "chosen-by-somebody-else"
    other = app.test_client()
    other.set_cookie(login.SESSION_COOKIE, "chosen-by-somebody-else", domain=HOST, path="/", secure=True)
    assert not is_signed_in(other)


def test_signing_in_again_gives_a_new_id_and_ends_the_old_one(app: Flask, client: FlaskClient) -> None:
    """W1."""
    add_account()
    sign_in(client)
    first = cookie(client)
    # The sign-in page sends back who is signed in already; its form still works, as from a second tab.
    token = csrf_token(client.get("/").text)
    client.post("/sign-in", data={"csrf_token": token, "user_name": "alice", "password": PASSWORD})

    assert cookie(client) != first
    old = app.test_client()
    old.set_cookie(login.SESSION_COOKIE, str(first), domain=HOST, path="/", secure=True)
    assert not is_signed_in(old)
    assert is_signed_in(client)


def test_a_session_ends_when_it_is_idle_for_too_long(client: FlaskClient, settings: Settings) -> None:
    """W2."""
    add_account()
    sign_in(client)
    age_sessions(timedelta(seconds=settings.browser_session_seconds - 5))
    assert is_signed_in(client)
    age_sessions(timedelta(seconds=settings.browser_session_seconds + 1))

    assert not is_signed_in(client)


def test_a_session_ends_at_its_absolute_end_however_busy_it_is(client: FlaskClient) -> None:
    """W2."""
    add_account()
    sign_in(client)
    with transaction() as db:
        db.execute(update(BrowserSession).values(expires_at=utc_now()))

    assert not is_signed_in(client)


def test_reading_pages_writes_the_session_at_most_once_a_minute(client: FlaskClient) -> None:
    add_account()
    sign_in(client)

    def last_seen() -> Any:
        with transaction(read_only=True) as db:
            return db.scalar(select(BrowserSession.last_seen_at))

    before = last_seen()
    client.get("/")
    assert last_seen() == before
    age_sessions(timedelta(seconds=61))
    aged = last_seen()
    client.get("/")
    assert last_seen() > aged


def test_page_that_refreshes_itself_keeps_nobody_signed_in(client: FlaskClient) -> None:
    """W2: static/live.js asks with this header."""
    add_account()
    sign_in(client)
    for _ in range(31):
        age_sessions(timedelta(seconds=60))
        client.get("/", headers={"X-Live": "1"})

    assert client.get("/").status_code == 303


def test_visitors_and_robots_leave_no_rows(app: Flask) -> None:
    for _ in range(5):
        visitor = app.test_client()
        visitor.get("/")
        visitor.get("/sign-in")
        sign_in(visitor, "nobody", "wrong", source="203.0.113.9")

    assert sessions() == 0


def test_signing_out_ends_the_session_on_the_server(app: Flask, client: FlaskClient) -> None:
    """W2."""
    add_account()
    sign_in(client)
    token = cookie(client)
    assert send(client, "/sign-out").status_code == 303

    assert cookie(client) is None
    thief = app.test_client()
    thief.set_cookie(login.SESSION_COOKIE, str(token), domain=HOST, path="/", secure=True)
    assert not is_signed_in(thief)
    assert sessions() == 0


def test_signing_out_everywhere_ends_the_other_browsers(app: Flask) -> None:
    """W2."""
    add_account()
    here, there = app.test_client(), app.test_client()
    sign_in(here)
    sign_in(there)
    assert "1 other browser" in here.get("/password").text
    send(here, "/sign-out-everywhere")

    assert not is_signed_in(here)
    assert not is_signed_in(there)


def test_a_new_password_ends_the_other_browsers_and_renews_this_one(app: Flask) -> None:
    """W1, W2."""
    add_account()
    here, there = app.test_client(), app.test_client()
    sign_in(here)
    sign_in(there)
    before = cookie(here)
    changed = change_password(here, PASSWORD, "another phrase 88")

    assert changed.status_code == 303
    assert "The password is changed" in here.get(changed.location).text
    assert cookie(here) != before
    assert not is_signed_in(there)
    assert sign_in(there, password=PASSWORD).status_code == 403
    assert sign_in(there, password="another phrase 88").status_code == 303


def change_password(client: FlaskClient, current: str, new: str, again: str | None = None) -> Any:
    return send(
        client, "/password", current_password=current, new_password=new, repeated_password=again or new
    )


def test_a_new_password_needs_the_current_one(client: FlaskClient) -> None:
    add_account()
    sign_in(client)

    assert (
        problem(change_password(client, "wrong", "another phrase 88").text)
        == "The current password is wrong."
    )
    assert problem(change_password(client, PASSWORD, "another phrase 88", "differs in this").text)
    assert sign_in(client).status_code == 303


@pytest.mark.parametrize(
    "password",
    [
        "too short",
        "aaaaaaaaaaaaaaa",
        "abcabcabcabc",
        "123456789012",
        "098765432109",
        "qwertyuiopas",
        "password1234!",
        "P@ssw0rd2026",
        "Welcome-Welcome-1",
        "alice2026alice",
        "iloveyou12345",
        "x" * 1025,
        "1q2w3e4r5t6y",
    ],
)
def test_passwords_that_are_tried_first_are_refused(password: str) -> None:
    """W10."""
    with pytest.raises(passwords.WeakPassword):
        passwords.check_new(password, "alice@example.org")


@pytest.mark.parametrize(
    "password",
    [
        "purple trombone lake",
        "nur kleine buchstaben",
        "x7#Kq-9!mVz2",
        "密码密码很长的一句话真的",
        " leading and trailing ",
        "long " * 100 + "and long",
        "Tr0ub4dor and the 3 others",
    ],
)
def test_long_passwords_of_any_composition_are_accepted(client: FlaskClient, password: str) -> None:
    """W10."""
    add_account(password=password)

    assert sign_in(client, password=password).status_code == 303
    assert sign_in(client, password=password[:-1]).status_code == 403


def test_passwords_are_hashed_with_argon2id_at_the_stated_cost() -> None:
    """W10."""
    assert passwords.hash_password("whatever it is").startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_hash_of_other_parameters_is_renewed_at_sign_in(client: FlaskClient) -> None:
    add_account()
    with transaction() as db:
        old = passwords.PasswordHasher(time_cost=1, memory_cost=8 * 1024, parallelism=1).hash(PASSWORD)
        db.execute(update(LocalAccount).values(password_hash=old))
    assert sign_in(client).status_code == 303

    with transaction(read_only=True) as db:
        assert "$m=19456,t=2,p=1$" in str(db.scalar(select(LocalAccount.password_hash)))
    assert sign_in(client).status_code == 303


def test_a_disabled_account_is_refused_at_sign_in_and_in_a_living_session(client: FlaskClient) -> None:
    add_account()
    sign_in(client)
    with transaction() as db:
        db.execute(update(User).values(is_disabled=True))

    page = client.get("/")
    assert (page.status_code, "disabled" in page.text) == (403, True)
    send(client, "/sign-out", page="/")
    assert "disabled" in sign_in(client).text
    assert sign_in(client, password="wrong").text.count("disabled") == 0


def test_disabling_a_user_ends_the_browser_sessions(client: FlaskClient) -> None:
    add_account()
    sign_in(client)
    users.disable("alice", actor="test", now=utc_now())
    assert not is_signed_in(client)
    users.enable("alice", actor="test", now=utc_now())
    assert not is_signed_in(client)

    assert sign_in(client).status_code == 303


@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["staff"]}])
def test_the_access_permission_is_asked_for_at_each_request(client: FlaskClient) -> None:
    add_account()
    assert "may not use" in sign_in(client).text
    with transaction() as db:
        db.execute(update(User).values(permissions=["staff"]))
    assert sign_in(client).status_code == 303
    assert is_signed_in(client)
    with transaction() as db:
        db.execute(update(User).values(permissions=[]))

    page = client.get("/")
    assert (page.status_code, "may not use" in page.text) == (403, True)


def test_a_change_of_rights_asks_for_a_new_sign_in(client: FlaskClient) -> None:
    """W1: new session id at change of rights."""
    add_account()
    sign_in(client)
    users.set_permissions("alice", ["admin"], access_permissions=None, actor="test", now=utc_now())
    assert not is_signed_in(client)
    sign_in(client)
    users.set_permissions("alice", ["admin"], access_permissions=None, actor="test", now=utc_now())

    assert is_signed_in(client), "the same rights are no change"


def test_the_other_portal_knows_the_session_and_takes_the_form(
    app: Flask, client: FlaskClient, settings: Settings
) -> None:
    """R18."""
    add_account()
    page = client.get("/sign-in")
    other = second_portal(settings).test_client()
    for name in (login.VISITOR_COOKIE,):
        other.set_cookie(name, str(cookie(client, name)), domain=HOST, path="/", secure=True)
    form = {"csrf_token": csrf_token(page.text), "user_name": "alice", "password": PASSWORD}
    assert other.post("/sign-in", data=form).status_code == 303
    client.set_cookie(login.SESSION_COOKIE, str(cookie(other)), domain=HOST, path="/", secure=True)

    assert is_signed_in(client)
    token = csrf_token(client.get("/").text)
    assert other.post("/sign-out", data={"csrf_token": token}).status_code == 303
    assert not is_signed_in(client)


def second_portal(settings: Settings) -> Flask:
    app = create_app(settings)
    app.test_client_class = HttpsClient
    return app


def without_token(page: str) -> dict[str, str]:
    return {}


def of_another_browser(page: str) -> dict[str, str]:
    return {"csrf_token": csrf_token(page)}


@pytest.mark.parametrize(
    "url",
    [
        "/sign-in",
        "/sign-out",
        "/sign-out-everywhere",
        "/password",
        "/configurations",
        "/apps/1/revoke",
        "/connections/00/end",
        "/oauth/authorize",
        "/set-password/x",
    ],
)
@pytest.mark.parametrize("form", [without_token, of_another_browser])
def test_a_form_without_a_token_of_this_browser_is_refused(
    app: Flask, client: FlaskClient, url: str, form: Callable[[str], dict[str, str]]
) -> None:
    """W3."""
    add_account()
    sign_in(client)
    foreign = form(app.test_client().get("/sign-in").text)

    answer = client.post(url, data=foreign | {"user_name": "alice", "password": PASSWORD, "approve": "yes"})
    assert answer.status_code == 403
    assert "too old or came from elsewhere" in answer.text
    assert is_signed_in(client)


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://evil.example.org"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://vpn.example.org"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://vpn.example.org"}, True),
        ({}, True),
    ],
)
def test_a_form_from_another_site_is_refused_even_with_the_token(
    client: FlaskClient, headers: dict[str, str], accepted: bool
) -> None:
    """W3."""
    add_account()
    sign_in(client)
    token = csrf_token(client.get("/").text)
    answer = client.post("/sign-out", data={"csrf_token": token}, headers=headers)

    assert (answer.status_code == 303) is accepted
    assert is_signed_in(client) is not accepted


def test_get_changes_nothing(client: FlaskClient) -> None:
    """W3."""
    add_account()
    sign_in(client)
    for url in ("/sign-out", "/sign-out-everywhere", "/apps/1/revoke", "/connections/00/end"):
        assert client.get(url).status_code == 405

    assert is_signed_in(client)


def test_nothing_secret_gets_into_the_log(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    add_account()
    token = users.one_time_link("alice", actor="test", now=utc_now())
    sign_in(client, PASSWORD, "typed into the wrong field")
    sign_in(client)
    client.get(f"/set-password/{token}")

    assert "event=sign_in user=alice" in caplog.text
    for secret in (PASSWORD, "typed into the wrong field", token, str(cookie(client))):
        assert secret not in caplog.text


def signed_out() -> list[tuple[str, str | None]]:
    with transaction(read_only=True) as db:
        rows = db.scalars(select(AuditEvent).where(AuditEvent.action == "signed out"))
        return [(row.actor, row.object) for row in rows]


def test_signing_out_is_written_down(client: FlaskClient) -> None:
    add_account()
    sign_in(client)
    send(client, "/sign-out")

    assert signed_out() == [("alice", "alice")]


def test_a_session_that_was_over_is_not_signed_out(client: FlaskClient, settings: Settings) -> None:
    add_account()
    sign_in(client)
    page = client.get("/account").text
    age_sessions(timedelta(seconds=settings.browser_session_seconds + 1))
    answer = client.post("/sign-out", data={"csrf_token": csrf_token(page)})

    assert answer.status_code == 303
    assert sessions() == 0
    assert signed_out() == []
