"""Every page, light and dark, as axe-core reads it (WCAG 2.2 AA), and by keyboard alone."""

import time
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page

from tests.browser.world import fill, pages_of, sign_in
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp, add_user
from tests.portal.pages import add_account

pytestmark = [pytest.mark.slow, pytest.mark.long]

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


#: Gives a number to each thing that can be reached; the choices of one question are one.
NUMBER_STOPS = """() => {
    const groups = new Map();
    let count = 0;
    for (const e of document.querySelectorAll(
        "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
    )) {
        if (!e.checkVisibility({visibilityProperty: true}) || e.disabled) continue;
        if (e.type === "radio") {
            if (!groups.has(e.name)) groups.set(e.name, count++);
            e.dataset.stop = groups.get(e.name);
        } else {
            e.dataset.stop = count++;
        }
    }
    return count;
}"""


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


def enter(page: Page, path: str = "/") -> None:
    """Open a page as an administrator."""
    page.goto(ORIGIN + path)
    sign_in(page, "root")
    page.wait_for_url(ORIGIN + path)


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_forms_answer_with_keeps_anybody_out(
    app: Flask, chromium: Browser, node: AgentServer, scheme: Any
) -> None:
    """What no address leads to: answers that are shown once, questions, and an app that asks for approval."""
    fill(app)
    add_account("bea")
    page = chromium.new_context(ignore_https_errors=True, color_scheme=scheme).new_page()
    found = {}

    def look(name: str) -> None:
        if there := faults(page):
            found[name] = there

    page.goto(f"{ORIGIN}/oauth/authorize?{urlencode(VpnApp(app, add_user('somebody')).query())}")
    sign_in(page, "root")
    assert page.get_by_role("heading", level=1).inner_text() == "Approve this app?"
    look("approval")
    page.goto(f"{ORIGIN}/oauth/authorize?client_id=nobody")
    look("an app that is not known")
    for way in ("WireGuard", "OpenVPN, UDP first"):
        page.goto(f"{ORIGIN}/configurations")
        page.get_by_label("Profile and protocol").select_option(f"Employees: {way}")
        page.get_by_label("Name of the device").fill("Router")
        page.get_by_role("button", name="Make configuration").click()
        assert page.get_by_label("As text").is_visible()
        look(f"a configuration for {way}")
    page.goto(f"{ORIGIN}/admin/tokens/add")
    page.get_by_label("Name", exact=True).fill("deploy")
    page.get_by_label("See users and the apps").check()
    page.get_by_role("button", name="Make and show the token").click()
    assert page.get_by_label("Token", exact=True).is_visible()
    look("a token")
    page.goto(f"{ORIGIN}/admin/users?search=bea")
    page.get_by_role("link", name="bea").click()
    page.locator("summary", has_text="New one-time link…").click()
    look("a question on a page")
    page.get_by_role("button", name="Make the link").click()
    link = page.get_by_label("One-time link").input_value()
    look("a one-time link")
    page.goto(f"{ORIGIN}/admin/who-had-it")
    page.get_by_label("Address").fill("10.61.0.9")
    page.get_by_role("button", name="Search").click()
    look("who had an address")
    page.get_by_label("Address").fill("nothing like it")
    page.get_by_role("button", name="Search").click()
    assert page.get_by_role("alert").is_visible()
    look("a form with a mistake")
    page.goto(f"{ORIGIN}/admin/connections")
    page.get_by_role("link", name="End").first.click()
    look("the end of a connection")
    page.get_by_role("button", name="Sign out").click()
    page.goto(link)
    assert page.get_by_label("New password", exact=True).is_visible()
    look("a first password")
    page.context.close()
    assert found == {}


@pytest.mark.parametrize("width", [320, 360])
def test_no_page_has_to_be_moved_sideways(page: Page, app: Flask, node: AgentServer, width: int) -> None:
    """WCAG 1.4.10: a table may be, within its card."""
    fill(app)
    page.set_viewport_size({"width": width, "height": 700})
    enter(page)
    wide = {}
    for url in pages_of(app):
        page.goto(ORIGIN + url)
        found = page.evaluate("document.documentElement.scrollWidth")
        if found > width:
            wide[url] = found
    assert wide == {}


def test_a_phone_shows_that_there_are_more_sections(page: Page, app: Flask, node: AgentServer) -> None:
    """A shadow that stays lies below a cover that moves along, at both ends."""
    fill(app)
    page.set_viewport_size({"width": 360, "height": 700})
    enter(page, "/admin/")
    side = page.locator(".side")

    assert side.evaluate("e => e.scrollWidth > e.clientWidth")
    assert side.evaluate("e => getComputedStyle(e).backgroundAttachment") == "local, local, scroll, scroll"


def test_what_is_printed_is_the_page_without_its_menus(page: Page, app: Flask, node: AgentServer) -> None:
    fill(app)
    enter(page)
    for url in pages_of(app):
        page.emulate_media(media="screen")
        page.goto(ORIGIN + url)
        tables = page.locator("main table:visible").count()
        page.emulate_media(media="print")
        assert page.locator("main h1").first.is_visible(), url
        assert page.locator("main table:visible").count() == tables, url
        shown = page.locator("nav:visible, .skip:visible, .export:visible, button:visible, .button:visible")
        assert shown.count() == 0, (url, shown.first.evaluate("e => e.outerHTML.slice(0, 200)"))


#: Tables whose cells are no longer below their headings, or that do not fit on the page.
BAD_TABLES = """() => [...document.querySelectorAll("main table")].flatMap(table => {
    if (!table.checkVisibility()) return [];
    const seen = row => [...row.cells].filter(cell => cell.checkVisibility());
    const places = row => seen(row).map(cell => Math.round(cell.getBoundingClientRect().left));
    const [head, ...rows] = [...table.rows].filter(row => row.cells.length > 1);
    const shifted = rows.some(row => places(row).join() !== places(head).join());
    const wide = table.getBoundingClientRect().right > document.documentElement.clientWidth;
    return shifted || wide ? [`${table.caption?.textContent}: shifted ${shifted}, wide ${wide}`] : [];
})"""


def test_tables_fit_on_paper_as_tables(page: Page, app: Flask, node: AgentServer) -> None:
    """A4 upright with margins of a centimetre is 718 pixels wide."""
    fill(app)
    page.set_viewport_size({"width": 718, "height": 1000})
    enter(page)
    page.emulate_media(media="print")
    bad = {}
    for url in pages_of(app):
        page.goto(ORIGIN + url)
        if found := page.evaluate(BAD_TABLES):
            bad[url] = found
    assert bad == {}


def first_tab(page: Page) -> None:
    """Press Tab until it has led somewhere: Chromium drops keys before it has painted a new page."""
    deadline = time.monotonic() + 30
    while page.locator(":focus").count() == 0:
        assert time.monotonic() < deadline, f"Tab leads nowhere on {page.url}"
        page.keyboard.press("Tab")


def test_keyboard_reaches_everything_and_shows_where_it_is(page: Page, app: Flask, node: AgentServer) -> None:
    fill(app)
    enter(page)
    first_tab(page)
    assert page.locator(":focus").inner_text() == "Skip to content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").count() == 1
    for url in pages_of(app):
        page.goto(ORIGIN + url)
        count = page.evaluate(NUMBER_STOPS)
        reached = set()
        first_tab(page)
        # A field for a date has a stop for each of its parts.
        for _ in range(2 * count):
            if len(reached - {None}) == count:
                break
            focused = page.locator(":focus")
            if focused.count():
                reached.add(focused.get_attribute("data-stop"))
                outline = focused.evaluate("e => getComputedStyle(e).outlineStyle")
                assert outline != "none", (url, focused.evaluate("e => e.outerHTML.slice(0, 300)"))
            page.keyboard.press("Tab")
        missed = {str(number) for number in range(count)} - reached
        elements = [page.locator(f"[data-stop='{one}']").first.evaluate("e => e.outerHTML") for one in missed]
        assert elements == [], url
