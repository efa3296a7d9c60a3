"""Pictures of the main pages for the documents, light and dark, on a desk and on a phone.

``make screenshots`` runs this and writes ``docs/images``; it tests nothing.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page
from sqlalchemy import text

from portal_app import migrations
from portal_app.db import transaction
from portal_app.models import LocalAccount, User
from portal_app.settings import Settings
from tests.browser.world import fill_for_pictures, nodes_answered, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp
from tests.portal.pages import make_configuration
from tests.portal.test_pages import begin_use, live_connections
from vpn_core.messages import Usage

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: Of alice's own.
OWN_PAGES = {"home": "/", "devices": "/devices"}
PAGES = {
    "overview": "/admin/",
    "connections": "/admin/connections",
    "user": "/admin/users/{alice}",
    "statistics": "/admin/statistics?period=week",
}
#: On a desk in daylight only.
MORE_OWN_PAGES = {"configurations": "/configurations", "account": "/account", "status": "/status"}
MORE_PAGES = {
    "users": "/admin/users",
    "nodes": "/admin/nodes",
    "node": "/admin/nodes/0",
    "profiles": "/admin/profiles",
    "profile": "/admin/profiles/employees",
    "who-had-it": "/admin/who-had-it",
    "history": "/admin/history",
    "audit": "/admin/audit",
    "tokens": "/admin/tokens",
    "system": "/admin/system",
}


def ask_who_had(page: Page) -> None:
    address = next(one.ipv4 for one in live_connections() if one.ipv4)
    page.get_by_label("Address").fill(str(address))
    page.get_by_role("button", name="Search").click()


#: A part of the page of a user, which is long.
WHY = "section[aria-labelledby=why]"
#: Writes what a deployed portal shows where this one shows paths and addresses of a test.
AS_DEPLOYED = """shown => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        for (const [ours, deployed] of Object.entries(shown))
            texts.currentNode.data = texts.currentNode.data.replaceAll(ours, deployed);
}"""
DESK = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0"
PHONE = "Mozilla/5.0 (Android 16; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0"
#: Name, width, height, colours, browser.
SCREENS = [
    ("desk", 1280, 800, "light", DESK),
    ("desk-dark", 1280, 800, "dark", DESK),
    ("phone", 390, 844, "light", PHONE),
    ("phone-dark", 390, 844, "dark", PHONE),
]


def as_roles_lay_it_down(settings: Settings) -> None:
    """Let a check find the keys as closed, and the tables as migrated, as on a deployed portal."""
    for directory in (settings.secret_key_file.parent, settings.state_directory):
        for path in directory.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
    with transaction() as db:
        db.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        db.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": migrations.head()})


def give_more_to_alice(app: Flask, values: dict[str, int]) -> None:
    """A password, a phone that is connected, and a download."""
    with transaction() as db:
        known = db.get_one(LocalAccount, values["root"])
        db.add(
            LocalAccount(
                user_id=values["alice"], password_hash=known.password_hash, changed_at=known.changed_at
            )
        )
        alice = db.get_one(User, values["alice"])
    android = "org.eduvpn.app.android"
    phone = VpnApp(app, alice, client_id=android, redirect_uri=f"{android}:/api/callback").authorize()
    assert phone.connect().status_code == 200
    connection = next(one for one in live_connections() if one.display_name == "eduVPN for Android")
    begin_use(connection, "alice", 200, origin="198.51.100.23")
    assert make_configuration(phone.browser, name="Router at home").status_code == 200


@pytest.mark.parametrize(("screen", "width", "height", "scheme", "user_agent"), SCREENS)
def test_pictures(
    app: Flask,
    chromium: Browser,
    make_nodes: Callable[..., list[AgentServer]],
    settings: Settings,
    screen: str,
    width: int,
    height: int,
    scheme: str,
    user_agent: str,
) -> None:
    nodes = make_nodes(3)
    values = fill_for_pictures(app, settings)
    give_more_to_alice(app, values)
    for node in nodes:
        for at, (name, connection) in enumerate(node.connections.items(), 1):
            handshake = int(time.time()) - 17 * at
            node.used[name] = Usage(
                name, connection.protocol, True, 5_400_000 * at, 193_000_000 * at, last_handshake_at=handshake
            )
    as_roles_lay_it_down(settings)
    shown = {node.address: f"192.0.2.{11 + node.number}:41194" for node in nodes}
    shown[str(settings.state_directory)] = "/var/lib/causeway-portal"
    shown[str(settings.secret_key_file.parent)] = "/etc/causeway/portal/secrets"
    IMAGES.mkdir(exist_ok=True)
    more_of = {"alice": MORE_OWN_PAGES, "root": MORE_PAGES} if screen == "desk" else {}
    for who, pages in (("alice", OWN_PAGES), ("root", PAGES)):
        context = chromium.new_context(
            ignore_https_errors=True,
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": width, "height": height},
            user_agent=user_agent,
        )
        page = context.new_page()
        page.goto(f"{ORIGIN}/sign-in")
        if who == "alice":
            page.screenshot(path=IMAGES / f"sign-in-{screen}.png")
        sign_in(page, who)
        for name, url in (pages | more_of.get(who, {})).items():
            nodes_answered()
            page.goto(ORIGIN + url.format(**values))
            if name == "who-had-it":
                ask_who_had(page)
            page.evaluate(AS_DEPLOYED, shown)
            page.screenshot(path=IMAGES / f"{name}-{screen}.png")
            if name == "user" and screen == "desk":
                page.locator(WHY).screenshot(path=IMAGES / f"why-{screen}.png")
        context.close()
