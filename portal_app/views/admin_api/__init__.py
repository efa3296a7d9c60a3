"""The admin API: administration for scripts (docs/admin-api.md).

Each call is an ``Operation`` in a table; the document, the checks and the views are made from it. JSON only,
a token in the header only: no cookie is looked at.
"""

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Blueprint, Response, request

from portal_app import events
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.errors import (
    BadRequest,
    InsufficientScope,
    NoCapacity,
    NodeRefused,
    NodeUnreachable,
    NotFound,
    PortalError,
    Unavailable,
)
from portal_app.services import idempotency, tokens
from portal_app.services.tokens import BadToken, Caller
from portal_app.views.admin_api import connections, document, nodes, records, schema, users
from portal_app.views.admin_api.operation import Call, Operation

bp = Blueprint("admin_api", __name__, url_prefix="/api/admin/v1")

OPERATIONS: tuple[Operation, ...] = (
    *users.OPERATIONS,
    *connections.OPERATIONS,
    *nodes.OPERATIONS,
    *records.OPERATIONS,
)
#: A user's name may hold slashes, nothing else may.
_CONVERTERS = {"name": "path:name"}
#: Of nodes: raised before anything is written down, or after it was taken back.
_NOTHING_LEFT = (NoCapacity, NodeRefused, NodeUnreachable)


class WrongType(PortalError):
    status = 415


@bp.get("/openapi.json")
def openapi() -> Response:
    """The document, for everybody who gets here: it says nothing about this deployment."""
    return _answer(document.openapi(OPERATIONS, f"{portal().settings.portal_url}{bp.url_prefix}"))


@bp.errorhandler(BadToken)
def answer_bad_token(error: BadToken) -> Response:
    response = _answer({"error": str(error)}, 401)
    # RFC 6750, section 3: without credentials no error is named.
    told = ', error="invalid_token"' if "Authorization" in request.headers else ""
    response.headers["WWW-Authenticate"] = f'Bearer realm="Admin API"{told}'
    return response


@bp.errorhandler(InsufficientScope)
def answer_insufficient_scope(error: InsufficientScope) -> Response:
    response = _answer({"error": str(error)}, 403)
    response.headers["WWW-Authenticate"] = 'Bearer realm="Admin API", error="insufficient_scope"'
    return response


def _view(operation: Operation) -> Callable[..., Response]:
    def view(**path: str) -> Response:
        _refuse_dots()
        caller = _caller(operation)
        call = Call(
            caller=caller,
            path=_path(path),
            query=_query(operation),
            body=_body(operation),
            source=request.remote_addr,
            now=utc_now(),
        )
        key = _key(operation, caller)
        return _done(operation, call) if key is None else _done_once(operation, call, key)

    return view


def _caller(operation: Operation) -> Caller:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise BadToken("a token is needed: Authorization: Bearer cwa_…")
    caller = tokens.find(token.strip(), source=request.remote_addr, settings=portal().settings, now=utc_now())
    if operation.scope not in caller.scopes:
        events.log(
            "api_scope_missing", level=logging.WARNING, token=caller.name, scope=operation.scope,
            source=request.remote_addr,
        )  # fmt: skip
        raise InsufficientScope(f"the token lacks the scope {operation.scope}")
    return caller


def _refuse_dots() -> None:
    """nginx takes dots out of a path before it looks whom it lets in, and hands over the path with them: no
    such path means anything here.
    """
    if any(part in (".", "..") for part in request.path.split("/")):
        raise NotFound("no path has a segment of dots")


def _path(values: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of the path; what cannot be the name of anything is not found."""
    try:
        return {name: schema.from_query(document.PATH[name], value, name) for name, value in values.items()}
    except BadRequest as error:
        raise NotFound(str(error)) from None


def _query(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in request.args.lists():
        if name not in operation.query:
            known = ", ".join(operation.query) or "none"
            raise BadRequest(f"unknown parameter {name[:60]!r}; known are {known}")
        if len(values) > 1:
            raise BadRequest(f"{name}: comes {len(values)} times")
        found[name] = schema.from_query(operation.query[name], values[0], name)
    return found


def _body(operation: Operation) -> dict[str, Any]:
    body = request.get_data()
    if operation.body is None:
        if body:
            raise BadRequest("this call takes no body")
        return {}
    if not body and "required" not in operation.body and "minProperties" not in operation.body:
        return {}
    if request.mimetype != "application/json":
        raise WrongType("send JSON, with Content-Type: application/json")
    found: dict[str, Any] = schema.check(operation.body, schema.parsed_json(body), "body")
    return found


def _key(operation: Operation, caller: Caller) -> idempotency.Key | None:
    value = request.headers.get("Idempotency-Key")
    if value is None or not operation.changes:
        return None
    if not re.fullmatch(r"[!-~]{1,64}", value):
        raise BadRequest("Idempotency-Key: use 1 to 64 ASCII characters without spaces")
    path = request.full_path.encode(errors="surrogateescape")
    digest = idempotency.digest([operation.method.encode(), path, request.get_data()])
    return idempotency.Key(caller.token_id, value, digest)


def _done(operation: Operation, call: Call) -> Response:
    return _answer(operation.run(call), operation.status)


def _done_once(operation: Operation, call: Call, key: idempotency.Key) -> Response:
    kept = idempotency.begin(key, now=call.now)
    if kept is not None:
        response = Response(kept.body, kept.status, content_type="application/json")
        response.headers["Idempotency-Replayed"] = "true"
        return response
    try:
        answer = operation.run(call)
    except Exception as error:
        if _changed_nothing(error):
            # A database that is away keeps it: then the next call with this key is told to look.
            with suppress(Unavailable):
                idempotency.forget(key)
        raise
    body = None if operation.secret else _text(answer)
    idempotency.finish(key, operation.status, body)
    return _answer(answer, operation.status)


def _changed_nothing(error: Exception) -> bool:
    """Tell whether a call that failed with ``error`` was not done for certain, so that it may come again.

    An outage of the database does not say so: what was lost may be the answer to a commit (I6).
    """
    if isinstance(error, Unavailable):
        return isinstance(error, _NOTHING_LEFT)
    return isinstance(error, PortalError)


def _answer(body: Any, status: int = 200) -> Response:
    return Response(
        _text(body), status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _text(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


for _operation in OPERATIONS:
    _rule = re.sub(r"\{(\w+)\}", lambda found: f"<{_CONVERTERS.get(found[1], found[1])}>", _operation.path)
    bp.add_url_rule(_rule, _operation.name, _view(_operation), methods=[_operation.method])
