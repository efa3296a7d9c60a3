"""Errors as answers: JSON for apps and probes, a page for people, and nothing about the inside in either."""

import logging

from flask import Flask, Response, jsonify, make_response, render_template, request
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, InternalError, OperationalError
from werkzeug.exceptions import HTTPException, SecurityError

from portal_app.errors import N_, PortalError, Unavailable
from portal_app.language import gettext, said
from portal_app.services import background_errors

logger = logging.getLogger(__name__)

#: Below these paths an app or a probe reads the answer.
JSON_PATHS = ("/api/", "/oauth/token", "/oauth/revoke", "/healthz", "/livez", "/.well-known/")

_TITLES = {
    400: N_("This request cannot be understood"),
    401: N_("This is not known here"),
    403: N_("Not allowed"),
    404: N_("Not found"),
    405: N_("Not possible here"),
    406: N_("Not possible here"),
    409: N_("Not as things are now"),
    413: N_("Too large"),
    429: N_("Too many requests"),
    503: N_("Not available at the moment"),
}

#: What Werkzeug says of a page that is not there, and the like: its English names.
_OF_HTTP = {
    400: N_("Bad Request"),
    404: N_("Not Found"),
    405: N_("Method Not Allowed"),
    413: N_("Request Entity Too Large"),
}

#: The same for people, where the name alone does not help.
_EXPLAINED = {
    400: N_("Something in it is missing or wrong. Go back, and try it once more from the page before."),
    404: N_("There is no page at this address. It may have moved, or what it was about has ended."),
    405: N_("This address takes only what a form sends. Open the page with the form, and try again there."),
    413: N_("What was sent is larger than anything here needs."),
    500: N_("This is a mistake of the service, not yours. It was written down. Try again in a moment."),
}


def init_app(app: Flask) -> None:
    app.register_error_handler(PortalError, answer_portal_error)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(SecurityError, answer_wrong_host)
    for kind in (OperationalError, InterfaceError, InternalError, IntegrityError):
        app.register_error_handler(kind, answer_database_error)
    app.register_error_handler(DataError, answer_impossible_value)
    app.register_error_handler(Exception, answer_bug)


def answer(
    status: int,
    error: PortalError,
    *,
    title: str | None = None,
    explained: str = "",
    retry_after: int | None = None,
) -> Response:
    """Return an error as the path's readers expect it; ``explained`` is what people read instead."""
    if request.path.startswith(JSON_PATHS):
        response = jsonify({"error": str(error)})
    else:
        title = gettext(title or _TITLES.get(status, N_("Something went wrong")))
        message = gettext(explained) if explained else said(error)
        response = make_response(render_template("error.html", status=status, title=title, message=message))
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def answer_portal_error(error: PortalError) -> Response:
    if error.status >= 500:
        logger.warning("%s %s: %s", request.method, _page(), error)
    return answer(error.status, error, retry_after=error.retry_after)


def answer_http_error(error: HTTPException) -> Response:
    if error.response is not None:
        return error.response  # type: ignore[return-value]  # what abort(response) was given
    code = error.code or 500
    said_of_it = PortalError(_OF_HTTP.get(code, error.name))
    response = answer(code, said_of_it, explained=_EXPLAINED.get(code, ""))
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value  # Allow of a 405, Retry-After of a 429
    return response


def answer_wrong_host(_error: SecurityError) -> Response:
    """Answer a request for a host that is not ours: no page, whose links would lead there (W14)."""
    return Response("this is another host\n", status=400, content_type="text/plain")


def answer_database_error(error: Exception) -> Response:
    """Answer what the driver raised outside of ``transaction``'s own translation, such as a read-only
    database.
    """
    logger.warning("%s %s: database: %s", request.method, _page(), type(error).__name__)
    return answer_portal_error(Unavailable(N_("the database does not take this at the moment")))


def answer_impossible_value(error: Exception) -> Response:
    """Answer a value that the database cannot hold, such as a NUL in a text: nothing can have it."""
    logger.warning("%s %s: database: %s", request.method, _page(), type(error).__name__)
    return answer(404, PortalError(N_("Not Found")), explained=_EXPLAINED[404])


def answer_bug(error: Exception) -> Response:
    logger.error("%s %s failed", request.method, _page(), exc_info=error)
    background_errors.note("request", error)
    return answer(500, PortalError(N_("internal error")), explained=_EXPLAINED[500])


def _page() -> str:
    """Return the rule of the requested path: the path itself may hold a one-time link, or line breaks."""
    return request.url_rule.rule if request.url_rule else "(no page)"
