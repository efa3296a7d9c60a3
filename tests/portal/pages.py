"""A person at the portal's pages: what they see and press, through HTTP."""

import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser

from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import TestResponse

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import User
from portal_app.services import users
from tests.portal.app_user import csrf_token

PASSWORD = "a fine phrase 77"
#: Somebody at an address of their own; nginx tells it the portal.
ATTACKER, ELSEWHERE = "198.51.100.66", "203.0.113.5"


def add_account(
    name: str = "alice", password: str | None = PASSWORD, permissions: list[str] | None = None
) -> None:
    """Make an account that is older than any session that a test writes."""
    users.add(name, permissions=permissions or [], password=password, actor="test", now=utc_now())
    with transaction() as db:
        aged = update(User).where(User.name == users.normalized(name))
        db.execute(aged.values(created_at=utc_now() - timedelta(days=90)))


def sign_in(
    client: FlaskClient, name: str = "alice", password: str = PASSWORD, *, source: str = "", target: str = ""
) -> TestResponse:
    """Open the sign-in page and send its form."""
    headers = {"X-Forwarded-For": source} if source else {}
    page = client.get("/sign-in", query_string={"next": target} if target else None, headers=headers)
    if page.status_code == 303:
        # Signed in already: any page of ours has a form with a token.
        page = client.get("/", headers=headers)
    form = {"csrf_token": csrf_token(page.text), "user_name": name, "password": password, "next": target}
    return client.post("/sign-in", data=form, headers=headers)


def send(client: FlaskClient, url: str, page: str = "/password", **form: str) -> TestResponse:
    """Send a form with the token that a page of this browser holds."""
    return client.post(url, data={"csrf_token": csrf_token(client.get(page).text)} | form)


def make_configuration(
    client: FlaskClient, choice: str = "employees+wireguard+udp", name: str = "Router"
) -> TestResponse:
    """Open the configurations page and send its form."""
    page = client.get("/configurations").text
    return client.post("/configurations", data=form_of(page) | {"choice": choice, "display_name": name})


def form_of(page: str) -> dict[str, str]:
    """Return the hidden fields of the configurations page's form."""
    keys = re.findall(r'name="form_key" value="([^"]+)"', page)
    return {"csrf_token": csrf_token(page), "form_key": keys[0] if keys else "none"}


def is_signed_in(client: FlaskClient) -> bool:
    return client.get("/").status_code == 200


def problem(page: str) -> str:
    """Return what a form says was wrong."""
    found = re.search(r'role="alert">([^<]+)<', page)
    return found[1] if found else ""


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(page: str, *tags: str) -> Iterator[dict[str, str | None]]:
    """Yield the attributes of a page's elements of these kinds."""
    parser = _Elements()
    parser.feed(page)
    return (attributes for tag, attributes in parser.found if tag in tags)
