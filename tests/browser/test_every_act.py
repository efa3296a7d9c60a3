"""Every form that changes something, sent in a browser, with scripts and without.

A walk through all pages; the acts that have a test of their own are named beside it. A new form fails here
until somebody sends it.
"""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, request
from playwright.sync_api import Browser, Locator, Page
from sqlalchemy import func, select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import BrowserSession, Connection, NodeStatus, User
from tests.browser.world import fill, sign_in
from tests.portal.app_user import ORIGIN, VpnApp
from tests.portal.conftest import seen_up
from tests.portal.pages import PASSWORD, add_account

pytestmark = [pytest.mark.slow, pytest.mark.long]
OTHER_PASSWORD = "sieben Meere und ein Teich"
#: What other tests of this folder send, each with scripts and without.
ELSEWHERE = {
    "admin.add_user": "test_user_is_added_and_sets_a_password_with_the_link",
    "admin.add_token": "test_token_is_made_and_revoked",
    "admin.ask_who_had": "test_who_had_an_address_is_found",
    "admin.disable_user": "test_user_is_disabled_in_two_steps_and_enabled_again",
    "admin.enable_user": "test_user_is_disabled_in_two_steps_and_enabled_again",
    "admin.end_connections": "test_connections_are_found_chosen_and_ended",
    "admin.export_history": "test_history_is_filtered_and_saved",
    "admin.revoke_token": "test_token_is_made_and_revoked",
    "admin.set_permissions": "test_permissions_are_set_after_their_effect_was_shown",
    "oauth.authorize": "test_a_user_signs_in_and_approves_and_the_app_gets_its_code",
    "sign_in.set_password": "test_user_is_added_and_sets_a_password_with_the_link",
}
#: Apps and scripts send these, not browsers.
NO_PAGES = ("api_v3.", "admin_api.", "oauth.token", "oauth.revoke")


@pytest.fixture
def sent(app: Flask) -> set[str]:
    """The forms that were sent and accepted, by endpoint."""
    found: set[str] = set()

    @app.after_request
    def note(response: Response) -> Response:
        if request.method == "POST" and request.endpoint and response.status_code in (200, 303):
            found.add(request.endpoint)
        return response

    return found


def press(page: Page, name: str) -> None:
    send(page, page.get_by_role("button", name=name, exact=True))


def send(page: Page, button: Locator) -> None:
    with page.expect_navigation():
        button.click()


def confirm(page: Page, first: str, second: str) -> None:
    """Open the question, and say yes."""
    assert not page.get_by_role("button", name=second).first.is_visible()
    page.locator("summary", has_text=first).first.click()
    send(page, page.get_by_role("button", name=second).first)


def said(page: Page) -> str:
    return page.inner_text("main")


def held(name: str) -> int:
    with transaction(read_only=True) as db:
        mine = select(func.count()).select_from(Connection).join(User, User.id == Connection.user_id)
        return db.scalars(mine.where(User.name == name)).one()


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_every_form_is_sent(
    page: Page, app: Flask, sent: set[str], chromium: Browser, make_agents: Any
) -> None:
    make_agents()
    seen_up(0, utc_now() + timedelta(minutes=2))
    fill(app)
    with transaction(read_only=True) as db:
        users = {user.name: user for user in db.scalars(select(User))}
    assert VpnApp(app, users["root"]).authorize().connect(prefer_tcp="no").status_code == 200
    page.goto(f"{ORIGIN}/devices")
    sign_in(page, "root")
    elsewhere = chromium.new_context(ignore_https_errors=True).new_page()
    elsewhere.goto(f"{ORIGIN}/account")
    sign_in(elsewhere, "root")

    own_pages(page, elsewhere)
    users_page(page, users["bob"].id)
    node_page(page)
    page.goto(f"{ORIGIN}/admin/audit")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert "user deleted" in download.value.path().read_text()
    page.goto(f"{ORIGIN}/account")
    confirm(page, "Sign out everywhere…", "Sign out everywhere")
    assert page.get_by_role("heading", level=1).inner_text() == "Sign in"

    rules = (rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ()))
    forms = {rule.endpoint for rule in rules if not rule.endpoint.startswith(NO_PAGES)}
    assert sorted(forms - sent - ELSEWHERE.keys()) == []


def own_pages(page: Page, elsewhere: Page) -> None:
    page.goto(f"{ORIGIN}/configurations")
    page.get_by_label("Profile and protocol").select_option("Employees: OpenVPN, UDP first")
    page.get_by_label("Name of the device").fill("Router")
    press(page, "Make configuration")
    page.goto(f"{ORIGIN}/devices")
    page.locator("summary", has_text="Rename…").click()
    page.get_by_label("New name").fill("Router at home")
    press(page, "Rename Router")
    assert "Router at home" in said(page)
    confirm(page, "End…", "End Router at home")
    assert "Router at home" not in said(page)
    confirm(page, "Disconnect…", "Disconnect eduVPN for Linux")
    assert held("root") == 0
    confirm(page, "Revoke…", "Revoke eduVPN for Linux")
    assert "eduVPN for Linux" not in said(page)

    page.goto(f"{ORIGIN}/account")
    page.get_by_label("Language of these pages, in this browser").select_option("Deutsch")
    press(page, "Use this language")
    assert page.locator("html").get_attribute("lang") == "de"
    page.get_by_label("Sprache dieser Seiten", exact=False).select_option("English")
    send(page, page.locator("section[aria-labelledby=speak] button"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download it all as a file").click()
    assert download.value.path().read_text()
    confirm(page, "Sign out all others…", "Sign out all others")
    elsewhere.reload()
    assert elsewhere.get_by_role("heading", level=1).inner_text() == "Sign in"
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password", exact=True).fill(OTHER_PASSWORD)
    page.get_by_label("New password again").fill(OTHER_PASSWORD)
    press(page, "Change password")
    press(page, "Sign out")
    page.goto(f"{ORIGIN}/admin/")
    page.get_by_label("User name").fill("root")
    page.get_by_label("Password").fill(OTHER_PASSWORD)
    press(page, "Sign in")


def users_page(page: Page, number: int) -> None:
    """Everything about one person; the last act comes too long after the sign-in."""
    add_account("bea")
    page.goto(f"{ORIGIN}/admin/users?search=bea")
    page.get_by_role("link", name="bea").click()
    confirm(page, "New one-time link…", "Make the link")
    assert "/set-password/" in page.get_by_label("One-time link").input_value()
    page.goto(f"{ORIGIN}/admin/users/{number}")
    confirm(page, "End all connections…", "End all connections")
    assert held("bob") == 0
    page.locator("td details.confirm summary").first.click()
    send(page, page.locator("td details.confirm button").first)
    assert "eduVPN for Linux" not in page.inner_text("section[aria-labelledby=devices]")
    with transaction() as db:
        db.execute(update(BrowserSession).values(signed_in_at=utc_now() - timedelta(hours=1)))
    confirm(page, "Delete…", "Delete for good")
    assert "a recent sign-in" in said(page)
    page.get_by_label("Password").fill(OTHER_PASSWORD)
    press(page, "Go on")
    page.goto(f"{ORIGIN}/admin/users/{number}")
    confirm(page, "Delete…", "Delete for good")
    page.goto(f"{ORIGIN}/admin/users?search=bob")
    assert page.locator("tbody tr").count() == 0


def node_page(page: Page) -> None:
    page.goto(f"{ORIGIN}/admin/nodes/0")
    press(page, "Reconcile node0 now")
    confirm(page, "Drain node0…", "Drain")
    assert "Call off the cut" in said(page)
    press(page, "Call off the cut on node0")
    press(page, "End maintenance of node0")
    assert "Begin maintenance" in said(page)
    # As if the host had been installed anew.
    seen_up(0, utc_now() + timedelta(minutes=2), instance_id="f" * 32)
    press(page, "Reconcile node0 now")
    assert "Another machine answers as this node" in said(page)
    confirm(page, "Let it through on node0…", "Confirm and reconcile")
    with transaction(read_only=True) as db:
        assert db.scalars(select(NodeStatus.instance_id)).one() != "f" * 32
