"""What only a browser decides: redirects against form-action, cookies, downloads, pages without scripts."""

from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import AppListener
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp, add_user
from tests.portal.pages import PASSWORD, add_account

pytestmark = pytest.mark.slow


def sign_in(page: Page) -> None:
    page.get_by_label("User name").fill("alice")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def authorization_url(phone: VpnApp, listener: AppListener, **changes: str) -> str:
    query = phone.query(redirect_uri=listener.redirect_uri, **changes)
    return f"{ORIGIN}/oauth/authorize?{urlencode(query)}"


@pytest.fixture
def phone(app: object) -> VpnApp:
    """An app that only asks; its user signs in with the browser of the test."""
    add_account()
    return VpnApp(app, add_user("somebody else"))  # type: ignore[arg-type]


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
@pytest.mark.parametrize(("mode", "method"), [("query", "GET"), ("form_post", "POST")])
def test_a_user_signs_in_and_approves_and_the_app_gets_its_code(
    page: Page, phone: VpnApp, app_listener: AppListener, mode: str, method: str, scripts: bool
) -> None:
    page.goto(authorization_url(phone, app_listener, response_mode=mode))
    sign_in(page)
    assert page.get_by_role("heading").inner_text() == "Approve this app?"
    assert "eduVPN for Linux" in page.inner_text("main")
    page.get_by_role("button", name="Approve").click()
    if mode == "form_post" and not scripts:
        page.get_by_role("button", name="Continue in the app").click()

    came, values = app_listener.wait()
    assert came == method
    assert values["state"] == [phone.state]
    assert values["iss"] == [ORIGIN]
    tokens = phone.redeem(values["code"][0], redirect_uri=app_listener.redirect_uri)
    assert tokens.status_code == 200


def test_a_user_denies_and_the_app_hears_it(page: Page, phone: VpnApp, app_listener: AppListener) -> None:
    page.goto(authorization_url(phone, app_listener))
    sign_in(page)
    page.get_by_role("button", name="Deny").click()

    assert app_listener.wait()[1]["error"] == ["access_denied"]


@pytest.mark.parametrize(
    "settings_changes",
    [{"clients": [{"client_id": "org.example.trusted", "redirect_uris": ["http://127.0.0.1:{PORT}/callback"],
                   "requires_approval": False}]}],
)  # fmt: skip
def test_an_app_without_approval_gets_its_code_right_after_the_sign_in(
    page: Page, phone: VpnApp, app_listener: AppListener
) -> None:
    """The redirects that follow the sign-in form lead to the app: form-action must let them."""
    page.goto(authorization_url(phone, app_listener, client_id="org.example.trusted"))
    sign_in(page)

    assert app_listener.wait()[1]["code"]


def test_a_configuration_is_saved_as_a_file_and_a_reload_makes_no_second_one(
    page: Page, phone: VpnApp, node: AgentServer, tmp_path: Path
) -> None:
    """W22."""
    page.goto(f"{ORIGIN}/configurations")
    sign_in(page)
    page.get_by_label("Profile and protocol").select_option("Employees: WireGuard")
    page.get_by_label("Name of the device").fill("Router at home")
    page.get_by_role("button", name="Make configuration").click()
    assert page.locator(".qr svg").bounding_box()["width"] > 150  # type: ignore[index]
    shown = page.get_by_label("As text").input_value()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as file").click()
    download.value.save_as(tmp_path / "saved.conf")

    assert (tmp_path / "saved.conf").read_text().strip() == shown.strip()
    assert download.value.suggested_filename.endswith(".conf")
    page.reload()
    assert "was sent before" in page.get_by_role("alert").inner_text()
    assert len(node.peers) == 1


def test_a_user_ends_a_configuration_in_two_steps(page: Page, phone: VpnApp, node: AgentServer) -> None:
    page.goto(f"{ORIGIN}/configurations")
    sign_in(page)
    page.get_by_label("Name of the device").fill("Router")
    page.get_by_role("button", name="Make configuration").click()
    page.get_by_role("link", name="Back to the configurations").click()
    assert not page.get_by_role("button", name="End Router").is_visible()
    page.get_by_text("End…").click()
    page.get_by_role("button", name="End Router").click()

    assert "None yet." in page.inner_text("main")
    assert node.peers == set()


def test_signing_out_leaves_nothing_behind_the_back_button(page: Page, phone: VpnApp) -> None:
    page.goto(f"{ORIGIN}/devices")
    sign_in(page)
    page.get_by_role("button", name="Sign out").click()
    page.go_back()

    assert page.get_by_role("heading").inner_text() == "Sign in"


@pytest.mark.parametrize("width", [320, 1200])
def test_no_page_is_wider_than_its_window(page: Page, phone: VpnApp, node: AgentServer, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.goto(f"{ORIGIN}/configurations")
    sign_in(page)
    page.get_by_label("Name of the device").fill("A router with a long name " + "x" * 38)
    page.get_by_role("button", name="Make configuration").click()
    for url in ("", "/", "/devices", "/configurations", "/account", "/status", "/nothing"):
        if url:
            page.goto(ORIGIN + url)
        assert page.locator("html").bounding_box()["width"] <= width  # type: ignore[index]
        boxes = [box["x"] + box["width"] for e in page.locator("main > *").all() if (box := e.bounding_box())]
        assert max(boxes) <= width, url
