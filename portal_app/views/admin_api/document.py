"""The OpenAPI document of the admin API, made from the table of its operations."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from portal_app.services.tokens import Scope
from portal_app.views.admin_api import schema
from portal_app.views.admin_api.operation import Operation
from portal_app.views.admin_api.schema import Schema
from portal_app.views.admin_api.shapes import COMPONENTS

IDEMPOTENCY_KEY = schema.text(
    "Makes it safe to repeat the call: the same key and request get the first answer again, for a day.",
    least=1, most=64, pattern=r"^[!-~]+$",
)  # fmt: skip
#: What the parameters of paths are. No user has a name with a segment that is one or two dots.
PATH: dict[str, Schema] = {
    "name": schema.text("A user's name, percent-encoded.", least=1, most=255, example="alice"),
    "authorization_id": schema.integer(least=1, most=2**31 - 1),
    "connection_id": schema.text(pattern="^[0-9a-f]{32}$"),
    "node": schema.text("A node's name.", least=1, most=100, pattern="^[a-zA-Z0-9._-]+$"),
}
_DESCRIPTION = (
    "Administration for scripts. docs/admin-api.md explains it with examples, and says what pages do beside."
)


def parameters(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)


def openapi(operations: Sequence[Operation], url: str) -> dict[str, Any]:
    """Return the document; ``url`` is where the API is."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Causeway admin API", "version": version("causeway"), "description": _DESCRIPTION},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": f"Scopes: {', '.join(Scope)}."}
            },
            "schemas": COMPONENTS,
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    needs = f"Needs the scope `{operation.scope}`."
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"{operation.description}\n\n{needs}" if operation.description else needs,
        "security": [{"token": [str(operation.scope)]}],
    }
    if described := list(_parameters(operation)):
        found["parameters"] = described
    if operation.body is not None:
        # A body without a required field may stay away.
        content = {"application/json": {"schema": operation.body}}
        found["requestBody"] = {
            "required": "required" in operation.body or "minProperties" in operation.body,
            "content": content,
        }
    found["responses"] = {str(operation.status): _response(operation.status, operation.answer)} | {
        str(status): _response(status, schema.ref("Error")) for status in statuses(operation)
    }
    return found


def _parameters(operation: Operation) -> Any:
    for name in parameters(operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": PATH[name]}
    for name, of in operation.query.items():
        yield {"name": name, "in": "query", "schema": of}
    if operation.changes:
        yield {"name": "Idempotency-Key", "in": "header", "schema": IDEMPOTENCY_KEY}


def statuses(operation: Operation) -> list[int]:
    """Return the errors that a call may be answered with."""
    found = {400, 401, 403, 413, 429, 503, *operation.statuses}
    if parameters(operation.path):
        found.add(404)
    if operation.body is not None:
        found.add(415)
    if operation.changes:
        found |= {409, 422}
    return sorted(found)


def _response(status: int, answer: Schema) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": answer}},
    }
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return found
