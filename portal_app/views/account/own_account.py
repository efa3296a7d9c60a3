"""A user's account: password, where they are signed in, language, and what is stored about them."""

from datetime import timedelta

from flask import Response, current_app, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import N_, PortalError
from portal_app.language import gettext, ngettext, said
from portal_app.login import sign_in_required
from portal_app.models import LocalAccount, User
from portal_app.services import audit, browser_sessions, own_data
from portal_app.views import forms
from portal_app.views.account import bp, page

_DONE = {
    "password": N_("The password is changed; other browsers are signed out."),
    "sessions": N_("All other browsers are signed out."),
}


@bp.get("/account")
@sign_in_required
def own_account() -> AnyResponse:
    return account_page()


@bp.post("/account/end-others")
@sign_in_required
def end_other_sessions() -> AnyResponse:
    """Sign the user out of every other browser."""
    found = login.required()
    _end_others(found.user, found.token)
    return redirect(url_for("account.own_account", done="sessions"), 303)


@bp.post("/account/export")
@sign_in_required
def export() -> AnyResponse:
    """Hand out what is stored about the user. A form, since it is written down that somebody asked."""
    user, now = login.required().user, utc_now()
    kept = timedelta(days=portal().settings.retention_days)
    found = own_data.export(user, retention=kept, source=request.remote_addr, now=now)
    content = current_app.json.dumps(found, indent=2) + "\n"
    response = Response(content, content_type="application/json")
    response.headers["Content-Disposition"] = f'attachment; filename="my-data-{now:%Y-%m-%d}.json"'
    return response


def account_page(error: PortalError | None = None) -> Response:
    """Return the page; ``error`` is what was wrong with the last try to change the password."""
    found, now, settings = login.required(), utc_now(), portal().settings
    idle = timedelta(seconds=settings.browser_session_seconds)
    with transaction(read_only=True) as db:
        sessions = browser_sessions.listed(db, found.user.id, found.token, idle=idle, now=now)
        others = browser_sessions.count_others(db, found.user.id, found.token, idle=idle, now=now)
        account = db.get(LocalAccount, found.user.id)
    done = forms.chosen("done", _DONE)
    response = page(
        "account/account.html",
        problem=said(error) if error else "",
        sessions=sessions,
        others=others,
        others_text=ngettext(
            "%(num)s other browser is signed in.",
            "%(num)s other browsers are signed in.",
            others,
        ),
        done=gettext(_DONE[done]) if done else "",
        has_password=account is not None and account.password_hash is not None,
        password_changed_at=account.changed_at if account else None,
        retention_days=settings.retention_days,
        audit_days=settings.audit_days,
        idle=idle,
        longest=timedelta(seconds=settings.browser_session_longest_seconds),
        keeps_origins=settings.log_origins,
        logs_nat=settings.log_nat,
        nat_log_days=settings.nat_log_days,
        now=now,
    )
    response.status_code = error.status if error else 200
    if error is not None and error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


@retried
def _end_others(user: User, token: str) -> None:
    with transaction() as db:
        ended = browser_sessions.end_others(db, user.id, token)
        audit.record(
            db, "other browsers signed out", actor=user.name, object=user.name,
            source=request.remote_addr, now=utc_now(), sessions=ended,
        )  # fmt: skip
