"""Sign-in, sign-out, one-time links, password change."""

import secrets
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app import events, headers, login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import N_, NotFound, PortalError, TooManyRequests
from portal_app.language import gettext, said, writer
from portal_app.login import sign_in_required
from portal_app.models import User
from portal_app.services import audit, browser_sessions, sign_in, users
from portal_app.services.passwords import WeakPassword
from portal_app.services.sign_in import SignedIn, WrongPassword
from portal_app.views import forms
from portal_app.views.account.own_account import account_page

bp = Blueprint("sign_in", __name__)

_AUTHORIZE = "/oauth/authorize"


@bp.get("/sign-in")
def page() -> AnyResponse:
    target = login.own_path(request.args.get("next"))
    if login.current() is not None:
        return redirect(target, 303)
    return _sign_in_form(target, ended=_ended())


@bp.post("/sign-in")
def submit() -> AnyResponse:
    target = login.own_path(request.form.get("next"))
    name = forms.field("user_name", forms.LONGEST_NAME)
    try:
        signed_in = _sign_in(name)
    except (WrongPassword, TooManyRequests) as error:
        return _sign_in_form(target, error, name)
    return login.begin(redirect(target, 303), signed_in)


@bp.get("/confirm-sign-in")
@sign_in_required
def confirm() -> AnyResponse:
    return _form("account/confirm.html", None, next=login.own_path(request.args.get("next")))


@bp.post("/confirm-sign-in")
@sign_in_required
def confirmed() -> AnyResponse:
    """Somebody who is signed in says the password once more, for a dangerous act (W8)."""
    target = login.own_path(request.form.get("next"))
    try:
        signed_in = _sign_in(login.required().user.name)
    except (WrongPassword, TooManyRequests) as error:
        return _form("account/confirm.html", error, next=target)
    return login.begin(redirect(target, 303), signed_in)


@bp.post("/sign-out")
def sign_out() -> AnyResponse:
    token = login.session_token()
    if token is not None:
        _end_session(token)
    return login.forget(redirect(url_for("sign_in.page"), 303))


@bp.post("/sign-out-everywhere")
@sign_in_required
def sign_out_everywhere() -> AnyResponse:
    user = login.required().user
    _end_sessions(user)
    events.log("signed_out_everywhere", user=user.name, source=request.remote_addr)
    return login.forget(redirect(url_for("sign_in.page"), 303))


@bp.get("/set-password/<token>")
def link_page(token: str) -> AnyResponse:
    """Looking at the page does not use the link up."""
    return _link_form(_name_of_link(token))


@bp.post("/set-password/<token>")
def set_password(token: str) -> AnyResponse:
    """The holder of a one-time link sets a password."""
    user_name = _name_of_link(token)
    try:
        name = users.redeem_link(token, _new_password(), source=request.remote_addr, now=utc_now())
    except (WeakPassword, TooManyRequests) as error:
        return _link_form(user_name, error)
    signed_in = sign_in.begin(
        name,
        browser_id=_browser_id(),
        old_token=login.session_token(),
        user_agent=_user_agent(),
        settings=portal().settings,
        now=utc_now(),
    )
    return login.begin(redirect(url_for("account.home"), 303), signed_in)


@bp.get("/password")
@sign_in_required
def password() -> AnyResponse:
    return account_page()


@bp.post("/password")
@sign_in_required
def change_password() -> AnyResponse:
    try:
        signed_in = sign_in.change_password(
            login.required().user,
            forms.field("current_password", forms.LONGEST_PASSWORD),
            _new_password(),
            browser_id=_browser_id(),
            source=request.remote_addr,
            user_agent=_user_agent(),
            settings=portal().settings,
            now=utc_now(),
        )
    except (WeakPassword, WrongPassword, TooManyRequests) as error:
        return account_page(error)
    return login.begin(redirect(url_for("account.own_account", done="password"), 303), signed_in)


def _sign_in(name: str) -> SignedIn:
    """Try the password of the form. Raises WrongPassword, TooManyRequests."""
    return sign_in.sign_in(
        name,
        forms.field("password", forms.LONGEST_PASSWORD),
        source=request.remote_addr,
        known_browser=login.known_browser(),
        new_browser_id=_new_browser_id(),
        old_token=login.session_token(),
        user_agent=_user_agent(),
        settings=portal().settings,
        now=utc_now(),
    )


def _name_of_link(token: str) -> str:
    with transaction(read_only=True) as db:
        user = users.user_of_link(db, token, now=utc_now())
    if user is None:
        raise NotFound(users.LINK_IS_OVER)
    return user.name


def _sign_in_form(
    target: str, error: PortalError | None = None, user_name: str = "", ended: str = ""
) -> Response:
    response = _form("account/sign_in.html", error, next=target, user_name=user_name, ended=ended,
                     for_app=urlsplit(target).path == _AUTHORIZE)  # fmt: skip
    if redirect_uri := _redirect_without_approval(target):
        headers.allow_form_action(response, redirect_uri)
    return response


def _redirect_without_approval(target: str) -> str | None:
    """Return where signing in leads at once if ``target`` authorizes an app that needs no approval.

    Browsers hold every redirect that follows a form against its page's form-action.
    """
    url = urlsplit(target)
    query = parse_qs(url.query)
    client = portal().clients.get(query.get("client_id", [""])[0])
    redirect_uri = query.get("redirect_uri", [""])[0]
    if url.path != _AUTHORIZE or client is None or client.requires_approval:
        return None
    return redirect_uri if client.has_redirect_uri(redirect_uri) else None


def _link_form(user_name: str, error: PortalError | None = None) -> Response:
    response = _form("account/set_password.html", error, user_name=user_name)
    # The address holds the secret: it goes nowhere, also not into our own access log.
    response.headers["Referrer-Policy"] = "strict-origin"
    return response


def _form(template: str, error: PortalError | None, **values: object) -> Response:
    """Return a page with its form, and what was wrong with the last try."""
    response = make_response(render_template(template, problem=said(error) if error else "", **values))
    response.status_code = error.status if error else 200
    if error is not None and error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _new_password() -> str:
    new, repeated = (
        forms.field(name, 2 * forms.LONGEST_PASSWORD) for name in ("new_password", "repeated_password")
    )
    if new != repeated:
        raise WeakPassword(N_("The two new passwords differ."))
    return new


def _new_browser_id() -> str:
    return secrets.token_urlsafe(12)


def _user_agent() -> str:
    return request.headers.get("User-Agent", "")


def _browser_id() -> str:
    known = login.known_browser()
    return known.browser_id if known is not None else _new_browser_id()


@retried
def _end_session(token: str) -> None:
    settings, now = portal().settings, utc_now()
    idle = timedelta(seconds=settings.browser_session_seconds)
    with transaction() as db:
        name = browser_sessions.sign_out(db, token, idle=idle, now=now)
        if name is not None:
            # As with the sign-in: where from is kept only where the operator wants that.
            source = request.remote_addr if settings.log_origins else None
            audit.record(db, "signed out", actor=name, object=name, source=source, now=now)


@retried
def _end_sessions(user: User) -> None:
    with transaction() as db:
        browser_sessions.end_all(db, user.id)
        audit.record(
            db, "signed out everywhere", actor=user.name, object=user.name,
            source=request.remote_addr, now=utc_now(),
        )  # fmt: skip


def _ended() -> str:
    """Return why somebody who had a session must sign in again, "" for who had none."""
    token = login.session_token()
    if token is None:
        return ""
    settings, now = portal().settings, utc_now()
    idle = timedelta(seconds=settings.browser_session_seconds)
    with transaction(read_only=True) as db:
        was_idle = browser_sessions.was_idle(db, token, idle=idle, now=now)
    if was_idle:
        return str(
            gettext(
                "You were signed out after %(time)s without use. Sign in again.", time=writer().duration(idle)
            )
        )
    return str(gettext("Your session here has ended. Sign in again."))
