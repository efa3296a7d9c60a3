"""The rules of the OAuth endpoints (spec api-v3.md, sections 3 and 4; RFC 9700; OAuth 2.1).

Written plainly rather than with Authlib's server: nearly all of its answers would have to be turned round
(errors as pages with their own status, S256 demanded, single use of codes decided by the database, the
grace rule of rotation), and what is left to it is parsing.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urlencode

from portal_app.errors import N_
from portal_app.oauth.clients import SCOPE, VISIBLE, Client

_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
#: No parameter of ours is longer (O17).
LONGEST_VALUE = 2048


class Parameters(Protocol):
    """Query or form of a request."""

    def getlist(self, key: str) -> list[str]: ...
    def __contains__(self, key: object) -> bool: ...


class AuthorizeError(Exception):
    """Shown to the user as a page with this status and never sent to the redirect URI (3.2)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class TokenError(Exception):
    """Answered as JSON at the token and revocation endpoints (4.4)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class AuthorizationRequest:
    """A request whose every parameter was checked."""

    client: Client
    redirect_uri: str
    scope: str
    state: str
    code_challenge: str
    by_form_post: bool


def read_authorization_request(query: Parameters, clients: Mapping[str, Client]) -> AuthorizationRequest:
    """Check the request of 3.1; raises AuthorizeError with the row of 3.2 that applies. Unknown parameters
    pass.
    """
    client_id = _parameter(query, "client_id")
    if not VISIBLE.fullmatch(client_id):
        raise _invalid("client_id")
    client = clients.get(client_id)
    if client is None:
        raise AuthorizeError(401, "invalid_client", N_("This app is not registered here."))
    redirect_uri = _parameter(query, "redirect_uri")
    if not client.has_redirect_uri(redirect_uri):
        raise AuthorizeError(401, "invalid_client", N_("The redirect URI is not registered for this app."))
    if _parameter(query, "response_type") != "code":
        raise AuthorizeError(400, "unsupported_response_type", N_("Only response_type=code is supported."))
    scope = _parameter(query, "scope")
    if not _SCOPE.fullmatch(scope) or any(token != SCOPE for token in scope.split(" ")):
        raise AuthorizeError(400, "invalid_scope", N_("The only scope is config."))
    state = _parameter(query, "state")
    if not VISIBLE.fullmatch(state):
        raise _invalid("state")
    if _parameter(query, "code_challenge_method") != "S256":
        raise _invalid("code_challenge_method")
    code_challenge = _parameter(query, "code_challenge")
    if not _CHALLENGE.fullmatch(code_challenge):
        raise _invalid("code_challenge")
    # A custom scheme cannot take a POST; there the parameter is ignored like any other unknown one.
    by_form_post = query.getlist("response_mode") == ["form_post"] and redirect_uri.startswith("http")
    return AuthorizationRequest(client, redirect_uri, SCOPE, state, code_challenge, by_form_post)


def is_utf8(query_string: bytes) -> bool:
    """Tell whether a query decodes to text. The parser would replace what does not by its escape, and
    ``state`` would go back changed.
    """
    try:
        unquote_to_bytes(query_string).decode()
    except UnicodeDecodeError:
        return False
    return True


def _parameter(query: Parameters, name: str) -> str:
    values = query.getlist(name)
    if len(values) != 1 or not values[0] or len(values[0]) > LONGEST_VALUE or f"{name}[]" in query:
        raise _invalid(name)
    return values[0]


def _invalid(name: str) -> AuthorizeError:
    return AuthorizeError(400, "invalid_request", f"The parameter {name} is missing or malformed.")


def redirect_target(redirect_uri: str, fields: Mapping[str, str]) -> str:
    """Append the answer to a redirect URI that may hold a query already."""
    separator = "&" if "?" in redirect_uri else "?"
    return redirect_uri + separator + urlencode(fields, quote_via=quote, safe="")


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a verifier (RFC 7636, section 4.2).

    >>> challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'
    """
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def form_value(form: Parameters, name: str) -> str:
    """Return a required parameter of a token request."""
    value = optional_form_value(form, name)
    if value is None:
        raise TokenError(400, "invalid_request", f"{name} is missing")
    return value


def optional_form_value(form: Parameters, name: str) -> str | None:
    values = form.getlist(name)
    if len(values) > 1 or any(len(v) > LONGEST_VALUE or not VISIBLE.fullmatch(v) for v in values):
        raise TokenError(400, "invalid_request", f"{name} is malformed or comes twice")
    return values[0] if values else None


def code_verifier(form: Parameters) -> str:
    verifier = form_value(form, "code_verifier")
    if not _VERIFIER.fullmatch(verifier):
        raise TokenError(400, "invalid_request", "code_verifier is malformed")
    return verifier


def authenticate(form: Parameters, authorization: str | None, clients: Mapping[str, Client]) -> Client:
    """Return the client of a token request: public ones say their id, confidential ones prove it by HTTP
    Basic.
    """
    client_id = optional_form_value(form, "client_id")
    if authorization is not None:
        basic_id, secret = _basic(authorization)
        client = clients.get(basic_id)
        if client is None or not client.has_secret(secret) or client_id not in (None, basic_id):
            raise TokenError(401, "invalid_client", "client authentication failed")
        return client
    if client_id is None:
        raise TokenError(400, "invalid_request", "client_id is missing")
    client = clients.get(client_id)
    if client is None or client.secret_hash is not None:
        raise TokenError(401, "invalid_client", "unknown client, or one that has to authenticate")
    return client


def _basic(authorization: str) -> tuple[str, str]:
    """Return id and secret of HTTP Basic; both are form-encoded first (RFC 6749, section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        client_id, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if scheme.lower() != "basic" or not colon:
        raise TokenError(401, "invalid_client", "client authentication failed")
    return unquote_plus(client_id), unquote_plus(secret)
