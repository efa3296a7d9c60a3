"""How a deployment looks: its logo and its accent colour, checked when the portal starts."""

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, XMLParser

from portal_app.errors import SettingsError
from portal_app.settings import Settings
from vpn_core.colour import mixed

LARGEST_LOGO = 200_000
LARGEST_SIDE = 4096
_PNG = b"\x89PNG\r\n\x1a\n"
_SVG = "{http://www.w3.org/2000/svg}"
#: What an SVG must not have: it is a picture, and nothing in it acts or is fetched.
_ACTIVE = {"script", "foreignobject", "iframe", "object", "embed", "audio", "video", "handler", "set"}
#: How much darker (or lighter, on dark pages) the accent is where one points at it.
_STRONGER = 0.25


@dataclass(frozen=True)
class File:
    """Something to serve; ``digest`` goes into its address, so that browsers keep it until it changes."""

    content: bytes
    content_type: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]


@dataclass(frozen=True)
class Brand:
    logo: File | None = None
    style: File | None = None


def load(settings: Settings) -> Brand:
    """Return what the settings name; raises SettingsError for a logo that cannot be served."""
    css = stylesheet(settings.accent_color, settings.accent_color_dark)
    return Brand(
        logo=None if settings.logo_file is None else _logo(settings.logo_file),
        style=File(css.encode(), "text/css") if css else None,
    )


def stylesheet(accent: str, accent_dark: str) -> str:
    """Return the rules that replace the colours of static/style.css; "" when there is nothing to replace."""
    rules = []
    if accent:
        rules.append(_rule(accent, mixed(accent, "#000000", _STRONGER)))
    if accent_dark:
        dark = _rule(accent_dark, mixed(accent_dark, "#ffffff", _STRONGER))
        rules.append(f"@media (prefers-color-scheme: dark) {{\n{dark}}}\n")
    elif accent:
        # Without one of its own, dark pages keep theirs: the light one would be unreadable there.
        rules = [f"@media not (prefers-color-scheme: dark) {{\n{rules[0]}}}\n"]
    return "".join(rules)


def _rule(accent: str, strong: str) -> str:
    return f":root {{\n  --accent: {accent};\n  --accent-strong: {strong};\n}}\n"


def _logo(path: Path) -> File:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_LOGO + 1)
    except OSError as error:
        raise SettingsError(f"logo_file: {path}: {error.strerror}") from error
    if len(content) > LARGEST_LOGO:
        raise SettingsError(f"logo_file: {path}: larger than {LARGEST_LOGO // 1000} kB")
    if content.startswith(_PNG):
        problem, content_type = _png_problem(content), "image/png"
    else:
        problem, content_type = _svg_problem(content), "image/svg+xml"
    if problem:
        raise SettingsError(f"logo_file: {path}: {problem}")
    return File(content, content_type)


def _png_problem(content: bytes) -> str:
    if content[12:16] != b"IHDR" or len(content) < 33 or not content.endswith(b"IEND\xaeB`\x82"):
        return "not a whole PNG file"
    width, height = struct.unpack(">II", content[16:24])
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        return f"{width} x {height} pixels; at most {LARGEST_SIDE} a side"
    return ""


def _svg_problem(content: bytes) -> str:
    # Entities are declared in a DOCTYPE only: without one, none can grow or name another file.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        return "an SVG file here has no DOCTYPE; take that line out"
    try:
        parser = XMLParser()  # noqa: S314 - no DOCTYPE, and the file is the operator's own
        parser.feed(content.decode("utf-8"))
        root: Element = parser.close()
    except (ParseError, UnicodeDecodeError, ValueError):
        return "neither a PNG nor an SVG file (UTF-8)"
    if root.tag != f"{_SVG}svg":
        return "neither a PNG nor an SVG file"
    for element in root.iter():
        if problem := _active_part(element):
            return f"the SVG file has {problem}, which a picture does not need; take it out"
    return ""


def _active_part(element: Element) -> str:
    tag = str(element.tag).rpartition("}")[2].lower()
    if tag in _ACTIVE:
        return f"<{tag}>"
    for name, value in element.attrib.items():
        plain = name.rpartition("}")[2].lower()
        if plain.startswith("on"):
            return f"the attribute {plain}"
        if plain == "href" and not re.match(r"#|data:image/(png|jpeg);", value.strip()):
            return "a link to elsewhere"
    return ""
