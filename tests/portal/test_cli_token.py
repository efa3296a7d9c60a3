"""``vpn-portal token``."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select, update

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import BadRequest, Conflict, Forbidden
from portal_app.models import ApiToken, AuditEvent, User
from portal_app.services import retention, tokens
from portal_app.services.tokens import Scope
from tests.portal.commands import Done
from tests.portal.pages import add_account
from tests.portal.scripts import Script, make_token

Run = Callable[..., Done]


def test_token_is_printed_once_and_is_good_for_its_scopes(
    app: Flask, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    done = run("token", "add", "onboarding", "--scope", "users:read", "--scope", "nodes:read")
    token = done.out.strip()

    assert done.status == 0
    assert token.startswith("cwa_")
    assert "only time" in done.error
    assert token not in done.error + caplog.text
    script = Script(app, token)
    assert [script.get(path).status_code for path in ("/users", "/nodes", "/audit")] == [200, 200, 403]
    assert token not in run("token", "list").out + run("token", "list", "--json").out
    with transaction(read_only=True) as db:
        (act,) = db.scalars(select(AuditEvent)).all()
    assert (act.action, act.actor, act.object) == ("token made", "cli", "onboarding")
    assert act.details["scopes"] == ["nodes:read", "users:read"]


def test_tokens_are_listed_with_their_state(app: Flask, run: Run) -> None:
    run("token", "add", "a", "--scope", "users:read", "--expires", "12h")
    run("token", "add", "b", "--scope", "audit:read")
    run("token", "add", "c", "--scope", "audit:read")
    run("token", "revoke", "b")
    with transaction() as db:
        db.execute(update(ApiToken).where(ApiToken.name == "c").values(expires_at=utc_now()))

    listed = json.loads(run("token", "list", "--json").out)
    assert [(t["name"], t["state"], t["created_by"]) for t in listed] == [
        ("a", "good", "cli"),
        ("b", "revoked", "cli"),
        ("c", "expired", "cli"),
    ]
    table = run("token", "list").out.splitlines()
    assert len(table) >= 4
    assert "never" in table[-1]


def test_list_says_when_the_maker_is_no_admin(app: Flask, run: Run) -> None:
    add_account("maria", permissions=["admin"])
    make_token("a", maker="maria")
    with transaction() as db:
        db.execute(update(User).values(permissions=[]))

    (listed,) = json.loads(run("token", "list", "--json").out)
    assert (listed["state"], listed["created_by"]) == ("suspended", "maria")
    assert "suspended" in run("token", "list").out


@pytest.mark.parametrize("by", ["name", "number"])
def test_revoked_token_ends_at_once_and_its_name_is_free(app: Flask, run: Run, by: str) -> None:
    script = Script(app, run("token", "add", "a", "--scope", "users:read").out.strip())
    number = json.loads(run("token", "list", "--json").out)[0]["id"]
    assert script.get("/users").status_code == 200

    done = run("token", "revoke", "a" if by == "name" else str(number))

    assert (done.status, done.out) == (0, "a is good for nothing any more\n")
    assert script.get("/users").status_code == 401
    assert run("token", "revoke", "a").status == 1
    again = Script(app, run("token", "add", "a", "--scope", "users:read").out.strip())
    assert (again.get("/users").status_code, script.get("/users").status_code) == (200, 401)
    with transaction(read_only=True) as db:
        actions = db.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    assert actions == ["token made", "token revoked", "token made"]


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a b", "--scope", "users:read"], "digits"),
        (["", "--scope", "users:read"], "digits"),
        (["ü", "--scope", "users:read"], "digits"),
        (["x" * 61, "--scope", "users:read"], "digits"),
        (["a\nb", "--scope", "users:read"], "digits"),
        (["-", "--scope", "users:read"], "digits"),
        (["a", "--scope", "users:read", "--expires", "367d"], "366 days"),
        (["a", "--scope", "users:read", "--expires", "0d"], "366 days"),
    ],
)
def test_impossible_token_is_refused(run: Run, words: list[str], says: str) -> None:
    done = run("token", "add", *words)

    assert (done.status, done.out, says in done.error) == (1, "", True), done.error
    assert json.loads(run("token", "list", "--json").out) == []


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    "words",
    [
        ["a"],
        ["a", "--scope", "everything"],
        ["a", "--scope", "users:read", "--expires", "30"],
        ["a", "--scope", "users:read", "--expires", "-1d"],
    ],
)
def test_wrong_command_line_is_refused(run: Run, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        run("token", "add", *words)


def test_name_of_a_living_token_is_taken(run: Run) -> None:
    run("token", "add", "a", "--scope", "users:read")
    done = run("token", "add", "a", "--scope", "users:read")

    assert (done.status, "exists already" in done.error) == (1, True)


def test_only_an_admin_makes_tokens(app: Flask) -> None:
    add_account("root", permissions=["admin"])
    add_account("helper", permissions=["helpdesk"])

    for maker in ("helper", "nobody"):
        with pytest.raises(Forbidden):
            make_token("a", maker=maker)
    make_token("a", maker="root")
    with pytest.raises(Conflict):
        make_token("a", maker="root")
    for scopes in ([], ["users:read", "everything"]):
        with pytest.raises(BadRequest):
            make_token("b", scopes)


def test_tokens_are_forgotten_a_year_after_their_end(app: Flask) -> None:
    make_token("old", life=timedelta(days=1))
    make_token("new", [Scope.USERS_READ])
    later = utc_now() + timedelta(days=1) + retention.AUDIT

    assert retention.prune(retention=timedelta(days=30), now=later)["api_tokens"] == 1
    with transaction(read_only=True) as db:
        assert [one.token.name for one in tokens.listed(db, portal().settings, now=later)] == ["new"]
