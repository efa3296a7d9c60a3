"""Pages of a user: home, apps, configurations, connections; each sees and ends only their own (W7)."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

import segno
from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from flask.blueprints import BlueprintSetupState
from markupsafe import Markup
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login, portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest, Conflict, NotFound, PortalError
from portal_app.language import said
from portal_app.login import sign_in_required
from portal_app.models import Authorization, Connection, Node, Profile, User, VpnSession
from portal_app.services import (
    audit,
    authorizations,
    browser_sessions,
    connections,
    maintenance,
    profiles,
    transports,
)
from portal_app.services.connections import Ended, Issued
from portal_app.views import forms
from vpn_core.messages import OPENVPN, WIREGUARD

bp = Blueprint("account", __name__)

#: A QR code of more text than this is too dense for a phone's camera.
LONGEST_QR = 1500
_GONE = N_("It is not there, or has ended already.")
#: How many earlier sessions a user sees.
EARLIER = 20
_SENT_BEFORE = N_(
    "This form was sent before. What it made is in the list of your configurations; its private key is kept"
    " nowhere. If you did not save it, end that configuration and make another."
)


@bp.record
def _set_up_pages(state: BlueprintSetupState) -> None:
    environment = state.app.jinja_env
    environment.globals.update(static_url=forms.static_url, here=forms.here)


@bp.app_context_processor
def _of_every_page() -> dict[str, object]:
    settings = portal().settings
    return {"portal_name": settings.portal_name, "portal_host": settings.portal_url.removeprefix("https://")}


@dataclass(frozen=True)
class Choice:
    """One entry of the form for a new configuration."""

    value: str
    text: str
    profile_id: str
    protocol: str
    prefer_tcp: bool


@dataclass(frozen=True)
class Use:
    """One session of a connection, as the journal says; ``connection_id`` only while it can be ended."""

    device: str
    profile: str
    protocol: str
    node: str
    addresses: tuple[str, ...]
    origin: str | None
    started_at: datetime
    ended_at: datetime | None
    received_bytes: int | None
    sent_bytes: int | None
    connection_id: str | None


@bp.get("/")
@sign_in_required
def home() -> AnyResponse:
    user = login.required().user
    with transaction(read_only=True) as db:
        return _page(
            "account/home.html",
            profiles=profiles.offered(db, user),
            app_count=_count(db, Authorization.id, *_living_apps(user, utc_now())),
            active_count=_count(db, VpnSession.session_id, *_in_use(user)),
            downloads=portal().settings.max_portal_connections > 0,
            notices=maintenance.notices(db, user),
        )


@bp.get("/apps")
@sign_in_required
def apps() -> AnyResponse:
    user, now = login.required().user, utc_now()
    clients = portal().clients
    with transaction(read_only=True) as db:
        found = db.scalars(
            select(Authorization).where(*_living_apps(user, now)).order_by(Authorization.authorized_at.desc())
        ).all()
    listed = [
        {
            "id": row.id,
            "name": clients[row.client_id].name if row.client_id in clients else row.client_id,
            "authorized_at": row.authorized_at,
            "expires_at": row.expires_at,
            "last_used_at": row.last_used_at,
        }
        for row in found
    ]
    return _page("account/apps.html", apps=listed)


@bp.post("/apps/<int(max=2147483647):authorization_id>/revoke")
@sign_in_required
def revoke_app(authorization_id: int) -> AnyResponse:
    connections.tell(_revoke_app(login.required().user, authorization_id))
    return redirect(url_for("account.apps"), 303)


@bp.get("/configurations")
@sign_in_required
def configurations() -> AnyResponse:
    return _configurations_page()


@bp.post("/configurations")
@sign_in_required
def make_configuration() -> AnyResponse:
    """Make a configuration and show it in this very answer: it is kept nowhere, so no later page could (W22).

    A reload sends the form again; its key was used then, and nothing is made twice.
    """
    found = login.required()
    chosen = forms.field("choice", 200)
    form_key = forms.field("form_key", 40)
    try:
        name = forms.display_name()
        choice = _choice(found.user, chosen)
        if not _use_form(found.token, form_key):
            raise Conflict(_SENT_BEFORE)
        issued = connections.create_for_portal(
            found.user, choice.profile_id, choice.protocol, name, prefer_tcp=choice.prefer_tcp, now=utc_now()
        )
    except PortalError as error:
        return _configurations_page(error, chosen)
    return _issued_page(issued, name, choice.protocol)


@bp.post("/connections/<string(maxlength=32):connection_id>/end")
@sign_in_required
def end_connection(connection_id: str) -> AnyResponse:
    """End one of the user's own connections, made by an app or by hand."""
    connections.tell(_end_connection(login.required().user, connection_id))
    back = login.own_path(request.form.get("next"))
    return redirect(back if back != "/" else url_for("account.configurations"), 303)


@bp.get("/connections")
@sign_in_required
def own_connections() -> AnyResponse:
    user = login.required().user
    with transaction(read_only=True) as db:
        active = _uses(db, user, VpnSession.ended_at.is_(None), most=100)
        earlier = _uses(db, user, VpnSession.ended_at.is_not(None), most=EARLIER)
        notices = maintenance.notices(db, user)
    return _page("account/connections.html", active=active, earlier=earlier, notices=notices)


def _page(template: str, **values: object) -> Response:
    return make_response(render_template(template, **values))


def _count(db: Session, column: object, *criteria: ColumnElement[bool]) -> int:
    return db.scalar(select(func.count(column)).where(*criteria)) or 0  # type: ignore[arg-type]


def _living_apps(user: User, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (Authorization.user_id == user.id, Authorization.expires_at > now)


def _in_use(user: User) -> tuple[ColumnElement[bool], ...]:
    return (VpnSession.user_name == user.name, VpnSession.ended_at.is_(None))


def _uses(db: Session, user: User, which: ColumnElement[bool], *, most: int) -> list[Use]:
    query = (
        select(VpnSession, Node.name, Profile.display_name, Connection)
        .outerjoin(Node, Node.number == VpnSession.node_number)
        .outerjoin(Profile, Profile.profile_id == VpnSession.profile_id)
        .outerjoin(Connection, (Connection.id == VpnSession.connection_id) & (Connection.user_id == user.id))
        .where(VpnSession.user_name == user.name, which)
        .order_by(VpnSession.started_at.desc())
        .limit(most)
    )
    return [
        Use(
            device=connection.display_name if connection is not None else "Ended configuration",
            profile=profile or session.profile_id,
            protocol=session.protocol,
            node=node or str(session.node_number),
            addresses=tuple(filter(None, (session.ipv4, session.ipv6))),
            origin=session.origin,
            started_at=session.started_at,
            ended_at=session.ended_at,
            received_bytes=session.received_bytes,
            sent_bytes=session.sent_bytes,
            connection_id=connection.id if connection is not None else None,
        )
        for session, node, profile, connection in db.execute(query)
    ]


def _choices(db: Session, user: User) -> list[Choice]:
    """Return what the user can make a configuration for; OpenVPN twice where it has both transports."""
    found = []
    for profile in profiles.offered(db, user):
        for transport in reversed(transports.supported(profile)):
            protocol, _, carrier = transport.partition("+")
            label = {WIREGUARD: "WireGuard", OPENVPN: f"OpenVPN, {carrier.upper()} first"}[protocol]
            text = f"{profile.display_name}: {label}"
            value = f"{profile.profile_id}+{transport}"
            found.append(Choice(value, text, profile.profile_id, protocol, prefer_tcp=carrier == "tcp"))
    return found


def _choice(user: User, chosen: str) -> Choice:
    with transaction(read_only=True) as db:
        choices = {choice.value: choice for choice in _choices(db, user)}
    if chosen not in choices:
        raise BadRequest(N_("Choose one of the profiles in the list."))
    return choices[chosen]


def _configurations_page(error: PortalError | None = None, chosen: str = "") -> Response:
    user, now = login.required().user, utc_now()
    query = (
        select(Connection, Profile.display_name)
        .join(Profile, Profile.profile_id == Connection.profile_id)
        .where(
            Connection.user_id == user.id, Connection.authorization_id.is_(None), Connection.expires_at > now
        )
        .order_by(Connection.created_at.desc())
    )
    with transaction(read_only=True) as db:
        own = [{"connection": row[0], "profile": row[1]} for row in db.execute(query)]
        choices = _choices(db, user)
    response = _page(
        "account/configurations.html",
        own=own,
        choices=choices,
        most=portal().settings.max_portal_connections,
        form_key=secrets.token_urlsafe(12),
        chosen=chosen,
        display_name=request.form.get("display_name", "")[: forms.LONGEST_DISPLAY_NAME],
        problem=said(error) if error else "",
    )
    if error is not None:
        response.status_code = error.status
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
    return response


def _issued_page(issued: Issued, name: str, protocol: str) -> Response:
    qr = None
    if protocol == WIREGUARD and len(issued.config) <= LONGEST_QR:
        code = segno.make(issued.config, error="l", micro=False)
        qr = Markup(code.svg_inline(scale=4, border=2, omitsize=True))  # noqa: S704 - numbers only
    return _page(
        "account/issued.html",
        issued=issued,
        display_name=name,
        protocol=protocol,
        data_url=f"data:{issued.content_type};charset=utf-8,{quote(issued.config)}",
        rows=min(issued.config.count("\n") + 1, 24),
        qr=qr,
    )


@retried
def _use_form(token: str, form_key: str) -> bool:
    with transaction() as db:
        return browser_sessions.use_form(db, token, form_key)


@retried
def _revoke_app(user: User, authorization_id: int) -> list[Ended]:
    now = utc_now()
    which = (Authorization.id == authorization_id) & (Authorization.user_id == user.id)
    with transaction() as db:
        client_id = db.scalar(select(Authorization.client_id).where(which))
        if client_id is None:
            raise NotFound(_GONE)
        ended = authorizations.end(db, which, reason="revoked_by_user", now=now)
        _record(db, "app revoked", user, client_id, now)
        return ended


@retried
def _end_connection(user: User, connection_id: str) -> list[Ended]:
    now = utc_now()
    which = (Connection.id == connection_id) & (Connection.user_id == user.id)
    with transaction() as db:
        ended = connections.end(db, which, reason="ended_by_user", now=now)
        if not ended:
            raise NotFound(_GONE)
        _record(db, "connection ended", user, connection_id, now)
        return ended


def _record(db: Session, action: str, user: User, what: str, now: datetime) -> None:
    audit.record(db, action, actor=user.name, object=what, source=request.remote_addr, now=now)
