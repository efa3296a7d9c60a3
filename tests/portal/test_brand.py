"""Logo, colours, contact and language of a deployment: what is served, and what is refused at the start."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from portal_app import brand
from portal_app.errors import SettingsError
from portal_app.settings import Settings
from tests.portal.test_pages import signed_in

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="4" height="4"/>{}</svg>'
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
    b"\x00\x00\x00\nIDATx\x9cc\x00\x01\x00\x00\x05\x00\x01\r\n-\xb4\x00\x00\x00\x00IEND\xaeB`\x82"
)


@pytest.fixture
def database() -> str:
    return "sqlite"


@pytest.fixture
def logo(tmp_path: Path) -> Path:
    file = tmp_path / "logo.svg"
    file.write_text(SVG.format(""))
    return file


@pytest.fixture
def settings_changes(logo: Path) -> dict[str, Any]:
    return {
        "logo_file": str(logo),
        "accent_color": "#7a1f5c",
        "accent_color_dark": "#e59ccb",
        "default_language": "de",
    }


def test_pages_show_logo_and_colours_from_files_that_browsers_keep(app: Flask) -> None:
    client = signed_in(app)
    page = client.get("/devices").text
    logo = re.search(r'<img class="logo" src="(/brand/logo\?v=\w+)" alt="">', page)
    style = re.search(r'href="(/brand/style.css\?v=\w+)"', page)
    assert logo
    assert style
    assert page.index("/static/style.css") < style.start(), "the later one wins"

    picture, sheet = app.test_client().get(logo[1]), app.test_client().get(style[1])
    assert (picture.mimetype, sheet.mimetype) == ("image/svg+xml", "text/css")
    assert "script-src 'none'" in picture.headers["Content-Security-Policy"]
    assert picture.headers["X-Content-Type-Options"] == "nosniff"
    assert all("immutable" in answer.headers["Cache-Control"] for answer in (picture, sheet))
    assert "--accent: #7a1f5c" in sheet.text.partition("@media")[0]
    assert "--accent: #e59ccb" in sheet.text.partition("prefers-color-scheme: dark")[2]


@pytest.mark.parametrize(
    ("contact", "url"),
    [
        ("help@example.org", "mailto:help@example.org"),
        ("https://chat.example.org/@help", "https://chat.example.org/@help"),
        ("", ""),
    ],
)
def test_contact_leads_where_people_get_help(settings: Settings, contact: str, url: str) -> None:
    assert replace(settings, support_contact=contact).support_url == url


@pytest.mark.parametrize("settings_changes", [{}])
def test_without_a_look_of_its_own_nothing_is_served(app: Flask) -> None:
    assert "/brand/" not in app.test_client().get("/sign-in").text
    assert [app.test_client().get(f"/brand/{name}").status_code for name in ("logo", "style.css")] == [
        404,
        404,
    ]


def test_the_default_language_is_for_who_asks_for_none_that_there_is(app: Flask) -> None:
    client = app.test_client()
    asked = {"": "de", "sv": "de", "fr": "fr", "en-GB,en;q=0.8": "en", "sv,nl;q=0.5": "nl"}
    for header, language in asked.items():
        page = client.get("/sign-in", headers={"Accept-Language": header} if header else {})
        assert f'<html lang="{language}">' in page.text, header


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither a PNG nor an SVG"),
        (b"GIF89a", "neither a PNG nor an SVG"),
        (b"<html><script>alert(1)</script></html>", "neither a PNG nor an SVG"),
        (PNG[:40], "not a whole PNG"),
        (PNG[:16] + b"\x7f\xff\xff\xff" + PNG[20:], "pixels"),
        (SVG.format("<script>alert(1)</script>").encode(), "<script>"),
        (SVG.format("<g onload='alert(1)'/>").encode(), "attribute onload"),
        (SVG.format("<foreignObject/>").encode(), "<foreignobject>"),
        (SVG.format("<a href='https://evil.example.org'/>").encode(), "a link to elsewhere"),
        (b"<!DOCTYPE svg>" + SVG.format("").encode(), "DOCTYPE"),
        (SVG.format("x" * 200_000).encode(), "larger than 200 kB"),
        (SVG.format("").encode("utf-16"), "neither a PNG nor an SVG"),
    ],
)
def test_a_file_that_is_no_harmless_picture_stops_the_start(
    settings: Settings, logo: Path, content: bytes, why: str
) -> None:
    logo.write_bytes(content)

    with pytest.raises(SettingsError, match=re.escape(why)):
        brand.load(settings)


def test_a_png_is_served_as_one(settings: Settings, logo: Path) -> None:
    logo.write_bytes(PNG)

    found = brand.load(settings).logo
    assert found
    assert found.content_type == "image/png"


def test_a_logo_that_is_not_there_stops_the_start(settings: Settings, logo: Path) -> None:
    logo.unlink()

    with pytest.raises(SettingsError, match="No such file"):
        brand.load(settings)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"accent_color": "#8f8f8f"}, "accent_color: #8f8f8f has a contrast of"),
        ({"accent_color": "red"}, "is no colour written #rrggbb"),
        ({"accent_color": "#14607d;}"}, "is no colour written #rrggbb"),
        ({"accent_color_dark": "#14607d"}, "choose a lighter colour"),
        ({"support_contact": "javascript:alert(1)"}, "support_contact"),
        ({"support_contact": "http://help.example.org"}, "support_contact"),
        ({"support_contact": "a@b c"}, "support_contact"),
        ({"notices": [{"text": "x"}]}, "notices[0]: has text, from and until"),
        (
            {"notices": [{"text": "", "from": "2026-01-01T00:00Z", "until": "2026-01-02T00:00Z"}]},
            "text: 1 to",
        ),
        ({"notices": [{"text": "x", "from": "tomorrow", "until": "2026-01-02T00:00Z"}]}, "from: 'tomorrow'"),
        ({"notices": [{"text": "x", "from": "2026-01-01T00:00", "until": "2026-01-02T00:00Z"}]}, "from:"),
        (
            {"notices": [{"text": "x", "from": "2026-01-03T00:00Z", "until": "2026-01-02T00:00Z"}]},
            "not after",
        ),
    ],
)
def test_settings_that_pages_cannot_show_are_refused(
    settings: Settings, changes: dict[str, Any], why: str
) -> None:
    known = {name: getattr(settings, name) for name in ("portal_url",)}
    files = {k: v for k, v in vars(settings).items() if k.endswith(("_file", "_directory")) and v is not None}

    with pytest.raises(SettingsError, match=re.escape(why)):
        Settings.parse(known | files | changes)
