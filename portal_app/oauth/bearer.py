"""Access tokens at the API: in the header only, looked up at each call (spec api-v3.md, section 5)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask, Response, jsonify, request

from portal_app.clock import utc_now
from portal_app.db import Database, connected
from portal_app.errors import InsufficientScope, InvalidToken
from portal_app.services import authorizations
from portal_app.services.connections import Holder
from portal_app.statements import Asked, Rows, run_together

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")  # RFC 6750, section 2.1


def init_app(app: Flask) -> None:
    app.register_error_handler(InvalidToken, answer_invalid_token)
    app.register_error_handler(InsufficientScope, answer_insufficient_scope)


@dataclass(frozen=True)
class Asking:
    """Whose token a request came with, what was read together with it, and where to read more."""

    db: Database
    holder: Holder
    read: list[Rows]


@contextmanager
def authorized(scope: str, *also: Asked) -> Iterator[Asking]:
    """Look up the request's access token, and read together with it what the answer needs in any case.

    Raises InvalidToken, and InsufficientScope for a token that is good for something else.
    """
    token = _token_of_request()
    with connected(read_only=True) as db:
        rows, *read = run_together(db, [authorizations.bearer(token, utc_now()), *also])
        found = authorizations.bearer_of(rows)
        if found is None:
            raise InvalidToken("the access token is not valid")
        if scope not in found.scope.split():
            raise InsufficientScope(f"the token lacks the scope {scope}")
        yield Asking(db, found.holder, read)


def answer_invalid_token(error: InvalidToken) -> Response:
    return _answer(401, "invalid_token", str(error))


def answer_insufficient_scope(error: InsufficientScope) -> Response:
    return _answer(403, "insufficient_scope", str(error))


def _token_of_request() -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token.strip()):
        raise InvalidToken("an access token is needed")
    return token.strip()


def _answer(status: int, error: str, description: str) -> Response:
    response = jsonify({"error": error, "error_description": description})
    response.status_code = status
    response.headers["WWW-Authenticate"] = _challenge(status, error, description)
    response.headers["Cache-Control"] = "no-store"
    return response


def _challenge(status: int, error: str, description: str) -> str:
    """Return the header of RFC 6750, section 3; without credentials no error is named."""
    if "Authorization" not in request.headers:
        return 'Bearer realm="OAuth"'
    challenge = f'Bearer realm="OAuth",error="{error}"'
    return challenge if status == 401 else f'{challenge},error_description="{description}"'
