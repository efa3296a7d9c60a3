"""Who is signed in, and that a form came from one of our own pages.

The cookie ``__Host-session`` holds a random token, its row is in ``browser_sessions`` (reliability.md W1,
W2). A visitor has no row: only a random cookie that ties a form to its browser. The CSRF token is that
cookie (or the session's), signed; together with Sec-Fetch-Site and Origin it protects every unsafe method
except of what is exempt (W3).
"""

import functools
import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ParamSpec, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from flask import Flask, Response, current_app, g, redirect, request, url_for
from itsdangerous import BadSignature, TimestampSigner, URLSafeSerializer, URLSafeTimedSerializer
from markupsafe import Markup
from sqlalchemy.exc import DBAPIError
from werkzeug.wrappers import Response as AnyResponse

from portal_app import roles
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import connected, transaction
from portal_app.errors import N_, Forbidden, Unavailable
from portal_app.models import User
from portal_app.roles import Right
from portal_app.services import browser_sessions, profiles
from portal_app.services.sign_in import KnownBrowser, SignedIn

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SESSION_COOKIE = "__Host-session"
VISITOR_COOKIE = "__Host-visitor"
BROWSER_COOKIE = "__Host-browser"
#: How long a browser stays known after a sign-in (services/sign_in.py says what for).
BROWSER_LIFE = timedelta(days=90)
#: A form that was opened longer ago is asked for again.
FORM_LIFE = timedelta(hours=24)
#: A form of another portal may come from so far in the future.
CLOCKS = timedelta(seconds=60)
#: How long after a sign-in dangerous acts need no password.
RECENTLY = timedelta(minutes=15)
#: So much of that is left to whoever opens a form: the password is asked before they type, not after.
TYPING = timedelta(minutes=5)
LONGEST_NEXT = 8192
LONGEST_COOKIE = 100
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
#: Blueprints and endpoints that never look at a cookie: nothing can be done there in somebody's name.
_WITHOUT_COOKIES = {"api_v3", "admin_api", "health", "oauth.token", "oauth.revoke"}


class AccountDisabled(Forbidden):
    def __init__(self) -> None:
        super().__init__(N_("This account is disabled. Ask the people who run this service."))


class NoAccess(Forbidden):
    def __init__(self) -> None:
        super().__init__(N_("This account may not use this service. Ask the people who run it."))


@dataclass(frozen=True)
class Login:
    """A living browser session as this request found it."""

    user: User
    token: str
    signed_in_at: datetime

    @functools.cached_property
    def rights(self) -> frozenset[Right]:
        """What the user may do on the pages of administration."""
        return roles.rights(self.user.permissions, portal().settings)


def init_app(app: Flask) -> None:
    # Imported here: the view imports this module.
    from portal_app.views import sign_in

    app.register_blueprint(sign_in.bp)
    app.before_request(_forget_last_request)
    app.before_request(_check_form)
    app.after_request(_set_visitor_cookie)
    app.jinja_env.globals["csrf_field"] = csrf_field
    app.context_processor(_of_every_page)


def _forget_last_request() -> None:
    # Where an application context outlives a request, as in a shell or a test, ``g`` does too.
    g.pop("login", None)
    g.pop("csrf_field", None)
    g.pop("new_visitor", None)
    g.pop("refused", None)
    g.pop("language", None)


def _check_form() -> None:
    """Raise Forbidden for a request that another site may have made in this browser."""
    endpoint = request.endpoint
    if request.method in _SAFE_METHODS or endpoint is None:
        return
    if request.blueprint in _WITHOUT_COOKIES or endpoint in _WITHOUT_COOKIES:
        return
    if not _is_our_origin() or not _is_our_token(request.form.get("csrf_token", "")):
        raise Forbidden(N_("This form is too old or came from elsewhere. Open the page again and repeat it."))


def signed_in_user() -> User | None:
    """Return the user of this browser session as the database has them now, or None."""
    login = current()
    return None if login is None else login.user


def current() -> Login | None:
    """Return this browser's session, looked up once per request."""
    if "login" not in g:
        g.login = _look_up()
    login: Login | None = g.login
    return login


def required() -> Login:
    """Return the session behind ``sign_in_required``."""
    login = current()
    if login is None:
        raise Forbidden(N_("Sign in first."))
    return login


def sign_in_required(view: Callable[P, R]) -> Callable[P, R | AnyResponse]:
    """Send visitors to the sign-in page and from there back; refuse who is disabled or has no access."""

    @functools.wraps(view)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | AnyResponse:
        login = current()
        if login is None:
            return redirect(url_for("sign_in.page", next=_here()), 303)
        check_access(login.user)
        return view(*args, **kwargs)

    return wrapper


def requires(
    right: Right, *, recently: bool = False, carried: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], Callable[P, R | AnyResponse]]:
    """As ``sign_in_required``, and 403 for who has not this right.

    ``recently`` is for dangerous acts (W8) and for pages where one types what they need: whoever signed in
    longer ago than ``RECENTLY`` says the password once more, and comes back to the page of the form.
    ``carried`` are fields that this page takes back from its address.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R | AnyResponse]:
        @functools.wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R | AnyResponse:
            login = required()
            if right not in login.rights:
                raise Forbidden(N_("Your account has not the right to do this."))
            if recently and utc_now() - login.signed_in_at > _recently():
                return redirect(url_for("sign_in.confirm", next=_page_of_form(carried)), 303)
            return view(*args, **kwargs)

        checked.right = right  # type: ignore[attr-defined]  # the test of who may what reads it
        return sign_in_required(checked)

    return decorate


def _recently() -> timedelta:
    return RECENTLY - TYPING if request.method in _SAFE_METHODS else RECENTLY


def _page_of_form(carried: tuple[str, ...]) -> str:
    """Return the page that the form of this request is on, with these fields as they were typed."""
    if request.method in _SAFE_METHODS:
        return _here()
    page = request.form.get("next")
    if not page and request.referrer:
        url = urlsplit(request.referrer)
        page = url.path + (f"?{url.query}" if url.query else "")
    url = urlsplit(own_path(page))
    query = [(name, value) for name, value in parse_qsl(url.query) if name not in carried]
    query += [(name, request.form[name]) for name in carried if name in request.form]
    return own_path(urlunsplit(url._replace(query=urlencode(query))))


def check_access(user: User) -> None:
    """Raise AccountDisabled or NoAccess; asked at each request, not remembered from the sign-in."""
    g.refused = True
    if user.is_disabled:
        raise AccountDisabled
    if not profiles.meets(portal().settings.access_permissions, user.permissions):
        raise NoAccess
    g.refused = False


def begin(response: AnyResponse, signed_in: SignedIn) -> AnyResponse:
    """Give the browser its new session, and make it known to its user."""
    _set_cookie(response, SESSION_COOKIE, signed_in.token)
    known = signed_in.known_browser
    value = _browser_serializer().dumps([known.user_id, known.password_set_at, known.browser_id])
    _set_cookie(response, BROWSER_COOKIE, str(value), max_age=BROWSER_LIFE)
    response.delete_cookie(VISITOR_COOKIE, path="/", secure=True, httponly=True, samesite="Lax")
    return response


def forget(response: AnyResponse) -> AnyResponse:
    """Take the session cookie away; the row is the caller's."""
    response.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True, samesite="Lax")
    return response


def session_token() -> str | None:
    """Return what the session cookie says, whether or not it is good for anything."""
    token = request.cookies.get(SESSION_COOKIE)
    return token if token and len(token) <= LONGEST_COOKIE else None


def known_browser() -> KnownBrowser | None:
    """Return what an earlier sign-in left in this browser, if the signature is ours."""
    value = request.cookies.get(BROWSER_COOKIE)
    if not value:
        return None
    try:
        user_id, password_set_at, browser_id = _browser_serializer().loads(value)
    except (BadSignature, ValueError, TypeError):
        return None
    return KnownBrowser(user_id, password_set_at, browser_id)


def own_path(target: str | None) -> str:
    """Return ``target`` if it is a path of this portal, with its query as it is, else ``/`` (W13)."""
    if not target or len(target) > LONGEST_NEXT or not target.isascii() or not target.isprintable():
        return "/"
    # Browsers read a backslash as a slash, and two slashes as another host.
    if not target.startswith("/") or target.startswith("//") or "\\" in target.partition("?")[0]:
        return "/"
    try:
        url = urlsplit(target)
    except ValueError:
        return "/"
    return "/" if url.scheme or url.netloc else target


def csrf_field() -> Markup:
    """Return the hidden field that every form of ours has: the same one in all forms of a page."""
    if "csrf_field" not in g:
        token = _csrf_serializer().dumps(_browser_key())
        g.csrf_field = Markup('<input type="hidden" name="csrf_token" value="{}">').format(token)
    field: Markup = g.csrf_field
    return field


def _look_up() -> Login | None:
    token = session_token()
    if token is None:
        return None
    now = utc_now()
    idle = timedelta(seconds=portal().settings.browser_session_seconds)
    with connected(read_only=True) as db:
        found = browser_sessions.find(db, token, idle=idle, now=now)
    if found is None:
        return None
    # What a page asks by itself keeps nobody signed in (W2); the header can only shorten a session.
    by_itself = "X-Live" in request.headers
    if not by_itself and now - found.last_seen_at >= browser_sessions.TOUCH_AFTER:
        try:
            with transaction() as db:
                browser_sessions.touch(db, token, found.user, now=now)
        except (Unavailable, DBAPIError):
            # A database that only reads still shows pages (R28); the session just ends a little earlier.
            logger.warning("browser session not touched: the database does not take it")
    return Login(found.user, token, found.signed_in_at)


def _known_login() -> Login | None:
    """Return the login if this request looked it up already: an error page must not ask the database."""
    login: Login | None = g.get("login")
    return login


def _of_every_page() -> dict[str, object]:
    login = _known_login()
    return {
        "signed_in": login,
        "refused": g.get("refused", False),
        "may": login.rights if login is not None else frozenset(),
    }


def _here() -> str:
    """Return the path and query of this request exactly as they came; for what is no page, the start."""
    methods = current_app.url_map.bind("").allowed_methods(request.path)
    if request.method not in _SAFE_METHODS and "GET" not in methods:
        return "/"
    query = request.query_string.decode("ascii", errors="replace")
    return quote(request.path) + (f"?{query}" if query else "")


def _is_our_origin() -> bool:
    """Believe what the browser says about where the form came from; without a word the token decides."""
    fetch_site = request.headers.get("Sec-Fetch-Site")
    if fetch_site is not None:
        return fetch_site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or origin == portal().settings.portal_url


def _is_our_token(token: str) -> bool:
    try:
        key, made_at = _csrf_serializer().loads(token, return_timestamp=True)
    except BadSignature:
        return False
    return (
        isinstance(key, str)
        and key != ""
        and -CLOCKS <= utc_now() - made_at <= FORM_LIFE
        and hmac.compare_digest(key.encode(), _browser_key(make=False).encode())
    )


def _browser_key(*, make: bool = True) -> str:
    """Return what ties a form to this browser: a digest of the session's cookie, or of the visitor's."""
    cookie = session_token() or _visitor(make=make)
    return browser_sessions.token_hash(cookie).hex()[:32] if cookie else ""


def _visitor(*, make: bool) -> str:
    cookie = request.cookies.get(VISITOR_COOKIE, "")
    if cookie and len(cookie) <= LONGEST_COOKIE:
        return cookie
    if make and "new_visitor" not in g:
        g.new_visitor = secrets.token_urlsafe(16)
    visitor: str = g.get("new_visitor", "")
    return visitor


def _set_visitor_cookie(response: Response) -> Response:
    if "new_visitor" in g:
        _set_cookie(response, VISITOR_COOKIE, g.new_visitor)
    return response


def _set_cookie(response: AnyResponse, name: str, value: str, *, max_age: timedelta | None = None) -> None:
    response.set_cookie(name, value, max_age=max_age, path="/", secure=True, httponly=True, samesite="Lax")


class _Signer(TimestampSigner):
    """Signs with the time that counts at all portals."""

    def get_timestamp(self) -> int:
        return int(utc_now().timestamp())


def _csrf_serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(_secret(), salt="csrf", signer=_Signer)


def _browser_serializer() -> URLSafeSerializer:
    return URLSafeSerializer(_secret(), salt="known browser")


def _secret() -> bytes:
    secret = current_app.secret_key
    assert isinstance(secret, bytes)  # noqa: S101 - create_app reads it from a file
    return secret
