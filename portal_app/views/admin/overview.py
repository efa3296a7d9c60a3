"""How the service is, at a glance."""

from flask import redirect, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app.login import requires
from portal_app.roles import Right
from portal_app.views.admin import bp


@bp.get("/")
@requires(Right.SEE)
def overview() -> AnyResponse:
    return redirect(url_for("admin.nodes"), 303)
