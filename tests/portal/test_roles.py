"""Who may do what: each role against each page and act of administration."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from portal_app.roles import RIGHTS, Right
from tests.portal.app_user import ORIGIN, add_user, browser
from tests.portal.pages import send

#: The table: what each role may do beyond a user's own things.
TABLE = {
    "nobody special": set(),
    "helpdesk": {Right.SEE, Right.END, Right.RESET},
    "auditor": {Right.SEE, Right.SEARCH},
    "admin": {Right.SEE, Right.SEARCH, Right.END, Right.RESET, Right.MANAGE},
}


def rules(app: Flask) -> list[tuple[Rule, str]]:
    """Return every rule of administration with each method that does something."""
    return [
        (rule, method)
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/admin")
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


def address(rule: Rule) -> str:
    """Return an address of the rule with values that nothing has."""
    return re.sub(r"<(?:\w+(?:\([^)]*\))?:)?(\w+)>", "9999", rule.rule)


@pytest.fixture
def database() -> str:
    return "sqlite"


def test_table_is_what_roles_give() -> None:
    assert {name: set(rights) for name, rights in RIGHTS.items()} == {
        name: rights for name, rights in TABLE.items() if rights
    }


def test_every_view_of_administration_names_its_right(app: Flask) -> None:
    views = {rule.endpoint: app.view_functions[rule.endpoint] for rule, _method in rules(app)}

    assert views
    assert {
        name for name, view in views.items() if not isinstance(getattr(view, "right", None), Right)
    } == set()


@pytest.mark.parametrize("role", TABLE)
def test_role_may_do_what_the_table_says_and_no_more(app: Flask, role: str) -> None:
    client = browser(app, add_user("somebody", [role]))
    for rule, method in rules(app):
        right = app.view_functions[rule.endpoint].right  # type: ignore[attr-defined]
        if method == "GET":
            status = client.get(address(rule)).status_code
        else:
            status = send(client, address(rule)).status_code
        assert (status == 403) == (right not in TABLE[role]), (rule, method, status)
        assert status < 500, (rule, method)


def test_visitor_is_sent_to_sign_in(app: Flask, client: FlaskClient) -> None:
    for rule, method in rules(app):
        if method == "GET":
            answer = client.get(address(rule))
            assert answer.status_code == 303, rule
            assert answer.location.startswith(("/sign-in", f"{ORIGIN}/sign-in"))


def test_form_of_another_site_is_refused(app: Flask) -> None:
    """W3."""
    client = browser(app, add_user("root", ["admin"]))
    for rule, method in rules(app):
        if method != "GET":
            assert client.open(address(rule), method=method, data={"csrf_token": "x"}).status_code == 403
            stolen = {"Sec-Fetch-Site": "cross-site"}
            token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/password").text)
            assert token
            answer = client.open(address(rule), method=method, data={"csrf_token": token[1]}, headers=stolen)
            assert answer.status_code == 403
