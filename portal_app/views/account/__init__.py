"""Pages of a user: a module for each; everybody sees and ends only what is theirs (reliability.md W7)."""

from flask import Blueprint, Response, make_response, render_template, request

from portal_app import systems
from portal_app.application import portal

bp = Blueprint("account", __name__)


@bp.app_context_processor
def _of_every_page() -> dict[str, object]:
    settings = portal().settings
    return {"portal_name": settings.portal_name, "portal_host": settings.portal_url.removeprefix("https://")}


def page(template: str, **values: object) -> Response:
    return make_response(render_template(template, **values))


def own_system() -> str:
    """Return the system of this request's browser, "" when it does not say."""
    return systems.system_of(request.headers.get("User-Agent", ""))


# Each adds its views to ``bp``.
from portal_app.views.account import (  # noqa: E402
    configurations,
    devices,
    home,
    own_account,
    status,
)

__all__ = ["bp", "configurations", "devices", "home", "own_account", "page", "status"]
