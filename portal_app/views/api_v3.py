"""API v3, as eduVPN and Let's Connect! apps know it (spec api-v3.md, sections 2 and 5 to 8)."""

import re
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.http import http_date

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.errors import BadRequest
from portal_app.models import Profile
from portal_app.oauth.bearer import authorized
from portal_app.services import authorizations, connections, profiles, refusals, transports
from vpn_core.wireguard import is_public_key

bp = Blueprint("api_v3", __name__)

#: An identifier, never fetched.
API = "http://eduvpn.org/api#3"
_PROFILE_ID = re.compile(r"[a-zA-Z0-9.-]+")


@bp.get("/.well-known/vpn-user-portal")
def well_known() -> Response:
    origin = portal().settings.portal_url
    endpoints = {
        "api_endpoint": f"{origin}/api/v3",
        "authorization_endpoint": f"{origin}/oauth/authorize",
        "token_endpoint": f"{origin}/oauth/token",
    }
    return _uncached(jsonify({"api": {API: endpoints}, "v": version("causeway")}))


@bp.get("/api/v3/info")
def info() -> Response:
    with authorized("config", profiles.ALL) as asking:
        offered = profiles.among(asking.read[0], asking.holder)
    return _uncached(jsonify({"info": {"profile_list": [_listed(profile) for profile in offered]}}))


@bp.post("/api/v3/connect")
def connect() -> Response:
    ends_at = connections.budget_end()
    # What is no profile's identifier is refused, but not before the token was looked at.
    named = request.form.get("profile_id", "")
    profile_id = named if _PROFILE_ID.fullmatch(named) else ""
    now = utc_now()
    try:
        with authorized("config", *connections.offered(profile_id)) as asking:
            holder = asking.holder
            prepared = connections.prepare(
                asking.db, holder, _wanted(), asking.read, now=now, ends_at=ends_at
            )
        issued = connections.issue(prepared)
    except refusals.NOTED as error:
        refusals.note(holder.user_id, connections.device_name(holder), profile_id, error, now=now)
        raise
    response = Response(issued.config, content_type=issued.content_type)
    response.headers["Expires"] = http_date(issued.expires_at)
    return _uncached(response)


@bp.post("/api/v3/disconnect")
def disconnect() -> Response:
    with authorized("config") as asking:
        holder = asking.holder
    authorizations.disconnect(holder, now=utc_now())
    response = Response(status=204)
    del response.headers["Content-Type"]
    return _uncached(response)


def _listed(profile: Profile) -> dict[str, Any]:
    supported = transports.supported(profile)
    entry = {
        "profile_id": profile.profile_id,
        "profile_priority": profile.priority,
        "display_name": profile.display_name,
        "vpn_proto_list": list(dict.fromkeys(transport.split("+")[0] for transport in supported)),
        "vpn_proto_transport_list": supported,
        "default_gateway": profile.default_gateway,
    }
    if profile.dns_search_domains:
        entry["dns_search_domain_list"] = profile.dns_search_domains
    return entry


def _wanted() -> connections.Wanted:
    """Read the form of 7.1; raises BadRequest with the texts of 7.5."""
    profile_id = _form_value("profile_id")
    if profile_id is None:
        raise BadRequest('missing post parameter "profile_id"')
    if not _PROFILE_ID.fullmatch(profile_id):
        raise BadRequest('invalid value for "profile_id"')
    public_key = _form_value("public_key")
    if public_key is not None and not is_public_key(public_key):
        raise BadRequest('invalid value for "public_key"')
    prefer_tcp = any([_choice("prefer_tcp", "yes", "no"), _choice("tcp_only", "on", "off")])
    # The parts of several Accept lines come joined with a comma (WSGI), and so does a single one.
    accepts = transports.accepted(request.headers.get("Accept", ""))
    return connections.Wanted(profile_id, public_key, accepts, prefer_tcp)


def _form_value(name: str) -> str | None:
    values = request.form.getlist(name)
    if len(values) > 1:
        raise BadRequest(f'invalid value for "{name}"')
    return values[0] if values else None


def _choice(name: str, yes: str, no: str) -> bool:
    value = _form_value(name)
    if value not in (None, yes, no):
        raise BadRequest(f'invalid value for "{name}"')
    return value == yes


def _uncached(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
