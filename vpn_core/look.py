"""How the portal of a deployment looks and what it announces: its logo, contact and notices.

The inventory is checked by this before a host is touched, and the portal checks again when it starts.
"""

import re
import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError, XMLParser

LARGEST_LOGO = 200_000
LARGEST_SIDE = 4096
LONGEST_NOTICE = 500
_PNG = b"\x89PNG\r\n\x1a\n"
_SVG = "{http://www.w3.org/2000/svg}"
#: What an SVG must not have: it is a picture, and nothing in it acts or is fetched.
_ACTIVE = {"script", "foreignobject", "iframe", "object", "embed", "audio", "video", "handler", "set"}
_MAIL_ADDRESS = re.compile(r"[A-Za-z0-9.+_-]{1,64}@[A-Za-z0-9.-]{1,190}")


@dataclass(frozen=True)
class Planned:
    """Work on the service that people are told of, until it is over."""

    text: str
    starts_at: datetime
    ends_at: datetime


def logo_type(content: bytes) -> str:
    """Return the content type of a logo; which of the two it is says the file, not its name."""
    return "image/png" if content.startswith(_PNG) else "image/svg+xml"


def logo_problem(content: bytes) -> str:
    """Return why these bytes cannot be the logo, "" if they can."""
    if len(content) > LARGEST_LOGO:
        return f"larger than {LARGEST_LOGO // 1000} kB"
    return _png_problem(content) if content.startswith(_PNG) else _svg_problem(content)


def is_contact(text: str) -> bool:
    """Return whether this is a mail address or an address that begins with https://."""
    if _MAIL_ADDRESS.fullmatch(text):
        return True
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme == "https" and bool(url.hostname) and text.isprintable() and " " not in text


def planned(entry: Any) -> Planned:
    """Return one of the notices; raises ValueError saying what is wrong with it."""
    if not isinstance(entry, dict) or entry.keys() != {"text", "from", "until"}:
        raise ValueError("has text, from and until, nothing else")
    text = entry["text"]
    if not isinstance(text, str) or not 1 <= len(text.strip()) <= LONGEST_NOTICE:
        raise ValueError(f"text: 1 to {LONGEST_NOTICE} characters")
    notice = Planned(text.strip(), _moment("from", entry["from"]), _moment("until", entry["until"]))
    if notice.ends_at <= notice.starts_at:
        raise ValueError("until: is not after from")
    return notice


def _moment(key: str, value: object) -> datetime:
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"{key}: {str(value)!r} is no time such as 2026-12-05T22:00:00Z")
    return found


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
