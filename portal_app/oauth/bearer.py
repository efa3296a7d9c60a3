"""Access tokens at the API: in the header only, looked up at each call (spec api-v3.md, section 5)."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, cast

from flask import Flask, Response, g, jsonify, request

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import InvalidToken
from portal_app.services import authorizations
from portal_app.services.authorizations import Bearer

P = ParamSpec("P")

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")  # RFC 6750, section 2.1


def init_app(app: Flask) -> None:
    app.register_error_handler(InvalidToken, answer_invalid_token)


def require_scope(scope: str) -> Callable[[Callable[P, Response]], Callable[P, Response]]:
    """Let a view run only for a good access token with ``scope``; ``bearer()`` then says whose it is."""

    def decorate(view: Callable[P, Response]) -> Callable[P, Response]:
        @functools.wraps(view)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Response:
            token = _token_of_request()
            with transaction(read_only=True) as db:
                found = authorizations.find_bearer(db, token, utc_now())
            if found is None:
                raise InvalidToken("the access token is not valid")
            if scope not in found.scope.split():
                return _answer(403, "insufficient_scope", f"the token lacks the scope {scope}")
            g.bearer = found
            return view(*args, **kwargs)

        return wrapper

    return decorate


def bearer() -> Bearer:
    return cast(Bearer, g.bearer)


def answer_invalid_token(error: InvalidToken) -> Response:
    return _answer(401, "invalid_token", str(error))


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
