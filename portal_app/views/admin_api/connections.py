"""Connections of everybody."""

from typing import Any

from portal_app.db import transaction
from portal_app.errors import NotFound
from portal_app.services import ending_by_operator, listing
from portal_app.services.listing import ConnectionFilter
from portal_app.services.tokens import Scope
from portal_app.services.users import LONGEST_NAME, normalized
from portal_app.views.admin_api import shapes
from portal_app.views.admin_api.operation import PAGED, Call, Operation, page
from portal_app.views.admin_api.schema import boolean, one_of, record, ref, text


def _list(call: Call) -> dict[str, Any]:
    query = call.query
    wanted = ConnectionFilter(
        user=normalized(query["user"]) if "user" in query else None,
        profile_id=query.get("profile"),
        node=query.get("node"),
        protocol=query.get("protocol"),
        active=query.get("active"),
    )
    with transaction(read_only=True) as db:
        found, after = listing.connections(db, wanted, call.part)
    return page([shapes.connection(row) for row in found], after)


def _get(call: Call) -> dict[str, Any]:
    with transaction(read_only=True) as db:
        row = listing.connection(db, call.path["connection_id"])
    if row is None:
        raise NotFound("no such connection; it may have ended already")
    return shapes.connection(row)


def _end(call: Call) -> dict[str, Any]:
    return {"connections_ended": ending_by_operator.end_connections([call.path["connection_id"]], **call.who)}


OPERATIONS = (
    Operation(
        "list_connections", "GET", "/connections", Scope.CONNECTIONS_READ, _list,
        shapes.page_of("Connection"), "List connections by their ids",
        query={
            "user": text("Of this user.", most=LONGEST_NAME),
            "profile": text("Of this profile.", most=60),
            "node": text("Of this node.", most=100),
            "protocol": one_of(shapes.PROTOCOLS, "Over this protocol."),
            "active": boolean("Only those in use now, or not in use."),
            **PAGED,
        },
    ),
    Operation(
        "get_connection", "GET", "/connections/{connection_id}", Scope.CONNECTIONS_READ, _get,
        ref("Connection"), "Show a connection",
    ),
    Operation(
        "end_connection", "DELETE", "/connections/{connection_id}", Scope.CONNECTIONS_WRITE, _end,
        record({"connections_ended": {"const": 1}}), "End a connection",
        "Its node cuts it at once. An app gets a new one when its user connects again.",
    ),
)  # fmt: skip
