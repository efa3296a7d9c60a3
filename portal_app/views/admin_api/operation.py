"""What one call of the admin API is: its address, the scope it needs, what comes in, what goes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from portal_app.services import paging
from portal_app.services.listing import Part
from portal_app.services.tokens import Caller, Scope
from portal_app.views.admin_api import schema
from portal_app.views.admin_api.schema import Schema

MOST_ITEMS = 200
#: What every list takes.
PAGED = {
    "limit": schema.integer("How many to return.", least=1, most=MOST_ITEMS) | {"default": paging.PAGE_SIZE},
    "cursor": schema.text("`next` of the page before; without it the list begins.", most=2000),
}


@dataclass(frozen=True)
class Call:
    """One call that was found good: values are as their schemas say, and absent where nothing was said."""

    caller: Caller
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    source: str | None
    now: datetime

    @property
    def part(self) -> Part:
        return Part(self.query.get("cursor", ""), self.query.get("limit", paging.PAGE_SIZE))

    @property
    def who(self) -> dict[str, Any]:
        """Return what an act is recorded with."""
        return {"actor": self.caller.actor, "source": self.source, "now": self.now}


@dataclass(frozen=True)
class Operation:
    """``name`` is unique; ``path`` is below the API's, with its parameters in braces.

    ``answer`` is the schema of what goes out with ``status``. A ``secret`` answer is never kept for a second
    call with the same idempotency key. ``statuses`` are errors beyond those that follow from the rest.
    """

    name: str
    method: str
    path: str
    scope: Scope
    run: Callable[[Call], dict[str, Any]]
    answer: Schema
    summary: str
    description: str = ""
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    status: int = 200
    secret: bool = False
    statuses: tuple[int, ...] = ()

    @property
    def changes(self) -> bool:
        return self.method != "GET"


def page(items: list[dict[str, Any]], after: str | None = None) -> dict[str, Any]:
    return {"items": items, "next": after}
