"""Whether the service is up, for people who use it."""

from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import sign_in_required
from portal_app.services import maintenance, service_status
from portal_app.views.account import bp, page


@bp.get("/status")
@sign_in_required
def status() -> AnyResponse:
    user, now = login.required().user, utc_now()
    with transaction(read_only=True) as db:
        found = service_status.of_profiles(db, user, now=now)
        notices = maintenance.notices(db, user)
    return page(
        "account/status.html",
        profiles=found,
        state=service_status.worst(found),
        planned=service_status.planned(portal().settings, now=now),
        notices=notices,
        now=now,
    )
