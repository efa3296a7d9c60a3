"""What was observed and what was done: history and audit log."""

from typing import Any

from portal_app.db import transaction
from portal_app.services import audit, history, listing
from portal_app.services.tokens import Scope
from portal_app.services.users import LONGEST_NAME, normalized
from portal_app.views.admin_api import shapes
from portal_app.views.admin_api.operation import PAGED, Call, Operation, page
from portal_app.views.admin_api.schema import moment, one_of, text


def _sessions(call: Call) -> dict[str, Any]:
    query = call.query
    wanted = history.Filter(
        user=normalized(query.get("user", "")),
        profile_id=query.get("profile", ""),
        node=query.get("node", ""),
        protocol=query.get("protocol", ""),
        connection_id=query.get("connection", ""),
        begin=query.get("from"),
        end=query.get("until"),
    )
    with transaction(read_only=True) as db:
        found, after = listing.sessions(db, wanted, call.part)
    return page([shapes.session(row) for row in found], after)


def _acts(call: Call) -> dict[str, Any]:
    query = call.query
    wanted = audit.Filter(
        actor=normalized(query.get("actor", "")),
        action=query.get("action", ""),
        object=normalized(query.get("object", "")),
        begin=query.get("from"),
        end=query.get("until"),
    )
    with transaction(read_only=True) as db:
        found, after = listing.acts(db, wanted, call.part)
    return page([shapes.act(row) for row in found], after)


OPERATIONS = (
    Operation(
        "list_sessions", "GET", "/sessions", Scope.HISTORY_READ, _sessions, shapes.page_of("Session"),
        "List observed uses of connections, the newest first",
        query={
            "user": text("Of this user.", most=LONGEST_NAME),
            "profile": text("Of this profile.", most=60),
            "node": text("On this node.", most=100),
            "protocol": one_of(shapes.PROTOCOLS, "Over this protocol."),
            "connection": text("Of this connection.", most=32),
            "from": moment("Begun then or later."),
            "until": moment("Begun before."),
            **PAGED,
        },
    ),
    Operation(
        "list_acts", "GET", "/audit", Scope.AUDIT_READ, _acts, shapes.page_of("Act"),
        "Read the audit log, the newest first",
        query={
            "actor": text("Done by.", most=255),
            "action": text("What was done.", most=60),
            "object": text("Done to.", most=255),
            "from": moment("Done then or later."),
            "until": moment("Done before."),
            **PAGED,
        },
    ),
)  # fmt: skip
