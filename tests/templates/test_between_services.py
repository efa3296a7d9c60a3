"""What the configuration of one service must leave to that of another."""

import re
from pathlib import Path

import pytest
import yaml
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from portal_app import language, writing

GOLDEN = Path(__file__).parent / "golden" / "one"
ROOT = Path(__file__).parents[2]
TEXTS = ROOT / "roles/web_frontend/vars/main.yml"


def seconds(pattern: str, name: str) -> float:
    """Return the number that ``pattern`` finds in a rendered file."""
    found = re.search(pattern, (GOLDEN / name).read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{name} says nothing like {pattern}"
    return float(found[1])


def test_nginx_ends_an_idle_connection_before_the_portal_does() -> None:
    """What is sent while the portal closes is lost, and nobody repeats a POST (RFC 9110, 9.2.2)."""
    of_nginx = seconds(r"^    upstream portal \{.*?keepalive_timeout ([0-9]+)s;", "web_frontend-nginx.conf")
    of_portal = seconds(r" --keep-alive ([0-9]+) ", "portal-vpn-portal.service")

    assert of_nginx * 2 <= min(of_portal, STOP_KEEPALIVE_LINGER)


def test_every_answer_of_a_portal_that_leaves_asks_to_close_the_connection() -> None:
    """A block that adds a header of its own inherits none (nginx.org, ngx_http_headers_module)."""
    site = (GOLDEN / "web_frontend-nginx.conf").read_text().split("    server {\n")[-1]
    locations = re.findall(r"^        location .*?^        }", site, re.MULTILINE | re.DOTALL)
    blocks = [site.split("        location ")[0], *locations]
    adding = [block for block in blocks if "add_header" in block]

    assert len(adding) == 5
    for block in adding:
        assert "add_header Connection $leaving always;" in block, block
        assert "add_header Strict-Transport-Security" in block, block


@pytest.mark.parametrize("tag", language.LANGUAGES)
def test_nginx_says_what_the_portal_says_on_its_own_page_of_an_error(tag: str) -> None:
    texts = yaml.safe_load(TEXTS.read_text())["__web_frontend_texts"]

    said = {
        "429": "Too many requests",
        "503": "Not available at the moment",
        "wait": "Connections that are up stay up. Wait a moment, then try again.",
        "ask": "If it stays like this:",
    }
    assert texts[tag] == {name: writing.writer(tag).translated(text) for name, text in said.items()}
    assert texts.keys() == language.LANGUAGES.keys()


def test_nginx_has_the_colours_of_the_portal_where_none_are_set() -> None:
    of_portal = (ROOT / "portal_app/static/style.css").read_text()
    of_nginx = (ROOT / "roles/web_frontend/templates/error.css.j2").read_text()

    colours = re.findall(r"--accent: (#[0-9a-f]{6});", of_portal)
    assert len(colours) == 2, "on light pages, and on dark ones"
    assert re.findall(r"--accent: \{\{ \w+ or '(#[0-9a-f]{6})' \}\};", of_nginx) == colours
