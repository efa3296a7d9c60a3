"""A configuration for a client of the user's own choice: made here, shown once."""

import secrets
from dataclasses import dataclass
from urllib.parse import quote

import segno
from flask import Response, request
from markupsafe import Markup
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest, Conflict, PortalError
from portal_app.language import gettext, said
from portal_app.login import sign_in_required
from portal_app.models import User
from portal_app.services import browser_sessions, connections, devices, profiles, transports
from portal_app.services.connections import Issued
from portal_app.systems import SYSTEMS
from portal_app.views import forms
from portal_app.views.account import bp, own_system, page
from vpn_core.messages import WIREGUARD

#: A QR code of more text than this is too dense for a phone's camera.
LONGEST_QR = 1500
_SENT_BEFORE = N_(
    "This form was sent before. What it made is in the list of your configurations; its private key is kept"
    " nowhere. If you did not save it, end that configuration and make another."
)
_LABELS = {
    transports.WIREGUARD_UDP: N_("%(profile)s: WireGuard"),
    transports.OPENVPN_UDP: N_("%(profile)s: OpenVPN, UDP first"),
    transports.OPENVPN_TCP: N_("%(profile)s: OpenVPN, TCP first"),
}


@dataclass(frozen=True)
class Choice:
    """One entry of the form for a new configuration."""

    value: str
    text: str
    profile_id: str
    protocol: str
    prefer_tcp: bool


@bp.get("/configurations")
@sign_in_required
def configurations() -> AnyResponse:
    return _page()


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
        return _page(error, chosen)
    return _issued_page(issued, name, choice.protocol)


def _choices(db: Session, user: User) -> list[Choice]:
    """Return what the user can make a configuration for; OpenVPN twice where it has both transports."""
    found = []
    for profile in profiles.offered(db, user):
        for transport in reversed(transports.supported(profile)):
            protocol, _, carrier = transport.partition("+")
            text = str(gettext(_LABELS[transport], profile=profile.display_name))
            value = f"{profile.profile_id}+{transport}"
            found.append(Choice(value, text, profile.profile_id, protocol, prefer_tcp=carrier == "tcp"))
    return found


def _choice(user: User, chosen: str) -> Choice:
    with transaction(read_only=True) as db:
        choices = {choice.value: choice for choice in _choices(db, user)}
    if chosen not in choices:
        raise BadRequest(N_("Choose one of the profiles in the list."))
    return choices[chosen]


def _page(error: PortalError | None = None, chosen: str = "") -> Response:
    user, now = login.required().user, utc_now()
    with transaction(read_only=True) as db:
        own = devices.downloads(db, user, now=now)
        choices = _choices(db, user)
    response = page(
        "account/configurations.html",
        own=own,
        choices=choices,
        most=portal().settings.max_portal_connections,
        form_key=secrets.token_urlsafe(12),
        chosen=chosen,
        display_name=request.form.get("display_name", "")[: forms.LONGEST_DISPLAY_NAME],
        problem=said(error) if error else "",
        systems=SYSTEMS,
        system=own_system(),
        protocols={choice.protocol for choice in choices},
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
    return page(
        "account/issued.html",
        issued=issued,
        display_name=name,
        protocol=protocol,
        data_url=f"data:{issued.content_type};charset=utf-8,{quote(issued.config)}",
        rows=min(issued.config.count("\n") + 1, 24),
        qr=qr,
        systems=SYSTEMS,
        system=own_system(),
        protocols={protocol},
    )


@retried
def _use_form(token: str, form_key: str) -> bool:
    with transaction() as db:
        return browser_sessions.use_form(db, token, form_key)
