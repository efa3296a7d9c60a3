"""Probes: yes or no, nothing else (reliability.md A6)."""

from flask import Blueprint, Response
from sqlalchemy import text

from portal_app import db
from portal_app.errors import PortalError

bp = Blueprint("health", __name__)


@bp.get("/livez")
def live() -> Response:
    """The process answers; it says so even when the database does not."""
    return Response("yes\n", content_type="text/plain", headers={"Cache-Control": "no-store"})


@bp.get("/healthz")
def ready() -> Response:
    """The virtual IP's check: this portal can serve a request."""
    headers = {"Cache-Control": "no-store"}
    try:
        with db.transaction(read_only=True) as session:
            session.execute(text("SELECT 1"))
    except PortalError:
        return Response("no\n", status=503, content_type="text/plain", headers=headers | {"Retry-After": "5"})
    return Response("yes\n", content_type="text/plain", headers=headers)
