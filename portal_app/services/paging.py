"""Lists that are read page by page, at the same cost wherever one is: by what comes after a row.

A place in a list is a cursor: the values of the sort columns of one row, as text for a URL. The columns
together are unique and have an index in this order, so the database begins at the place.
"""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import tuple_

from portal_app.db import Database
from portal_app.statements import Statement, at_most, run

PAGE_SIZE = 50
#: A name of 255 characters, each of four bytes, and some more.
LONGEST_CURSOR = 1600


@dataclass(frozen=True)
class Order:
    """How a list is sorted: columns that are never null and together unique, all in one direction."""

    columns: Sequence[Any]
    descending: bool = False


@dataclass(frozen=True)
class Page:
    """Some rows of a list, and the cursors of the pages around it; None where there is none.

    Behind its own columns a row has those of the order.
    """

    rows: list[Any]
    before: str | None
    after: str | None


def read(
    db: Database,
    query: Any,
    order: Order,
    *,
    before: str = "",
    after: str = "",
    size: int | None = None,
) -> Page:
    """Return the page that follows the cursor ``after``, or leads up to ``before``; else the first one.

    ``query`` is without order. A cursor that is none, or of another order, is the begin of the list.
    """
    size = size or PAGE_SIZE
    columns = list(order.columns)
    backwards = bool(before)
    at = _values(before or after, _kinds(columns))
    descending = order.descending != backwards
    if at is not None:
        place = tuple_(*columns)
        values = tuple_(*at)
        query = query.where(place < values if descending else place > values)
        # Says nothing new; where the columns are of two tables it is what lets an index find the place.
        query = query.where(columns[0] <= at[0] if descending else columns[0] >= at[0])
    else:
        backwards, descending = False, order.descending
    found = list(db.execute(_in_order(query, columns, descending, size)).all())
    more, found = len(found) > size, found[:size]
    if backwards:
        found.reverse()
    if not found:
        return Page([], None, None)
    first, last = (_cursor(row[-len(columns) :]) for row in (found[0], found[-1]))
    comes_before = more if backwards else at is not None
    comes_after = True if backwards else more
    return Page(found, first if comes_before else None, last if comes_after else None)


def first(query: Any, order: Order, size: int) -> Statement:
    """Return what asks for the first page, built once: for a list that many look at without a filter."""
    return Statement(_in_order(query, list(order.columns), order.descending, size))


def read_first(db: Database, first: Statement, order: Order, size: int) -> Page:
    """Return the first page, asked for by what ``first`` made of the same order and size."""
    found = run(db, first)
    after = _cursor(found[size - 1][-len(order.columns) :]) if len(found) > size else None
    return Page(found[:size], None, after)


def among(
    items: Sequence[Any],
    place: Callable[[Any], tuple[Any, ...]],
    *,
    before: str = "",
    after: str = "",
    size: int | None = None,
) -> Page:
    """Return a page of what was read as a whole, sorted by ``place``: numbers and texts, together unique."""
    size = size or PAGE_SIZE
    ordered = sorted(items, key=place)
    at = _values(before or after, [type(value) for value in place(ordered[0])]) if ordered else None
    begin = 0
    if at is not None:
        if before:
            begin = max(0, bisect_left(ordered, tuple(at), key=place) - size)
        else:
            begin = bisect_right(ordered, tuple(at), key=place)
    shown = ordered[begin : begin + size]
    if not shown:
        return Page([], None, None)
    return Page(
        shown,
        _cursor(place(shown[0])) if begin else None,
        _cursor(place(shown[-1])) if begin + size < len(ordered) else None,
    )


def _in_order(query: Any, columns: Sequence[Any], descending: bool, size: int) -> Any:
    """Add the order of the list, and one row more than a page has."""
    places = (column.label(f"place_{number}") for number, column in enumerate(columns))
    directed = (column.desc() if descending else column.asc() for column in columns)
    return query.add_columns(*places).order_by(*directed).limit(at_most(size + 1))


def is_cursor(cursor: str, order: Order) -> bool:
    """Tell whether a cursor is one of lists in this order."""
    return _values(cursor, _kinds(order.columns)) is not None


def _kinds(columns: Sequence[Any]) -> list[type]:
    return [column.type.python_type for column in columns]


def _cursor(values: Sequence[Any]) -> str:
    plain = [
        {"t": value.astimezone(UTC).isoformat()} if isinstance(value, datetime) else value for value in values
    ]
    said = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def _values(cursor: str, kinds: Sequence[type]) -> list[Any] | None:
    if not cursor or len(cursor) > LONGEST_CURSOR:
        return None
    try:
        plain = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(plain, list) or len(plain) != len(kinds):
            return None
        values = [_moment(v["t"]) if isinstance(v, dict) else v for v in plain]
        "".join(v for v in values if isinstance(v, str)).encode()
    except (binascii.Error, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    for value, kind in zip(values, kinds, strict=True):
        if not isinstance(value, kind) or isinstance(value, bool) or "\0" in str(value):
            return None
        if isinstance(value, int) and abs(value) >= 2**63:
            return None
    return values


def _moment(text: str) -> datetime:
    """Return a moment that the database can hold. Raises ValueError, OverflowError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)
