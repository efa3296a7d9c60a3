"""Tokens of the admin API: list, make, revoke. One is shown in the answer that made it, and kept nowhere."""

import secrets
from datetime import timedelta
from typing import Any

from flask import current_app, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import N_, BadRequest, Conflict, PortalError
from portal_app.language import said
from portal_app.login import requires
from portal_app.roles import Right
from portal_app.services import browser_sessions
from portal_app.services import tokens as service
from portal_app.services.tokens import LETS, Scope
from portal_app.views import forms
from portal_app.views.admin import bp

#: How long a token may be good, in days, as the form offers it.
LIVES = (1, 7, 30, service.DEFAULT_LIFE.days, 180, service.LONGEST_LIFE.days)
#: A token whose end is nearer than this is marked.
ENDS_SOON = timedelta(days=7)
#: What the form says beside a scope that is worth more than it seems.
WARNINGS = {
    Scope.USERS_WRITE: N_("As good as an administrator: it can make one."),
    Scope.CONFIGURATIONS_WRITE: N_("Whoever has it can connect as any user."),
}
#: A first call for each scope: what it adds to the API's address. The ones that only read come first.
FIRST_CALLS = {
    Scope.USERS_READ: "/users?limit=5",
    Scope.CONNECTIONS_READ: "/connections?active=true",
    Scope.NODES_READ: "/status",
    Scope.HISTORY_READ: "/sessions?limit=5",
    Scope.AUDIT_READ: "/audit?limit=5",
    Scope.CONFIGURATIONS_WRITE: "/users/alice/configurations",
    Scope.USERS_WRITE: "/users",
    Scope.CONNECTIONS_WRITE: "/connections/5afe0f0bb3cc478e8b138233e0623029",
    Scope.NODES_WRITE: "/nodes/node1/reconcile",
}
#: What curl needs beside the address where a call changes something.
_CURL_OPTIONS = {
    Scope.CONFIGURATIONS_WRITE: """ --json '{"profile_id": "employees", "protocol": "wireguard"}'""",
    Scope.USERS_WRITE: """ --json '{"name": "alice"}'""",
    Scope.CONNECTIONS_WRITE: " --request DELETE",
    Scope.NODES_WRITE: " --json '{}'",
}
_SENT_BEFORE = N_(
    "This form was sent before. The token that it made is in the list, but it was shown only once and is kept"
    " nowhere. If you did not save it, revoke it and make another."
)


@bp.get("/tokens")
@requires(Right.MANAGE)
def tokens() -> str:
    now, revoked = utc_now(), forms.chosen("show", ("revoked",)) == "revoked"
    with transaction(read_only=True) as db:
        page = service.page(
            db,
            portal().settings,
            revoked=revoked,
            before=forms.cursor("before"),
            after=forms.cursor("after"),
            now=now,
        )
    return render_template(
        "admin/tokens.html",
        page=page,
        revoked=revoked,
        lets=LETS,
        soon=now + ENDS_SOON,
        now=now,
        done=forms.chosen("done", ("revoked",)),
    )


@bp.get("/tokens/add")
@requires(Right.MANAGE, recently=True)
def new_token() -> AnyResponse:
    return _form()


@bp.post("/tokens/add")
@requires(Right.MANAGE, recently=True)
def add_token() -> AnyResponse:
    """Make a token, and show it in this very answer: no later page could.

    A reload sends the form again; its key was used then, and nothing is made twice.
    """
    name = forms.field("name", 4 * service.LONGEST_NAME).strip()
    form_key = forms.field("form_key", 40)
    now = utc_now()

    def check(db: Session) -> None:
        if not browser_sessions.use_form(db, login.required().token, form_key):
            raise Conflict(_SENT_BEFORE)

    try:
        life = timedelta(days=_days())
        scopes = forms.fields("scope", 40, len(Scope))
        token = service.make(
            name,
            scopes,
            life=life,
            maker=login.required().user.name,
            check=check,
            settings=portal().settings,
            source=request.remote_addr,
            now=now,
        )
    except PortalError as error:
        return _form(error)
    page = render_template(
        "admin/token.html",
        name=name,
        token=token,
        scopes=[scope for scope in Scope if scope in scopes],
        lets=LETS,
        until=now + life,
        example=example(scopes),
        description=portal().settings.portal_url + url_for("admin_api.openapi"),
    )
    return current_app.make_response(page)


@bp.post("/tokens/<int(max=2147483647):token_id>/revoke")
@requires(Right.MANAGE, recently=True)
def revoke_token(token_id: int) -> AnyResponse:
    service.revoke_number(
        token_id, actor=login.required().user.name, source=request.remote_addr, now=utc_now()
    )
    return redirect(url_for("admin.tokens", done="revoked"), 303)


def example(scopes: list[str]) -> str:
    """Return a call with curl that a token with these scopes may make."""
    scope = next(scope for scope in FIRST_CALLS if scope in scopes)
    address = f"{portal().settings.portal_url}/api/admin/v1{FIRST_CALLS[scope]}"
    header = '--header @"$HOME/.causeway-token"'
    return f"curl --fail-with-body {header} \\\n  '{address}'{_CURL_OPTIONS.get(scope, '')}"


def _days() -> int:
    days = forms.field("days", 6)
    if not (days.isascii() and days.isdecimal()):
        raise BadRequest(N_("Choose for how long the token is good."))
    return int(days)


def _form(error: PortalError | None = None) -> AnyResponse:
    now = utc_now()
    values: dict[str, Any] = {
        "name": request.form.get("name", "")[: service.LONGEST_NAME],
        "chosen": request.form.getlist("scope"),
        "days": request.form.get("days", str(service.DEFAULT_LIFE.days)),
        "form_key": secrets.token_urlsafe(12),
    }
    page = render_template(
        "admin/add_token.html",
        lives=[(days, now + timedelta(days=days)) for days in LIVES],
        scopes=[(scope, text, WARNINGS.get(scope, "")) for scope, text in LETS.items()],
        longest_name=service.LONGEST_NAME,
        problem=said(error) if error else "",
        **values,
    )
    return current_app.make_response((page, error.status if error else 200))
