"""The periodic jobs of the controllers: how often each is to run, and when it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from portal_app.db import Database
from portal_app.errors import N_
from portal_app.models import PeriodicJob
from portal_app.settings import Settings
from portal_app.statements import Asked, Rows, Statement, run
from portal_app.texts import Text, text

#: A job that has not begun for so many of its intervals, and for so long, does not run.
MISSED = 3
LEAST_MISSED = timedelta(minutes=5)

WHAT: Mapping[str, str] = {
    "expire": N_("Ends what has expired and gives addresses back."),
    "app_gone": N_("Ends connections of apps that nobody has used for long."),
    "forbidden": N_("Ends what a user or an app may no longer have."),
    "drain": N_("Ends connections on a node when that was announced."),
    "nearly_full": N_("Watches how full the ranges are."),
    "sample_usage": N_("Notes how many are connected."),
    "count_days": N_("Counts the days that are over, for the statistics."),
    "prune": N_("Deletes records that are older than they are kept."),
}


def intervals(settings: Settings) -> dict[str, timedelta]:
    gone = timedelta(seconds=settings.app_gone_seconds)
    return {
        "expire": timedelta(seconds=10),
        "app_gone": min(max(gone / 24, timedelta(seconds=60)), timedelta(hours=1)),
        "forbidden": timedelta(minutes=1),
        "drain": timedelta(seconds=10),
        "nearly_full": timedelta(minutes=1),
        # A sample is taken once in each five minutes; asking more often than that misses none.
        "sample_usage": timedelta(minutes=1),
        "count_days": timedelta(minutes=30),
        "prune": timedelta(hours=1),
    }


@dataclass(frozen=True)
class JobReport:
    name: str
    what: Text
    interval: timedelta | None
    started_at: datetime | None
    failed_at: datetime | None
    error: str | None
    missed: bool


_ROWS = Statement(select(*PeriodicJob.__table__.columns).order_by(PeriodicJob.name))


def asking() -> Asked:
    """Return what asks for that which ``reported`` reports on."""
    return _ROWS, {}


def reports(db: Database, settings: Settings, *, now: datetime) -> list[JobReport]:
    """Return every job, also those that never ran and those of another release."""
    return reported(run(db, *asking()), settings, now=now)


def reported(found: Rows, settings: Settings, *, now: datetime) -> list[JobReport]:
    """As ``reports``, of what was asked for already."""
    rows = {row.name: row for row in found}
    known = intervals(settings)
    return [_report(name, rows.get(name), known.get(name), now) for name in [*known, *(rows.keys() - known)]]


def _report(name: str, row: PeriodicJob | None, interval: timedelta | None, now: datetime) -> JobReport:
    missed = interval is not None and (
        row is None or now - row.started_at > max(MISSED * interval, LEAST_MISSED)
    )
    return JobReport(
        name=name,
        what=text(WHAT.get(name, N_("A job of another release."))),
        interval=interval,
        started_at=row.started_at if row else None,
        failed_at=row.failed_at if row else None,
        error=row.error if row else None,
        missed=missed,
    )
