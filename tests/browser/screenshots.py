"""Pictures of the main pages for the documents, light and dark, on a desk and on a phone.

``make screenshots`` runs this and writes ``docs/images``; it tests nothing.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser
from sqlalchemy import text

from portal_app import migrations
from portal_app.db import transaction
from portal_app.settings import Settings
from tests.browser.world import fill_for_pictures, nodes_answered, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN
from vpn_core.messages import Usage

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PAGES = {
    "home": "/",
    "devices": "/devices",
    "overview": "/admin/",
    "connections": "/admin/connections",
    "user": "/admin/users/{alice}",
    "statistics": "/admin/statistics?period=week",
}
#: On a desk in daylight only.
MORE = {
    "configurations": "/configurations",
    "account": "/account",
    "status": "/status",
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
#: Writes what a deployed portal shows where this one shows paths and addresses of a test.
AS_DEPLOYED = """shown => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        for (const [ours, deployed] of Object.entries(shown))
            texts.currentNode.data = texts.currentNode.data.replaceAll(ours, deployed);
}"""
#: Name, width, height, colours.
SCREENS = [("desk", 1280, 800, "light"), ("desk-dark", 1280, 800, "dark"), ("phone", 390, 844, "light")]


def as_roles_lay_it_down(settings: Settings) -> None:
    """Let a check find the keys as closed, and the tables as migrated, as on a deployed portal."""
    for directory in (settings.secret_key_file.parent, settings.state_directory):
        for path in directory.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
    with transaction() as db:
        db.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        db.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": migrations.head()})


@pytest.mark.parametrize(("screen", "width", "height", "scheme"), SCREENS)
def test_pictures(
    app: Flask,
    chromium: Browser,
    make_nodes: Callable[..., list[AgentServer]],
    settings: Settings,
    screen: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    nodes = make_nodes(3)
    values = fill_for_pictures(app, settings)
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
    context = chromium.new_context(
        ignore_https_errors=True,
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
    )
    page = context.new_page()
    page.goto(f"{ORIGIN}/sign-in")
    sign_in(page, "root")
    for name, url in (PAGES | (MORE if screen == "desk" else {})).items():
        nodes_answered()
        page.goto(ORIGIN + url.format(**values))
        page.evaluate(AS_DEPLOYED, shown)
        page.screenshot(path=IMAGES / f"{name}-{screen}.png")
    context.close()
