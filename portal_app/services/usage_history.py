"""What was counted by ``usage``, for pages: over a period, of one profile and node or of all. Reads only."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, or_, select

from portal_app.db import Database
from portal_app.models import Node, Profile, UsageDay, UsageSample
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import usage
from portal_app.statements import Rows, Statement, run


@dataclass(frozen=True)
class Period:
    """How long, in days, and how long one point of its chart is."""

    days: int
    point: timedelta

    @property
    def is_of_samples(self) -> bool:
        """Longer periods are read from what was counted per day."""
        return self.point < timedelta(days=1)


PERIODS = {
    "day": Period(1, timedelta(minutes=15)),
    "week": Period(7, timedelta(hours=2)),
    "month": Period(30, timedelta(days=1)),
    # Whole weeks.
    "year": Period(364, timedelta(days=7)),
}


@dataclass(frozen=True)
class Point:
    """The most that were connected from ``begin`` to ``end``; None is unknown."""

    begin: datetime
    end: datetime
    connections: int | None
    users: int | None


@dataclass(frozen=True)
class Days:
    """Days added up, and the highest of them. ``users`` is None when no day was counted."""

    users: int | None
    peak_connections: int | None
    sessions: int
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Traffic:
    begin: datetime
    end: datetime
    users: int | None
    sessions: int
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Users:
    """How many different ones there were within a time whose last day is ``last``."""

    period: timedelta
    last: date
    count: int

    @property
    def first(self) -> date:
        return self.last - self.period + timedelta(days=1)


_BETWEEN = UsageDay.day.between(bindparam("first"), bindparam("last"))
_DAYS = Statement(
    select(*UsageDay.__table__.columns).where(
        UsageDay.profile_id == bindparam("profile"), UsageDay.node_number == bindparam("node"), _BETWEEN
    )
)
_USERS = Statement(
    select(UsageDay.day, UsageDay.users_of_7_days, UsageDay.users_of_30_days)
    .where(
        UsageDay.profile_id == bindparam("profile"),
        UsageDay.node_number == bindparam("node"),
        _BETWEEN,
        or_(UsageDay.users_of_7_days.is_not(None), UsageDay.users_of_30_days.is_not(None)),
    )
    .order_by(UsageDay.day.desc())
    .limit(1)
)
_SAMPLES = Statement(
    select(UsageSample.slot, UsageSample.connections, UsageSample.users).where(
        UsageSample.profile_id == bindparam("profile"),
        UsageSample.node_number == bindparam("node"),
        UsageSample.protocol == ALL,
        UsageSample.slot >= bindparam("first"),
    )
)
_SUMS = (
    func.max(UsageDay.users).label("users"),
    func.max(UsageDay.peak_connections).label("peak_connections"),
    func.sum(UsageDay.sessions).label("sessions"),
    func.sum(UsageDay.received_bytes).label("received_bytes"),
    func.sum(UsageDay.sent_bytes).label("sent_bytes"),
)
#: From those that there are: what is read of each is together in the table.
_BY_PROFILE = Statement(
    select(UsageDay.profile_id.label("key"), *_SUMS)
    .join(Profile, Profile.profile_id == UsageDay.profile_id)
    .where(UsageDay.node_number == bindparam("node"), _BETWEEN)
    .group_by(UsageDay.profile_id)
)
_BY_NODE = Statement(
    select(UsageDay.node_number.label("key"), *_SUMS)
    .join(Node, Node.number == UsageDay.node_number)
    .where(UsageDay.profile_id == bindparam("profile"), _BETWEEN)
    .group_by(UsageDay.node_number)
)


@dataclass(frozen=True)
class Counted:
    """The whole days of a period that were counted, by their dates: of one profile and node, or of all.

    A day that was counted without this profile or node had nobody there.
    """

    period: Period
    profile_id: str
    node_number: int
    first: date
    last: date
    by_day: Mapping[str, Any]


def read_days(db: Database, period: Period, profile_id: str, node_number: int, *, now: datetime) -> Counted:
    """Read the days of one profile and node, or of all."""
    first, last = span(period, now)
    found = {row.day: row for row in _days(db, profile_id, node_number, first, last)}
    if (profile_id, node_number) != (ALL, ALL_NODES):
        for row in _days(db, ALL, ALL_NODES, first, last):
            found.setdefault(row.day, _nobody(row))
    return Counted(period, profile_id, node_number, first, last, found)


def _days(db: Database, profile_id: str, node_number: int, first: date, last: date) -> Rows:
    between = {"first": first.isoformat(), "last": last.isoformat()}
    return run(db, _DAYS, {"profile": profile_id, "node": node_number} | between)


def _nobody(row: Any) -> Any:
    known = row.peak_connections is not None
    peak = 0 if known else None
    nothing = {"users": 0, "sessions": 0, "received_bytes": 0, "sent_bytes": 0, "clients": {}}
    return row._replace(peak_connections=peak, peak_users=peak, **nothing)


def points(db: Database, days: Counted, *, now: datetime) -> list[Point]:
    """Return the points of a period, the oldest first; the last one of samples is not over yet."""
    period = days.period
    if not period.is_of_samples:
        return [
            Point(begin, end, _most(d.peak_connections for d in step), _most(d.peak_users for d in step))
            for begin, end, step in _steps(days)
        ]
    slots = int(period.point / usage.SLOT)
    last = usage.slot_of(now) // slots
    first = last - int(timedelta(days=period.days) / period.point) + 1
    known = _samples(db, ALL, ALL_NODES, first * slots)
    which = days.profile_id, days.node_number
    own = known if which == (ALL, ALL_NODES) else _samples(db, *which, first * slots)
    found = []
    for number in range(first, last + 1):
        # Where there is a row over everything, what has no row had nobody.
        both = [own.get(s, (0, 0)) for s in range(number * slots, (number + 1) * slots) if s in known]
        begin = usage.time_of(number * slots)
        found.append(Point(begin, begin + period.point, _most(b[0] for b in both), _most(b[1] for b in both)))
    return found


def _samples(db: Database, profile_id: str, node_number: int, first: int) -> dict[int, tuple[int, int]]:
    rows = run(db, _SAMPLES, {"profile": profile_id, "node": node_number, "first": first})
    return {row.slot: (row.connections, row.users) for row in rows}


def traffic(days: Counted) -> list[Traffic]:
    """Return users, sessions and bytes per day, or per week in a year; the oldest first."""
    found = []
    for begin, end, step in _steps(days):
        total = _sum(step)
        found.append(Traffic(begin, end, total.users, total.sessions, total.received_bytes, total.sent_bytes))
    return found


def _steps(days: Counted) -> list[tuple[datetime, datetime, list[Any]]]:
    length = max(1, days.period.point.days)
    steps = []
    for start in range(0, (days.last - days.first).days + 1, length):
        of_step = [days.first + timedelta(days=start + number) for number in range(length)]
        rows = [days.by_day[day.isoformat()] for day in of_step if day.isoformat() in days.by_day]
        steps.append((usage.bounds(of_step[0])[0], usage.bounds(of_step[-1])[1], rows))
    return steps


def span(period: Period, now: datetime) -> tuple[date, date]:
    """Return the first and the last whole day of a period; the last is yesterday in UTC."""
    last = now.astimezone(UTC).date() - timedelta(days=1)
    return last - timedelta(days=period.days - 1), last


def summary(days: Counted) -> tuple[Days, Counter[str]]:
    """Return the whole days of a period added up, and how many connections were of which app."""
    clients: Counter[str] = Counter()
    for row in days.by_day.values():
        clients.update(row.clients)
    return _sum(days.by_day.values()), clients


def users_of_last_days(db: Database, retention: timedelta, *, now: datetime) -> list[Users]:
    """Return the different users of the last days, as they were counted last, over all profiles and nodes:
    of 7 and of 30, or of as many as the ``retention`` of sessions allows (``usage.windows``).
    """
    first, last = span(PERIODS["week"], now)
    between = {"first": first.isoformat(), "last": last.isoformat()}
    rows = run(db, _USERS, {"profile": ALL, "node": ALL_NODES} | between)
    return [
        Users(timedelta(days=days), date.fromisoformat(row.day), count)
        for row in rows
        for column, days in usage.windows(retention).items()
        if (count := getattr(row, column)) is not None
    ]


def by_profile(db: Database, period: Period, node_number: int, *, now: datetime) -> dict[str, Days]:
    """Compare the profiles, on one node or on all."""
    return _by(db, _BY_PROFILE, period, {"node": node_number}, now)


def by_node(db: Database, period: Period, profile_id: str, *, now: datetime) -> dict[int, Days]:
    """Compare the nodes, for one profile or for all."""
    return _by(db, _BY_NODE, period, {"profile": profile_id}, now)


def _by(
    db: Database, which: Statement, period: Period, values: dict[str, object], now: datetime
) -> dict[Any, Days]:
    first, last = span(period, now)
    rows = run(db, which, values | {"first": first.isoformat(), "last": last.isoformat()})
    return {
        row.key: Days(
            row.users, row.peak_connections, int(row.sessions), int(row.received_bytes), int(row.sent_bytes)
        )
        for row in rows
    }


def _sum(days: Collection[Any]) -> Days:
    return Days(
        users=_most(d.users for d in days),
        peak_connections=_most(d.peak_connections for d in days),
        sessions=sum(d.sessions for d in days),
        received_bytes=sum(d.received_bytes for d in days),
        sent_bytes=sum(d.sent_bytes for d in days),
    )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
