"""What the pages with filters share: choices, days, and files of what was filtered."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from flask import Response, request
from sqlalchemy import bindparam, select

from portal_app import login
from portal_app.clock import utc_now
from portal_app.db import Database, retried, transaction
from portal_app.errors import N_, BadRequest
from portal_app.models import Node, Profile
from portal_app.services import audit
from portal_app.statements import Statement, run, run_together

#: What lies beyond is a slip of the pen, and not what every database can hold.
_YEARS = range(1970, 9001)

#: Values of a filter, each with its name.
Choices = list[tuple[str, str]]


def days(first: str, last: str) -> tuple[datetime | None, datetime | None]:
    """Return the begin of the first day and the end of the last, in UTC; raises BadRequest."""
    begin, end = _day(first), _day(last)
    if begin is not None and end is not None and end < begin:
        raise BadRequest(N_("The last day is before the first one."))
    return begin, None if end is None else end + timedelta(days=1)


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = date.min
    if found.year not in _YEARS:
        raise BadRequest(N_("A day is written like 2026-11-22; “%(text)s” is none."), text=text[:40])
    return datetime(found.year, found.month, found.day, tzinfo=UTC)


_PROFILES = Statement(select(Profile.profile_id, Profile.display_name).order_by(Profile.position))
_NODES = Statement(select(Node.number, Node.name).order_by(Node.number))
_NAMED = Statement(select(Node.number).where(Node.name == bindparam("name")))


def choices(db: Database) -> tuple[Choices, Choices]:
    """Return the profiles and the nodes, each with its name."""
    profiles, nodes = run_together(db, [(_PROFILES, {}), (_NODES, {})])
    return (
        [(row.profile_id, row.display_name) for row in profiles],
        [(str(row.number), row.name) for row in nodes],
    )


def node_number(db: Database, asked: str) -> int | None:
    """Return which node is asked for: by its name, or by its number, which may be one that is gone; None for
    an empty text. Raises BadRequest.
    """
    if not asked:
        return None
    if asked.isascii() and asked.isdigit() and len(asked) < 6:
        return int(asked)
    row = run(db, _NAMED, {"name": asked}).one_or_none()
    if row is None:
        # Where there are many nodes there is no list to choose from.
        raise BadRequest(N_("There is no node “%(name)s”. The page Nodes has their names."), name=asked[:100])
    return int(row.number)


def with_chosen(choices: Choices, value: str) -> Choices:
    """Add what is chosen to the choices: what the plan does not have any more has a history all the same."""
    return choices if not value or value in dict(choices) else [*choices, (value, value)]


@retried
def record_export(action: str, asked: dict[str, Any]) -> None:
    filters = {name: value for name, value in asked.items() if value}
    with transaction() as db:
        audit.record(
            db,
            action,
            actor=login.required().user.name,
            source=request.remote_addr,
            now=utc_now(),
            filters=filters,
        )


def download(lines: Any, name: str, content_type: str) -> Response:
    """Return a file that goes out while it is read."""
    stem, _, ending = name.partition(".")
    name = f"{stem}-{utc_now():%Y-%m-%d}.{ending}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(lines, content_type=f"{content_type}; charset=utf-8", headers=headers)
