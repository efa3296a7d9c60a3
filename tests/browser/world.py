"""A portal with something on every page, and the list of its pages."""

from datetime import timedelta

from flask import Flask
from playwright.sync_api import Page
from sqlalchemy import select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Connection, VpnSession
from portal_app.services import audit
from tests.portal.app_user import VpnApp, add_user
from tests.portal.pages import PASSWORD, add_account

#: Rules that need a value, with one that ``fill`` made; what is not here is not opened.
WITH_VALUES = {
    "/admin/users/<int:user_id>": "/admin/users/1",
    "/admin/users/<int:user_id>/permissions": "/admin/users/1/permissions",
    "/admin/nodes/<int:number>": "/admin/nodes/0",
    "/admin/profiles/<profile_id>": "/admin/profiles/employees",
}
#: What is no page: downloads, probes, and what only leads elsewhere.
NO_PAGES = (
    "/api/",
    "/oauth/",
    "/static/",
    "/healthz",
    "/livez",
    "/.well-known/",
    "/brand/",
    "/set-password/",
)


def fill(app: Flask) -> None:
    """Make people who are connected, and one administrator called root."""
    add_account("root", permissions=["admin"])
    now = utc_now()
    for number, name in enumerate(("alice", "bob", "Łucja Nowak-Kowalska")):
        user = add_user(name)
        answer = VpnApp(app, user).authorize().connect()
        assert answer.status_code == 200, answer.text
        with transaction() as db:
            connection = db.scalars(select(Connection).where(Connection.user_id == user.id)).one()
            db.add(
                VpnSession(
                    node_number=connection.node_number,
                    session_id=f"{number:032x}",
                    connection_id=connection.id,
                    user_name=name,
                    profile_id="employees",
                    protocol="wireguard",
                    ipv4=connection.ipv4,
                    ipv6=connection.ipv6,
                    origin="203.0.113.77",
                    started_at=now - timedelta(hours=number + 1),
                    ended_at=now if number == 2 else None,
                    received_bytes=123_456_789,
                    sent_bytes=9_876,
                )
            )
            audit.record(
                db, "app revoked", actor=name, object="org.eduvpn.app.linux", source="203.0.113.7", now=now
            )


def sign_in(page: Page, name: str) -> None:
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def pages_of(app: Flask) -> list[str]:
    """Return the address of every page that somebody who is signed in can open."""
    found = []
    for rule in app.url_map.iter_rules():
        if "GET" not in (rule.methods or ()) or rule.rule.startswith(NO_PAGES) or rule.rule.endswith(".csv"):
            continue
        if not rule.arguments:
            found.append(rule.rule)
        elif rule.rule in WITH_VALUES:
            found.append(WITH_VALUES[rule.rule])
    return sorted(found)
