"""The logo and the colours of a deployment, as files that browsers keep."""

from flask import Blueprint, Response, abort, url_for

from portal_app.application import portal
from portal_app.brand import File

bp = Blueprint("brand", __name__, url_prefix="/brand")

#: Opened by itself an SVG file is a document: nothing in it runs, and nothing is fetched.
_PICTURE_POLICY = "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@bp.get("/logo")
def logo() -> Response:
    response = _served(portal().brand.logo)
    response.headers["Content-Security-Policy"] = _PICTURE_POLICY
    return response


@bp.get("/style.css")
def style() -> Response:
    return _served(portal().brand.style)


@bp.app_context_processor
def _of_every_page() -> dict[str, object]:
    brand, settings = portal().brand, portal().settings
    return {
        "logo_url": brand.logo and url_for("brand.logo", v=brand.logo.digest),
        "brand_style_url": brand.style and url_for("brand.style", v=brand.style.digest),
        "support_contact": settings.support_contact.removeprefix("https://"),
        "support_url": settings.support_url,
    }


def _served(file: File | None) -> Response:
    if file is None:
        abort(404)
    response = Response(file.content, content_type=file.content_type)
    # Pages name it with a digest of its content.
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response
