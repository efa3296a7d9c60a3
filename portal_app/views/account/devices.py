"""What a user connects with: apps and downloaded configurations, where they are connected now."""

from flask import redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.login import sign_in_required
from portal_app.models import User
from portal_app.services import connections, devices, maintenance
from portal_app.services.connections import Ended
from portal_app.views import forms
from portal_app.views.account import bp, page


@bp.get("/devices")
@sign_in_required
def all_devices() -> AnyResponse:
    user, now = login.required().user, utc_now()
    with transaction(read_only=True) as db:
        found = devices.overview(db, user, portal().clients, now=now)
        notices = maintenance.notices(db, user)
    return page(
        "account/devices.html",
        devices=found.devices,
        ending=found.ending,
        earlier=found.earlier,
        most_earlier=devices.MOST_EARLIER,
        notices=notices,
        longest_name=forms.LONGEST_DISPLAY_NAME,
    )


@bp.get("/apps")
@sign_in_required
def apps() -> AnyResponse:
    """Where apps were listed before there was one list."""
    return redirect(url_for("account.all_devices"), 303)


@bp.get("/connections")
@sign_in_required
def own_connections() -> AnyResponse:
    """Where connections were listed before there was one list."""
    return redirect(url_for("account.all_devices"), 303)


@bp.post("/apps/<int(max=2147483647):authorization_id>/revoke")
@sign_in_required
def revoke_app(authorization_id: int) -> AnyResponse:
    connections.tell(_revoke(login.required().user, authorization_id))
    return redirect(url_for("account.all_devices"), 303)


@bp.post("/connections/<string(maxlength=32):connection_id>/end")
@sign_in_required
def end_connection(connection_id: str) -> AnyResponse:
    """End one of the user's own connections, made by an app or by hand."""
    connections.tell(_end(login.required().user, connection_id))
    return _back(url_for("account.configurations"))


@bp.post("/connections/<string(maxlength=32):connection_id>/rename")
@sign_in_required
def rename_connection(connection_id: str) -> AnyResponse:
    _rename(login.required().user, connection_id, forms.display_name())
    return _back(url_for("account.all_devices"))


def _back(otherwise: str) -> AnyResponse:
    back = login.own_path(request.form.get("next"))
    return redirect(back if back != "/" else otherwise, 303)


@retried
def _revoke(user: User, authorization_id: int) -> list[Ended]:
    with transaction() as db:
        return devices.revoke(db, user, authorization_id, request.remote_addr, utc_now())


@retried
def _end(user: User, connection_id: str) -> list[Ended]:
    with transaction() as db:
        return devices.end(db, user, connection_id, request.remote_addr, utc_now())


@retried
def _rename(user: User, connection_id: str, name: str) -> None:
    with transaction() as db:
        devices.rename(db, user, connection_id, name, request.remote_addr, utc_now())
