"""What pages read from forms and queries, bounded and checked."""

from collections.abc import Collection

from flask import request

from portal_app.errors import N_, BadRequest
from portal_app.services import paging

LONGEST_NAME, LONGEST_PASSWORD, LONGEST_DISPLAY_NAME = 255, 1024, 64


def field(name: str, longest: int) -> str:
    """Return a field as it was typed; raises BadRequest when it is missing, too long or comes twice."""
    values = request.form.getlist(name)
    if len(values) != 1 or len(values[0]) > longest or "\0" in values[0]:
        raise BadRequest(N_("The form's field %(field)s is missing or too long."), field=name)
    return values[0]


def fields(name: str, longest: int, most: int) -> list[str]:
    """Return a field that may come several times, such as what was ticked in a list."""
    values = request.form.getlist(name)
    if len(values) > most or any(len(value) > longest or "\0" in value for value in values):
        raise BadRequest(N_("The form's field %(field)s is missing or too long."), field=name)
    return values


def display_name() -> str:
    """Return the name for a device: 1 to 64 printable characters."""
    name = field("display_name", 4 * LONGEST_DISPLAY_NAME).strip()
    if not 1 <= len(name) <= LONGEST_DISPLAY_NAME or not name.isprintable():
        raise BadRequest(
            N_("Give the device a name of 1 to %(most)s printable characters."), most=LONGEST_DISPLAY_NAME
        )
    return name


def query(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a value of the address, cut to a length; what is not there is empty."""
    return request.args.get(name, "").strip()[:longest].replace("\0", "")


def cursor(name: str) -> str:
    """Return the place in a list that the address names (``services/paging.py``)."""
    return query(name, paging.LONGEST_CURSOR + 1)


def chosen(name: str, choices: Collection[str], default: str = "") -> str:
    """Return a value of the address if it is one of the choices."""
    value = request.args.get(name, default)
    return value if value in choices else default


def number(name: str) -> int:
    """Return a small number of the address or the form; what is none is 0."""
    value = request.values.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 7 else 0
