"""Administrators at work in a browser, with scripts and without."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page
from sqlalchemy import delete, insert, select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import BrowserSession, Connection, User, VpnSession
from tests.browser.world import PEOPLE, fill, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN
from tests.portal.pages import PASSWORD, add_account
from tests.portal.scripts import Script

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
MAIN = "main"


@pytest.fixture
def root(page: Page, app: Flask, node: AgentServer) -> Page:
    """A browser in which an administrator has signed in; three people have connections."""
    fill(app)
    page.goto(f"{ORIGIN}/admin/")
    sign_in(page, "root")
    return page


@pytest.fixture
def second(chromium: Browser, scripts: bool) -> Iterator[Page]:
    """Somebody else's browser."""
    context = chromium.new_context(ignore_https_errors=True, java_script_enabled=scripts)
    yield context.new_page()
    context.close()


def held(name: str) -> int:
    with transaction(read_only=True) as db:
        found = select(Connection.id).join(User, User.id == Connection.user_id).where(User.name == name)
        return len(db.scalars(found).all())


@BOTH
def test_user_is_added_and_sets_a_password_with_the_link(root: Page, second: Page) -> None:
    root.get_by_role("link", name="Users", exact=True).click()
    root.get_by_role("link", name="Add a user").click()
    root.get_by_label("User name").fill("dora")
    root.get_by_role("button", name="Add and show the link").click()
    link = root.get_by_label("One-time link").input_value()

    second.goto(link)
    second.get_by_label("New password", exact=True).fill(PASSWORD)
    second.get_by_label("New password again").fill(PASSWORD)
    second.get_by_role("button", name="Set password and sign in").click()
    assert "dora" in second.inner_text("header")
    second.goto(link)
    assert "used already or is too old" in second.inner_text(MAIN)


@BOTH
def test_user_is_disabled_in_two_steps_and_enabled_again(root: Page, second: Page) -> None:
    add_account("bea")
    second.goto(f"{ORIGIN}/devices")
    sign_in(second, "bea")
    root.get_by_role("link", name="Users", exact=True).click()
    root.get_by_label("Name begins with").fill("be")
    root.get_by_role("button", name="Search").click()
    root.get_by_role("link", name="bea").click()
    assert not root.get_by_role("button", name="Disable", exact=True).is_visible()
    root.get_by_text("Disable…").click()
    root.get_by_role("button", name="Disable", exact=True).click()

    # The other browser is signed out, and cannot come back.
    second.reload()
    sign_in(second, "bea")
    assert "disabled" in second.inner_text(MAIN)
    root.get_by_role("button", name="Enable", exact=True).click()
    second.goto(f"{ORIGIN}/devices")
    sign_in(second, "bea")
    assert second.get_by_role("heading", level=1).inner_text() == "Devices"


@BOTH
def test_connections_are_found_chosen_and_ended(root: Page, node: AgentServer) -> None:
    root.get_by_role("link", name="Connections", exact=True).click()
    assert "2 connected now" in root.inner_text(MAIN)
    root.get_by_label("User or address").fill("bo")
    root.get_by_role("button", name="Search").click()
    assert root.locator("tbody tr").count() == 1
    root.get_by_label("Choose eduVPN for Linux of bob").check()
    root.get_by_role("button", name="End what is chosen…").click()
    assert held("bob") == 1
    root.get_by_role("button", name="End the connection").click()

    assert "1 connection ended." in root.inner_text(MAIN)
    assert held("bob") == 0
    assert held("alice") == 1
    assert len(node.peers) == 2


@BOTH
def test_permissions_are_set_after_their_effect_was_shown(root: Page) -> None:
    root.goto(f"{ORIGIN}/admin/users")
    root.get_by_role("link", name="alice").click()
    root.get_by_role("link", name="Set permissions…").click()
    root.get_by_label("Permissions").fill("staff")
    root.get_by_role("button", name="See what this changes").click()
    assert "0 connections are cut at once." in root.inner_text(MAIN)
    root.get_by_role("button", name="Set the permissions").click()

    assert "staff" in root.inner_text(MAIN)


@BOTH
def test_node_is_put_into_maintenance_and_back(root: Page, node: AgentServer) -> None:
    root.get_by_role("link", name="Nodes", exact=True).click()
    root.get_by_role("link", name="node0").click()
    root.get_by_text("Begin maintenance of node0…").click()
    root.get_by_label("Notice for users connected here").first.fill("New disks tonight")
    root.get_by_role("button", name="Begin maintenance").click()
    assert node.maintenance
    assert "New disks tonight" in root.inner_text(MAIN)
    root.get_by_role("button", name="End maintenance of node0").click()

    assert not node.maintenance


@BOTH
def test_who_had_an_address_is_found(root: Page) -> None:
    with transaction(read_only=True) as db:
        user = db.scalars(select(User).where(User.name == "alice")).one()
        address = db.scalars(select(Connection.ipv4).where(Connection.user_id == user.id)).one()
    root.get_by_role("link", name="Who had it").click()
    root.get_by_label("Address").fill(str(address))
    root.get_by_role("button", name="Search").click()
    assert "alice" in root.inner_text(MAIN)
    root.get_by_role("link", name="Audit log").click()
    assert str(address) in root.inner_text(MAIN)


@BOTH
def test_history_is_filtered_and_saved(root: Page) -> None:
    root.get_by_role("link", name="History").click()
    root.get_by_label("User", exact=True).fill(PEOPLE[2])
    root.get_by_role("button", name="Search").click()
    assert root.locator("tbody tr").count() == 1
    with root.expect_download() as download:
        root.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    assert PEOPLE[2] in download.value.path().read_text()


@BOTH
def test_language_is_chosen_and_stays(root: Page) -> None:
    root.get_by_label("Language").select_option("Nederlands")
    root.get_by_role("button", name="Choose").click()
    assert root.locator("html").get_attribute("lang") == "nl"
    root.goto(f"{ORIGIN}/devices")
    assert root.get_by_role("heading", level=1).inner_text() == "Apparaten"


@pytest.mark.parametrize("scripts", [True], ids=["with scripts"])
def test_list_of_connections_refreshes_itself_but_not_under_somebodys_hands(root: Page) -> None:
    root.clock.install()
    root.get_by_role("link", name="Connections", exact=True).click()
    root.get_by_label("Choose eduVPN for Linux of bob").check()
    end_session_of("alice")
    root.clock.run_for(25_000)
    assert root.locator("tbody tr").count() == 2
    root.get_by_label("Choose eduVPN for Linux of bob").uncheck()
    root.locator("h1").click()
    root.clock.run_for(11_000)
    root.locator("[data-live-text]", has_text="1 connected now").wait_for()
    assert root.locator("tbody tr").count() == 1


@pytest.mark.parametrize("scripts", [True], ids=["with scripts"])
def test_list_that_cannot_refresh_itself_says_so(root: Page) -> None:
    """Its own refreshes keep no session alive; nobody takes an old list for the one of now."""
    root.clock.install()
    root.get_by_role("link", name="Connections", exact=True).click()
    assert "As of " in root.inner_text("[data-live]")
    with transaction() as db:
        kept = [dict(row) for row in db.execute(select(*BrowserSession.__table__.columns)).mappings()]
        db.execute(delete(BrowserSession))
    root.clock.run_for(11_000)
    said = root.locator("[data-live-text]", has_text="Not refreshed since")
    said.wait_for()
    assert "Load the page again." in said.inner_text()
    assert said.get_attribute("aria-live") == "polite"
    assert root.locator("tbody tr").count() == 2

    with transaction() as db:
        db.execute(insert(BrowserSession), kept)
    root.clock.run_for(11_000)
    root.locator("[data-live-text]", has_text="2 connected now").wait_for()


def end_session_of(name: str) -> None:
    with transaction() as db:
        lasts = (VpnSession.user_name == name, VpnSession.ended_at.is_(None))
        session = db.scalars(select(VpnSession).where(*lasts)).one()
        session.ended_at = utc_now() + timedelta(seconds=1)


@BOTH
def test_token_is_made_and_revoked(root: Page, app: Flask, scripts: bool) -> None:
    root.get_by_role("link", name="API tokens", exact=True).click()
    root.get_by_role("link", name="Make a token").click()
    root.get_by_label("Name", exact=True).fill("deploy")
    root.get_by_label("See users and the apps").check()
    root.get_by_role("button", name="Make and show the token").click()
    token = root.get_by_label("Token", exact=True).input_value()
    script = Script(app, token)
    assert script.get("/users").status_code == 200
    if scripts:
        root.context.grant_permissions(["clipboard-read", "clipboard-write"])
        root.get_by_role("button", name="Copy").click()
        root.get_by_role("button", name="Copied").wait_for()
        assert root.evaluate("navigator.clipboard.readText()") == token
    else:
        assert not root.get_by_role("button", name="Copy").is_visible()

    root.get_by_role("link", name="To the list of tokens").click()
    assert token not in root.content()
    assert not root.get_by_role("button", name="Revoke deploy").is_visible()
    root.get_by_role("row", name="deploy").get_by_text("Revoke…").click()
    root.get_by_role("button", name="Revoke deploy").click()
    assert "The token is revoked" in root.inner_text(MAIN)
    assert script.get("/users").status_code == 401
