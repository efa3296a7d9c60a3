"""Lists as files: read part by part, bounded, and safe to open in a spreadsheet (reliability.md W23)."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from portal_app.db import transaction
from portal_app.services import paging

#: Rows that one transaction reads, and that go out together.
_PART = 2000
#: With one of these at its begin a cell may be a formula, also in their wide forms.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def rows(query: Any, order: paging.Order, *, most: int) -> Iterator[Any]:
    """Yield what a query finds in an order, one row more than ``most`` if there are more."""
    left, after = most + 1, ""
    while left > 0:
        with transaction(read_only=True) as db:
            page = paging.read(db, query, order, after=after, size=min(_PART, left))
        yield from page.rows
        left -= len(page.rows)
        if not page.after:
            return
        after = page.after


def csv_lines(
    columns: Sequence[str], found: Iterable[Any], cells: Callable[[Any], Sequence[object]], *, most: int
) -> Iterator[str]:
    """Yield a CSV file (RFC 4180) in parts; its last line says so when it ends before the list does."""
    part: list[Sequence[object]] = [columns]
    for number, row in enumerate(found):
        if number == most:
            part.append([f"Cut after {most} rows. Choose narrower filters to get the others."])
            break
        part.append(cells(row))
        if len(part) >= _PART:
            yield _csv(part)
            part = []
    yield _csv(part)


def _csv(part: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    # Quoted, so that no text begins a cell of its own where another separator is customary.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([_cell(value) for value in row] for row in part)
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return defused(value) if isinstance(value, str) else value


def defused(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula.

    >>> defused("=1+1"), defused("alice")
    ("'=1+1", 'alice')
    """
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
