"""What pages read from forms and queries, bounded and checked; and how values look on a page."""

import hashlib
from datetime import datetime
from pathlib import Path

from flask import current_app, request, url_for

from portal_app.errors import BadRequest

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
LONGEST_NAME, LONGEST_PASSWORD, LONGEST_DISPLAY_NAME = 255, 1024, 64


def field(name: str, longest: int) -> str:
    """Return a field as it was typed; raises BadRequest when it is missing, too long or comes twice."""
    values = request.form.getlist(name)
    if len(values) != 1 or len(values[0]) > longest or "\0" in values[0]:
        raise BadRequest(f"The form's field {name} is missing or too long.")
    return values[0]


def display_name() -> str:
    """Return the name for a device: 1 to 64 printable characters."""
    name = field("display_name", 4 * LONGEST_DISPLAY_NAME).strip()
    if not 1 <= len(name) <= LONGEST_DISPLAY_NAME or not name.isprintable():
        raise BadRequest(f"Give the device a name of 1 to {LONGEST_DISPLAY_NAME} printable characters.")
    return name


def page_number() -> int:
    """Return the page asked for; anything that is no page is the first."""
    text = request.args.get("page", "1")
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 8 else 1


def time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def machine_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def size(count: int | None) -> str:
    """Return a number of bytes for people.

    >>> size(1536), size(None)
    ('1.5 KiB', 'unknown')
    """
    if count is None:
        return "unknown"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def static_url(name: str) -> str:
    """Return the address of a static file; its digest in it lets browsers keep the file until it changes."""
    digests: dict[str, str] = current_app.extensions.setdefault("static digests", {})
    if name not in digests:
        content = Path(current_app.static_folder or "", name).read_bytes()
        digests[name] = hashlib.sha256(content).hexdigest()[:12]
    return url_for("static", filename=name, v=digests[name])
