"""Users, what they have, and what an administrator does with it."""

from datetime import timedelta
from typing import Any

from portal_app.application import portal
from portal_app.db import transaction
from portal_app.errors import BadRequest, Conflict, Forbidden, InvalidToken, NotFound
from portal_app.services import ending_by_operator, listing, users
from portal_app.services.listing import ConnectionFilter
from portal_app.services.tokens import Scope
from portal_app.views.admin_api import shapes
from portal_app.views.admin_api.operation import PAGED, Call, Operation, page
from portal_app.views.admin_api.schema import array, boolean, integer, moment, one_of, record, ref, text
from portal_app.views.forms import LONGEST_DISPLAY_NAME

_MOST_PERMISSIONS = 500
_PERMISSIONS = array(text(least=1, most=users.LONGEST_PERMISSION), most=_MOST_PERMISSIONS)
#: Of a configuration: who makes one has to bring it to a device.
_SHORTEST_SECONDS = 60
_CUT = integer("Connections that were cut.", least=0)


def _list(call: Call) -> dict[str, Any]:
    search = users.normalized(call.query.get("search", ""))
    with transaction(read_only=True) as db:
        found, after = listing.users(db, disabled=call.query.get("disabled"), search=search, part=call.part)
    return page([shapes.user(row) for row in found], after)


def _add(call: Call) -> dict[str, Any]:
    name = users.check_name(call.body["name"])
    users.add(
        name,
        permissions=call.body.get("permissions", []),
        exists_ok=call.body.get("exists_ok", False),
        **call.who,
    )
    return _shown(name)


def _get(call: Call) -> dict[str, Any]:
    return _shown(_name(call))


def _change(call: Call) -> dict[str, Any]:
    name, cut = _name(call), 0
    _refuse_own(call, name)
    before = _found(name)
    if "permissions" in call.body:
        settings = portal().settings
        cut += users.set_permissions(
            name, call.body["permissions"], access_permissions=settings.access_permissions, **call.who
        )
    disabled = call.body.get("disabled", before.user.is_disabled)
    if disabled and not before.user.is_disabled:
        cut += users.disable(name, **call.who)
    elif not disabled and before.user.is_disabled:
        users.enable(name, **call.who)
    return {"user": _shown(name), "connections_ended": cut}


def _delete(call: Call) -> dict[str, Any]:
    name = _name(call)
    _refuse_own(call, name)
    return {"connections_ended": users.delete(name, **call.who)}


def _link(call: Call) -> dict[str, Any]:
    token = users.one_time_link(_name(call), **call.who)
    return {
        "url": f"{portal().settings.portal_url}/set-password/{token}",
        "expires_at": shapes.time(call.now + users.LINK_LIFE),
    }


def _authorizations(call: Call) -> dict[str, Any]:
    row = _found(_name(call))
    with transaction(read_only=True) as db:
        found, after = listing.authorizations(db, row.user.id, call.part)
    return page([shapes.authorization(a, portal().clients) for a in found], after)


def _end_authorizations(call: Call) -> dict[str, Any]:
    which = call.path.get("authorization_id")
    ended, cut = ending_by_operator.end_authorizations(_name(call), which, **call.who)
    return {"authorizations_ended": ended, "connections_ended": cut}


def _connections(call: Call) -> dict[str, Any]:
    row = _found(_name(call))
    with transaction(read_only=True) as db:
        found, after = listing.connections(db, ConnectionFilter(user=row.user.name), call.part)
    return page([shapes.connection(c) for c in found], after)


def _configure(call: Call) -> dict[str, Any]:
    body = call.body
    device = body.get("display_name", "Admin API").strip()
    if not device or not device.isprintable():
        raise BadRequest("display_name: use printable characters")
    try:
        issued = users.make_configuration(
            _name(call),
            body["profile_id"],
            body["protocol"],
            device,
            prefer_tcp=body.get("prefer_tcp", False),
            node=body.get("node"),
            expires_in=timedelta(seconds=body["expires_in"]) if "expires_in" in body else None,
            **call.who,
        )
    except (Forbidden, InvalidToken) as error:
        # It is the user who may not, and not the token.
        raise Conflict(str(error)) from error
    return {
        "connection_id": issued.connection_id,
        "configuration": issued.config,
        "content_type": issued.content_type,
        "file_name": issued.file_name,
        "expires_at": shapes.time(issued.expires_at),
    }


def _name(call: Call) -> str:
    return users.normalized(call.path["name"])


def _found(name: str) -> listing.UserRow:
    with transaction(read_only=True) as db:
        row = listing.user(db, name)
    if row is None:
        raise NotFound(f"no user {name!r}")
    return row


def _shown(name: str) -> dict[str, Any]:
    return shapes.user(_found(name))


def _refuse_own(call: Call, name: str) -> None:
    """Let nobody saw off the branch that the token sits on."""
    if name == call.caller.made_by:
        raise Conflict(f"{name} made this token, which would end with it; use the pages or vpn-portal user")


OPERATIONS = (
    Operation(
        "list_users", "GET", "/users", Scope.USERS_READ, _list, shapes.page_of("User"),
        "List users by name",
        query={
            "disabled": boolean("Only those who are, or are not."),
            "search": text(
                "Only those whose name begins so; the case does not matter.",
                least=1, most=users.LONGEST_NAME, example="al",
            ),
            **PAGED,
        },
    ),
    Operation(
        "add_user", "POST", "/users", Scope.USERS_WRITE, _add, ref("User"),
        "Add a user",
        "The user has a local account without a password; a link lets its holder set one.",
        body=record(
            {
                "name": text(least=1, most=users.LONGEST_NAME, example="alice"),
                "permissions": _PERMISSIONS,
                "exists_ok": boolean("Change nothing and succeed if the user exists.", default=False),
            },
            optional=("permissions", "exists_ok"),
        ),
        status=201, statuses=(409,),
    ),
    Operation(
        "get_user", "GET", "/users/{name}", Scope.USERS_READ, _get, ref("User"), "Show a user",
    ),
    Operation(
        "change_user", "PATCH", "/users/{name}", Scope.USERS_WRITE, _change,
        record({"user": ref("User"), "connections_ended": _CUT}),
        "Set permissions, disable or enable",
        "What is not allowed any more is cut at once; disabling cuts everything, and ends authorizations.",
        body=record(
            {"permissions": _PERMISSIONS, "disabled": boolean()}, optional=("permissions", "disabled")
        ) | {"minProperties": 1},
        statuses=(409,),
    ),
    Operation(
        "delete_user", "DELETE", "/users/{name}", Scope.USERS_WRITE, _delete,
        record({"connections_ended": _CUT}),
        "Delete a user and everything of theirs but history and audit log",
        statuses=(409,),
    ),
    Operation(
        "make_link", "POST", "/users/{name}/link", Scope.USERS_WRITE, _link,
        record({"url": text(), "expires_at": moment()}),
        "Make a one-time link that lets its holder set the user's password",
        "Older links of this user end. Whoever has the link has the account.",
        status=201, secret=True,
    ),
    Operation(
        "list_authorizations", "GET", "/users/{name}/authorizations", Scope.USERS_READ, _authorizations,
        shapes.page_of("Authorization"), "List the apps that a user has authorized", query=PAGED,
    ),
    Operation(
        "end_authorizations", "DELETE", "/users/{name}/authorizations", Scope.USERS_WRITE,
        _end_authorizations,
        record({"authorizations_ended": integer(least=0), "connections_ended": _CUT}),
        "End all authorizations of a user, with their connections",
    ),
    Operation(
        "end_authorization", "DELETE", "/users/{name}/authorizations/{authorization_id}", Scope.USERS_WRITE,
        _end_authorizations,
        record({"authorizations_ended": integer(least=0), "connections_ended": _CUT}),
        "End one authorization, with its connections",
    ),
    Operation(
        "list_connections_of_user", "GET", "/users/{name}/connections", Scope.CONNECTIONS_READ, _connections,
        shapes.page_of("Connection"), "List the connections of a user", query=PAGED,
    ),
    Operation(
        "make_configuration", "POST", "/users/{name}/configurations", Scope.CONFIGURATIONS_WRITE, _configure,
        ref("Configuration"),
        "Make a configuration for a user",
        "It holds a private key that is kept nowhere: hand it over safely. How many a user may have does not"
        " count; what the user may use does.",
        body=record(
            {
                "profile_id": text(least=1, most=60, example="employees"),
                "protocol": one_of(shapes.PROTOCOLS),
                "display_name": text("The device, as lists call it.", least=1, most=LONGEST_DISPLAY_NAME),
                "prefer_tcp": boolean("OpenVPN: try TCP first.", default=False),
                "node": text("Only this node will do; without it the portal chooses.", least=1, most=100),
                "expires_in": integer(
                    "Seconds that it is good for; without it, and at most, those of session_expiry_seconds.",
                    least=_SHORTEST_SECONDS, most=2**31 - 1,
                ),
            },
            optional=("display_name", "prefer_tcp", "node", "expires_in"),
        ),
        status=201, secret=True, statuses=(406,),
    ),
)  # fmt: skip
