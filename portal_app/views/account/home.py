"""The start page: what somebody can do here, beginning with the app for the system they sit at."""

from dataclasses import dataclass

from werkzeug.wrappers import Response as AnyResponse

from portal_app import login
from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import sign_in_required
from portal_app.services import devices, maintenance, profiles, service_status
from portal_app.systems import FAMILIES, SYSTEMS, Download
from portal_app.views.account import bp, own_system, page


@dataclass(frozen=True)
class Choice:
    """The apps for one system."""

    system: str
    downloads: tuple[Download, ...]

    @property
    def system_name(self) -> str:
        return SYSTEMS[self.system]


@bp.get("/")
@sign_in_required
def home() -> AnyResponse:
    user, now, settings = login.required().user, utc_now(), portal().settings
    with transaction(read_only=True) as db:
        offered = profiles.offered(db, user)
        apps, downloaded, tunnels = devices.counts(db, user, now=now)
        notices = maintenance.notices(db, user)
    system = own_system()
    choices = _choices()
    return page(
        "account/home.html",
        profiles=offered,
        app_count=apps,
        download_count=downloaded,
        tunnel_count=tunnels,
        downloads=settings.max_portal_connections > 0,
        notices=notices,
        planned=service_status.planned(settings, now=now),
        own=next((choice for choice in choices if choice.system == system), None),
        others=[choice for choice in choices if choice.system != system],
    )


def _choices() -> list[Choice]:
    """Return the apps for each system, of the families that may connect here."""
    families = [FAMILIES[name] for name in portal().settings.client_sets if name in FAMILIES]
    if not families:
        return []
    return [
        Choice(system, tuple(d for family in families for d in family.downloads if d.system == system))
        for system in SYSTEMS
    ]
