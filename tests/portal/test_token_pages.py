"""The pages of tokens of the admin API: what is listed, made once, revoked, refused."""

import logging
import re
import shlex
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import delete, func, select, update
from werkzeug.test import TestResponse

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import ApiToken, AuditEvent, BrowserSession, User
from portal_app.services import tokens
from portal_app.services.tokens import LETS, Scope
from portal_app.views.admin.tokens import FIRST_CALLS, LIVES, example
from tests.portal.app_user import add_user, browser
from tests.portal.pages import elements, form_of, problem, send
from tests.portal.scripts import API, Script, make_token
from tests.portal.test_pages import HOSTILE, everything_stored, signed_in

SQLITE = pytest.mark.parametrize("database", ["sqlite"])
FIELDS = {"name": "deploy", "scope": ["users:read", "nodes:read"], "days": "30"}


@pytest.fixture
def root(app: Flask) -> FlaskClient:
    return signed_in(app, "root", ["admin"])


def make(client: FlaskClient, **changes: Any) -> TestResponse:
    """Open the form for a token and send it."""
    form = form_of(client.get("/admin/tokens/add").text)
    return client.post("/admin/tokens/add", data=form | FIELDS | changes)


def shown(page: str) -> str:
    """Return the token that an answer shows."""
    (field,) = (e for e in elements(page, "input") if e.get("id") == "token")
    return str(field["value"])


def count() -> int:
    with transaction(read_only=True) as db:
        return db.scalar(select(func.count()).select_from(ApiToken)) or 0


def number_of(name: str) -> int:
    with transaction(read_only=True) as db:
        found = db.scalar(select(ApiToken.id).where(ApiToken.name == name, ApiToken.revoked_at.is_(None)))
    assert found is not None
    return found


def row_of(page: str, name: str) -> str:
    """Return what the list says about one token, without its markup."""
    row = page.partition(f'<th scope="row" data-label="Name">{name}</th>')[2].partition("</tr>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row))


def test_token_is_shown_in_the_answer_and_nowhere_else(
    app: Flask, root: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = make(root)
    token = shown(answer.text)

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Location" not in answer.headers
    assert f'value="{token}" readonly' in answer.text
    assert answer.text.count(token) == 1, "the example names a file, not the token"
    assert token not in everything_stored() + caplog.text
    assert "event=api_token_made" in caplog.text
    for url in ("/admin/tokens", "/admin/tokens/add", "/admin/audit", "/admin/", "/admin/system"):
        assert token not in root.get(url).text
    script = Script(app, token)
    assert [script.get(path).status_code for path in ("/users", "/nodes", "/audit")] == [200, 200, 403]


def test_making_a_token_is_in_the_audit_log_with_who_and_from_where(root: FlaskClient) -> None:
    make(root)

    with transaction(read_only=True) as db:
        (act,) = db.scalars(select(AuditEvent)).all()
    assert (act.action, act.actor, act.object) == ("token made", "root", "deploy")
    assert act.source == "127.0.0.1"
    assert act.details["scopes"] == ["nodes:read", "users:read"]
    assert set(act.details) == {"scopes", "expires_at"}


def test_answer_has_the_only_script_that_copies(root: FlaskClient) -> None:
    answer = make(root)

    (script,) = elements(answer.text, "script")
    assert str(script["src"]).startswith("/static/copy.js?v=")
    assert f"script-src 'nonce-{script['nonce']}'" in answer.headers["Content-Security-Policy"]
    (button,) = (e for e in elements(answer.text, "button") if "data-copy" in e)
    assert button["data-copy"] == "token"
    assert "hidden" in button, "without scripts there is no button that does nothing"


def test_form_that_is_sent_again_makes_nothing_and_shows_nothing(root: FlaskClient) -> None:
    form = form_of(root.get("/admin/tokens/add").text) | FIELDS
    token = shown(root.post("/admin/tokens/add", data=form).text)
    again = root.post("/admin/tokens/add", data=form)
    under_another_name = root.post("/admin/tokens/add", data=form | {"name": "second"})

    for answer in (again, under_another_name):
        assert answer.status_code == 409
        assert "was sent before" in problem(answer.text)
        assert token not in answer.text
    assert count() == 1


def test_form_that_was_refused_can_be_corrected_and_sent(root: FlaskClient) -> None:
    """What was refused has not used the form up: a reload says the same again."""
    make_token("deploy")
    form = form_of(root.get("/admin/tokens/add").text) | FIELDS
    refused = [root.post("/admin/tokens/add", data=form) for _ in range(2)]

    assert [answer.status_code for answer in refused] == [409, 409]
    assert all("exists already" in problem(answer.text) for answer in refused)
    assert root.post("/admin/tokens/add", data=form | {"name": "other"}).status_code == 200
    assert count() == 2


@SQLITE
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scope": []}, "at least one scope"),
        ({"scope": ["users:read", "everything"]}, "no scope"),
        ({"scope": [HOSTILE[:30]]}, "no scope"),
        ({"scope": ["users:read"] * 10}, "missing or too long"),
        ({"scope": ["x" * 41]}, "missing or too long"),
        ({"days": "367"}, "366 days at most"),
        ({"days": "999999"}, "366 days at most"),
        ({"days": "0"}, "at least"),
        ({"days": "-1"}, "how long"),
        ({"days": "1.5"}, "how long"),
        ({"days": "٣"}, "how long"),
        ({"days": ""}, "how long"),
        ({"name": ""}, "name of a token"),
        ({"name": "a b"}, "name of a token"),
        ({"name": "ü"}, "name of a token"),
        ({"name": "-x"}, "name of a token"),
        ({"name": "x" * 61}, "name of a token"),
        ({"name": HOSTILE}, "name of a token"),
    ],
)
def test_impossible_token_is_refused_and_what_was_typed_stays(
    root: FlaskClient, changes: dict[str, Any], says: str
) -> None:
    answer = make(root, **changes)

    assert answer.status_code == 400
    assert says in problem(answer.text)
    assert not list(elements(answer.text, "img"))
    named = next(e for e in elements(answer.text, "input") if e.get("name") == "name")
    assert named["value"] == str(changes.get("name", "deploy"))[:60]
    ticked = {e["value"] for e in elements(answer.text, "input") if "checked" in e}
    assert ticked == set(changes.get("scope", FIELDS["scope"])) & set(Scope)
    assert count() == 0


@SQLITE
@pytest.mark.parametrize("missing", ["name", "days", "form_key", "csrf_token"])
@pytest.mark.parametrize("value", [None, ["a", "b"], "x" * 400, "\0"])
def test_form_with_a_field_that_is_none_is_refused(root: FlaskClient, missing: str, value: Any) -> None:
    form = form_of(root.get("/admin/tokens/add").text) | FIELDS | {missing: value}
    form = {name: value for name, value in form.items() if value is not None}

    assert root.post("/admin/tokens/add", data=form).status_code in (400, 403)
    assert count() == 0


@SQLITE
def test_each_offered_life_can_be_had(root: FlaskClient) -> None:
    page = root.get("/admin/tokens/add").text
    lives = [str(e["value"]) for e in elements(page, "option") if str(e.get("value", "")).isdecimal()]

    assert lives == [str(days) for days in LIVES]
    assert max(LIVES) == tokens.LONGEST_LIFE.days
    for days in lives:
        now = utc_now()
        assert make(root, name=f"for-{days}", days=days).status_code == 200
        with transaction(read_only=True) as db:
            ends = db.scalar(select(ApiToken.expires_at).where(ApiToken.name == f"for-{days}"))
        assert ends is not None
        assert timedelta(0) <= ends - now - timedelta(days=int(days)) < timedelta(minutes=1)


def test_form_offers_each_scope_in_plain_words(root: FlaskClient) -> None:
    page = root.get("/admin/tokens/add").text

    assert list(LETS) == list(Scope)
    offered = [e["value"] for e in elements(page, "input") if e.get("name") == "scope"]
    assert offered == list(Scope)
    for text in LETS.values():
        assert f">{text}</label>" in page
    assert "As good as an administrator" in page


@SQLITE
@pytest.mark.parametrize("scope", Scope)
def test_example_is_a_call_that_the_scope_allows(app: Flask, scope: Scope) -> None:
    words = shlex.split(example([scope]).replace("\\\n", ""))
    path = next(word for word in words if word.startswith("https://")).partition(API)[2]
    method = words[words.index("--request") + 1] if "--request" in words else "GET"
    body: dict[str, Any] = {}
    if "--json" in words:
        method = "POST"
        body = {"data": words[words.index("--json") + 1], "headers": {"Content-Type": "application/json"}}

    app.url_map.bind("").match(f"{API}{path.partition('?')[0]}", method=method)
    status = Script(app, make_token("script", [scope])).call(method, path, **body).status_code
    # The user, connection and node of an example need not be there.
    assert status in (200, 201, 404), status
    assert list(FIRST_CALLS)[:5] == [one for one in Scope if one.endswith(":read")]


def test_list_says_how_each_token_is(app: Flask, root: FlaskClient) -> None:
    add_user("maria", ["admin"])
    make_token("for-ever", ["nodes:read"], life=timedelta(days=366))
    make_token("short", ["audit:read"], life=timedelta(days=6))
    make_token("over", ["users:read"])
    make_token("hers", ["users:write"], maker="maria")
    make_token("gone", ["users:read"])
    tokens.revoke("gone", actor="test", now=utc_now())
    with transaction() as db:
        db.execute(update(ApiToken).where(ApiToken.name == "over").values(expires_at=utc_now()))
    used = Script(app, shown(make(root).text))
    assert used.get("/users").status_code == 200

    page = root.get("/admin/tokens").text
    assert " good nodes:read " in row_of(page, "for-ever")
    assert "on the command line" in row_of(page, "for-ever")
    assert "never" in row_of(page, "for-ever")
    assert "ends soon" in row_of(page, "short")
    assert "expired" in row_of(page, "over")
    assert " good " in row_of(page, "hers")
    assert "by maria" in row_of(page, "hers")
    assert "never" not in row_of(page, "deploy").partition("What it did")[0]
    assert 'href="/admin/audit?actor=api:deploy"' in page
    assert not row_of(page, "gone")
    gone = root.get("/admin/tokens?show=revoked").text
    assert "revoked" in row_of(gone, "gone")
    assert "for-ever" not in gone
    assert "/revoke" not in gone


@pytest.mark.parametrize("change", [{"permissions": ["staff"]}, {"is_disabled": True}])
def test_token_of_who_is_no_administrator_is_suspended_until_they_are(
    app: Flask, root: FlaskClient, change: dict[str, Any]
) -> None:
    add_user("maria", ["admin"])
    script = Script(app, make_token("hers", maker="maria"))
    with transaction() as db:
        db.execute(update(User).where(User.name == "maria").values(**change))

    assert "suspended maria is no administrator now" in row_of(root.get("/admin/tokens").text, "hers")
    assert script.get("/users").status_code == 401
    with transaction() as db:
        db.execute(update(User).where(User.name == "maria").values(permissions=["admin"], is_disabled=False))
    assert " good " in row_of(root.get("/admin/tokens").text, "hers")
    assert script.get("/users").status_code == 200


def test_what_ends_an_administrator_says_how_many_tokens_it_takes(root: FlaskClient) -> None:
    maria = add_user("maria", ["admin"])
    for name in ("one", "two", "over", "gone"):
        make_token(name, maker="maria")
    make_token("of-root", maker="root")
    tokens.revoke("gone", actor="test", now=utc_now())
    with transaction() as db:
        db.execute(update(ApiToken).where(ApiToken.name == "over").values(expires_at=utc_now()))

    page = root.get(f"/admin/users/{maria.id}").text
    assert "2 tokens of the admin API are suspended" in page
    assert "2 tokens of the admin API end" in page
    url = f"/admin/users/{maria.id}/permissions"
    assert "2 tokens of the admin API are suspended" in send(root, url, permissions="staff").text
    assert "of the admin API" not in send(root, url, permissions="staff\nadmin").text


def test_revoking_says_what_stops_asks_once_and_works_at_once(app: Flask, root: FlaskClient) -> None:
    script = Script(app, make_token("deploy", [Scope.USERS_READ, Scope.AUDIT_READ]))
    script.get("/users")
    asked = row_of(root.get("/admin/tokens").text, "deploy")
    assert "They can no longer: Read the audit log See users and the apps" in asked
    assert "It was last used" in asked

    done = send(root, f"/admin/tokens/{number_of('deploy')}/revoke")

    assert (done.status_code, done.location) == (303, "/admin/tokens?done=revoked")
    assert "The token is revoked." in root.get(done.location).text
    assert script.get("/users").status_code == 401
    with transaction(read_only=True) as db:
        act = db.scalars(select(AuditEvent).where(AuditEvent.action == "token revoked")).one()
    assert (act.actor, act.object, act.source) == ("root", "deploy", "127.0.0.1")
    assert make(root).status_code == 200, "its name is free"


def test_revoking_again_is_refused_and_changes_nothing(root: FlaskClient) -> None:
    make_token("deploy")
    number = number_of("deploy")
    assert send(root, f"/admin/tokens/{number}/revoke").status_code == 303
    again = send(root, f"/admin/tokens/{number}/revoke")

    assert again.status_code == 404
    assert "revoked already" in again.text
    with transaction(read_only=True) as db:
        acts = db.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert acts == ["token made", "token revoked"]


def test_token_whose_name_is_the_number_of_another_is_left_alone(app: Flask, root: FlaskClient) -> None:
    make_token("first")
    namesake = Script(app, make_token(str(number_of("first"))))
    send(root, f"/admin/tokens/{number_of('first')}/revoke")

    assert namesake.get("/users").status_code == 200
    assert row_of(root.get("/admin/tokens?show=revoked").text, "first")


@SQLITE
@pytest.mark.parametrize("number", ["0", "-1", "x", str(2**31), str(10**30)])
def test_number_that_no_token_has_is_not_found(root: FlaskClient, number: str) -> None:
    assert send(root, f"/admin/tokens/{number}/revoke").status_code == 404


@SQLITE
def test_who_signed_in_long_ago_says_the_password_first(root: FlaskClient) -> None:
    """W8."""
    make_token("deploy")
    form = form_of(root.get("/admin/tokens/add").text)
    with transaction() as db:
        db.execute(update(BrowserSession).values(signed_in_at=utc_now() - timedelta(hours=1)))
    made = root.post(
        "/admin/tokens/add", data=form | FIELDS | {"name": "second", "next": "/admin/tokens/add"}
    )
    revoked = send(root, f"/admin/tokens/{number_of('deploy')}/revoke", next="/admin/tokens")

    assert made.status_code == revoked.status_code == 303
    assert made.location.endswith("?next=/admin/tokens/add")
    assert revoked.location.endswith("?next=/admin/tokens")
    assert count() == 1
    assert number_of("deploy")


@SQLITE
@pytest.mark.parametrize("change", [{"permissions": ["auditor", "helpdesk"]}, {"is_disabled": True}])
def test_rights_that_were_lost_since_the_form_was_opened_count(
    root: FlaskClient, change: dict[str, Any]
) -> None:
    make_token("deploy")
    form = form_of(root.get("/admin/tokens/add").text)
    with transaction() as db:
        db.execute(update(User).values(**change))

    assert root.post("/admin/tokens/add", data=form | FIELDS | {"name": "second"}).status_code == 403
    assert root.post(f"/admin/tokens/{number_of('deploy')}/revoke", data=form).status_code == 403
    assert count() == 1
    assert number_of("deploy")


@SQLITE
def test_session_that_ended_since_the_form_was_opened_makes_nothing(root: FlaskClient) -> None:
    form = form_of(root.get("/admin/tokens/add").text)
    with transaction() as db:
        db.execute(delete(BrowserSession))

    assert root.post("/admin/tokens/add", data=form | FIELDS).status_code in (303, 403)
    assert count() == 0


@SQLITE
@pytest.mark.parametrize("role", ["helpdesk", "auditor", "staff"])
def test_only_administrators_see_that_there_are_tokens(app: Flask, role: str) -> None:
    make_token("deploy")
    client = browser(app, add_user("somebody", [role]))

    assert client.get("/admin/tokens").status_code == client.get("/admin/tokens/add").status_code == 403
    assert "/admin/tokens" not in client.get("/admin/").text + client.get("/").text


def test_hostile_names_of_makers_are_only_text(app: Flask) -> None:
    """W6."""
    client = signed_in(app, HOSTILE, ["admin"])
    make(client)
    add_user(HOSTILE + "2", ["admin"])
    make_token("other", maker=HOSTILE + "2")
    with transaction() as db:
        db.execute(update(User).where(User.name == HOSTILE + "2").values(permissions=[]))
    page = client.get("/admin/tokens").text

    assert not list(elements(page, "img", "script"))
    assert page.count("&lt;script&gt;") >= 3
    assert "suspended" in row_of(page, "other")


def test_long_lists_have_pages(root: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal_app.services.paging.PAGE_SIZE", 2)
    for name in ("a", "b", "c", "d", "e", "f"):
        make_token(name)
    for name in ("f", "d", "e"):
        tokens.revoke(name, actor="test", now=utc_now())

    def names(page: str) -> list[str]:
        return re.findall(r'<th scope="row" data-label="Name">([^<]+)</th>', page)

    for url, first, second in (
        ("/admin/tokens", ["a", "b"], ["c"]),
        ("/admin/tokens?show=revoked", ["f", "e"], ["d"]),
    ):
        page = root.get(url).text
        (onward,) = (e["href"] for e in elements(page, "a") if e.get("rel") == "next")
        assert names(page) == first
        assert names(root.get(str(onward)).text) == second
    for place in ("x", "WzEsMl0", "\0", "1" * 3000):
        assert root.get("/admin/tokens", query_string={"after": place}).status_code == 200


def test_list_and_command_line_know_the_same(root: FlaskClient) -> None:
    make(root)
    with transaction(read_only=True) as db:
        (one,) = tokens.listed(db, portal().settings, now=utc_now())
        later = tokens.listed(db, portal().settings, now=utc_now() + timedelta(days=31))

    assert (one.token.name, one.token.created_by, one.state) == ("deploy", "root", "good")
    assert [row.state for row in later] == ["expired"]
