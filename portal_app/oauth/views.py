"""OAuth endpoints: authorize (pages), token and revoke (JSON), and where they are found."""

from typing import Any

from flask import Blueprint, Response, jsonify, make_response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from portal_app import error_pages, headers
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.errors import N_, Forbidden, PortalError
from portal_app.events import log
from portal_app.language import gettext
from portal_app.login import sign_in_required, signed_in_user
from portal_app.models import User
from portal_app.oauth import server
from portal_app.oauth.clients import SCOPE
from portal_app.oauth.server import AuthorizationRequest, AuthorizeError, TokenError
from portal_app.services import authorizations, profiles
from portal_app.services.authorizations import InvalidGrant, Tokens, WrongRequest

bp = Blueprint("oauth", __name__)

_AUTHORIZE_TITLES = {400: N_("The app's request cannot be used"), 401: N_("This app is not known here")}


@bp.route("/oauth/authorize", methods=["GET", "POST"])
def authorize() -> AnyResponse:
    """Ask the signed-in user to approve an app. Everything is checked again when the answer is posted."""
    if not server.is_utf8(request.query_string):
        raise AuthorizeError(400, "invalid_request", N_("The request is not UTF-8."))
    wanted = server.read_authorization_request(request.args, portal().clients)
    return _ask_user(wanted)


@sign_in_required
def _ask_user(wanted: AuthorizationRequest) -> Response:
    user = signed_in_user()
    if user is None or user.is_disabled or not _may_sign_in(user):
        raise Forbidden(N_("This account may not use this service."))
    if request.method == "HEAD" or (request.method == "GET" and wanted.client.requires_approval):
        return _approval_page(wanted, user)
    if request.method == "GET":
        return _approve(wanted, user)
    answer = request.form.getlist("approve")
    if answer == ["no"]:
        log("consent_denied", user=user.name, client=wanted.client.client_id)
        return _send_back(wanted, {"error": "access_denied"})
    if answer != ["yes"]:
        raise AuthorizeError(400, "invalid_request", N_("The answer is neither yes nor no."))
    return _approve(wanted, user)


def _may_sign_in(user: User) -> bool:
    return profiles.meets(portal().settings.access_permissions, user.permissions)


def _approve(wanted: AuthorizationRequest, user: User) -> Response:
    code = authorizations.create(
        user,
        wanted.client.client_id,
        scope=wanted.scope,
        redirect_uri=wanted.redirect_uri,
        code_challenge=wanted.code_challenge,
        source=request.remote_addr,
        now=utc_now(),
    )
    return _send_back(wanted, {"code": code})


def _approval_page(wanted: AuthorizationRequest, user: User) -> Response:
    page = render_template(
        "oauth/approve.html",
        client_name=wanted.client.name,
        scope=wanted.scope,
        expires_at=authorizations.expiry(utc_now()),
        user=user,
    )
    response = make_response(page)
    response.headers["Cache-Control"] = "no-store"
    # Browsers hold the redirect that follows the form against form-action, too.
    headers.allow_form_action(response, wanted.redirect_uri)
    return response


def _send_back(wanted: AuthorizationRequest, fields: dict[str, str]) -> Response:
    """Answer the app at its redirect URI: by redirect, or by a page that posts a form."""
    fields |= {"state": wanted.state, "iss": portal().settings.issuer_identity}
    if wanted.by_form_post:
        response = make_response(
            render_template("oauth/form_post.html", action=wanted.redirect_uri, fields=fields)
        )
        headers.allow_form_action(response, wanted.redirect_uri)
    else:
        response = redirect(server.redirect_target(wanted.redirect_uri, fields), 302)  # type: ignore[assignment]
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@bp.errorhandler(AuthorizeError)
def _show_authorize_error(error: AuthorizeError) -> Response:
    shown = PortalError("%(message)s (%(code)s)", message=gettext(str(error)), code=error.code)
    return error_pages.answer(error.status, shown, title=_AUTHORIZE_TITLES.get(error.status))


@bp.post("/oauth/token")
def token() -> Response:
    _require_form()
    form = request.form
    client = server.authenticate(form, request.headers.get("Authorization"), portal().clients)
    grant_type = server.form_value(form, "grant_type")
    if grant_type == "authorization_code":
        tokens = authorizations.redeem_code(
            server.form_value(form, "code"),
            client_id=client.client_id,
            redirect_uri=server.form_value(form, "redirect_uri"),
            code_challenge=server.challenge_of(server.code_verifier(form)),
            now=utc_now(),
        )
    elif grant_type == "refresh_token":
        tokens = authorizations.refresh(
            server.form_value(form, "refresh_token"),
            client_id=client.client_id,
            scope=server.optional_form_value(form, "scope"),
            now=utc_now(),
        )
    else:
        raise TokenError(400, "invalid_request", "grant_type is not authorization_code or refresh_token")
    return _tokens(tokens)


@bp.post("/oauth/revoke")
def revoke() -> Response:
    """RFC 7009: whichever token of a client comes, its authorization ends; an unknown one is answered
    alike.
    """
    _require_form()
    client = server.authenticate(request.form, request.headers.get("Authorization"), portal().clients)
    revoked = server.form_value(request.form, "token")
    authorizations.revoke_token(revoked, client_id=client.client_id, now=utc_now())
    return _json({})


@bp.get("/.well-known/oauth-authorization-server")
def metadata() -> Response:
    """RFC 8414."""
    origin = portal().settings.portal_url
    return _json(
        {
            "issuer": portal().settings.issuer_identity,
            "authorization_endpoint": f"{origin}/oauth/authorize",
            "token_endpoint": f"{origin}/oauth/token",
            "revocation_endpoint": f"{origin}/oauth/revoke",
            "scopes_supported": [SCOPE],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "form_post"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
            "revocation_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }
    )


def _require_form() -> None:
    if request.mimetype != "application/x-www-form-urlencoded":
        raise TokenError(400, "invalid_request", "the content type is not application/x-www-form-urlencoded")


def _tokens(tokens: Tokens) -> Response:
    return _json(
        {
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "token_type": "bearer",
            "expires_in": tokens.expires_in,
        }
    )


def _json(data: dict[str, Any], status: int = 200) -> Response:
    response = jsonify(data)
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    response.headers["Pragma"] = "no-cache"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _token_error(status: int, code: str, message: str) -> Response:
    response = _json({"error": code, "error_description": message}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="OAuth"'
    return response


@bp.errorhandler(TokenError)
def _show_token_error(error: TokenError) -> Response:
    return _token_error(error.status, error.code, str(error))


@bp.errorhandler(InvalidGrant)
def _show_invalid_grant(error: InvalidGrant) -> Response:
    return _token_error(400, "invalid_grant", str(error))


@bp.errorhandler(WrongRequest)
def _show_wrong_request(error: WrongRequest) -> Response:
    return _token_error(400, "invalid_request", str(error))
