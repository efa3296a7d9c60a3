"""Every page, light and dark, as axe-core reads it (WCAG 2.2 AA), and by keyboard alone."""

import time
from importlib.resources import files
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page

from tests.browser.world import fill, pages_of, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN

pytestmark = pytest.mark.slow

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def faults(page: Page) -> list[str]:
    """Return what axe-core finds on a page, each with the element it is about."""
    page.evaluate(AXE)
    options = {"runOnly": {"type": "tag", "values": RULES}}
    found: dict[str, Any] = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{violation['id']}: {node['html'][:200]} ({node['failureSummary'][:300]})"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anybody_out(app: Flask, chromium: Browser, node: AgentServer, scheme: Any) -> None:
    fill(app)
    context = chromium.new_context(ignore_https_errors=True, color_scheme=scheme)
    page = context.new_page()
    found = {}
    page.goto(f"{ORIGIN}/sign-in")
    if there := faults(page):
        found["/sign-in"] = there
    sign_in(page, "root")
    for url in [*pages_of(app), "/nothing"]:
        page.goto(ORIGIN + url)
        if there := faults(page):
            found[url] = there
    context.close()
    assert found == {}


def first_tab(page: Page) -> None:
    """Press Tab until it has led somewhere: Chromium drops keys before it has painted a new page."""
    deadline = time.monotonic() + 30
    while page.locator(":focus").count() == 0:
        assert time.monotonic() < deadline, f"Tab leads nowhere on {page.url}"
        page.keyboard.press("Tab")


def test_keyboard_reaches_everything_and_shows_where_it_is(page: Page, app: Flask, node: AgentServer) -> None:
    fill(app)
    page.goto(f"{ORIGIN}/")
    sign_in(page, "root")
    page.wait_for_url(f"{ORIGIN}/")
    first_tab(page)
    assert page.locator(":focus").inner_text() == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").count() == 1
    for url in pages_of(app):
        page.goto(ORIGIN + url)
        within = page.locator("a[href], button, input:not([type=hidden]), select, textarea, summary")
        visible = sum(1 for one in within.all() if one.is_visible())
        reached = set()
        first_tab(page)
        for _ in range(visible + 5):
            focused = page.locator(":focus")
            if focused.count():
                reached.add(focused.evaluate("e => e.outerHTML.slice(0, 300) + e.getBoundingClientRect().y"))
                outline = focused.evaluate("e => getComputedStyle(e).outlineStyle")
                assert outline != "none", (url, focused.evaluate("e => e.outerHTML.slice(0, 300)"))
            page.keyboard.press("Tab")
        assert len(reached) >= visible - 3, url
