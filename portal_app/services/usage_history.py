"""What was counted by ``usage``, for pages: over a period, of one profile and node or of all. Reads only."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from portal_app.models import UsageDay, UsageSample
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import usage


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


def points(db: Session, period: Period, profile_id: str, node_number: int, *, now: datetime) -> list[Point]:
    """Return the points of a period, the oldest first; the last one of samples is not over yet."""
    if not period.is_of_samples:
        return [
            Point(begin, end, _most(d.peak_connections for d in days), _most(d.peak_users for d in days))
            for begin, end, days in _steps(db, period, profile_id, node_number, now=now)
        ]
    slots = int(period.point / usage.SLOT)
    last = usage.slot_of(now) // slots
    first = last - int(timedelta(days=period.days) / period.point) + 1
    known = _samples(db, ALL, ALL_NODES, first * slots)
    own = (
        known
        if (profile_id, node_number) == (ALL, ALL_NODES)
        else _samples(db, profile_id, node_number, first * slots)
    )
    found = []
    for number in range(first, last + 1):
        # Where there is a row over everything, what has no row had nobody.
        both = [own.get(s, (0, 0)) for s in range(number * slots, (number + 1) * slots) if s in known]
        begin = usage.time_of(number * slots)
        found.append(Point(begin, begin + period.point, _most(b[0] for b in both), _most(b[1] for b in both)))
    return found


def _samples(db: Session, profile_id: str, node_number: int, first: int) -> dict[int, tuple[int, int]]:
    rows = db.execute(
        select(UsageSample.slot, UsageSample.connections, UsageSample.users).where(
            UsageSample.profile_id == profile_id,
            UsageSample.node_number == node_number,
            UsageSample.protocol == ALL,
            UsageSample.slot >= first,
        )
    )
    return {row.slot: (row.connections, row.users) for row in rows}


def traffic(
    db: Session, period: Period, profile_id: str, node_number: int, *, now: datetime
) -> list[Traffic]:
    """Return users, sessions and bytes per day, or per week in a year; the oldest first."""
    found = []
    for begin, end, days in _steps(db, period, profile_id, node_number, now=now):
        total = _sum(days)
        found.append(Traffic(begin, end, total.users, total.sessions, total.received_bytes, total.sent_bytes))
    return found


def _steps(
    db: Session, period: Period, profile_id: str, node_number: int, *, now: datetime
) -> list[tuple[datetime, datetime, list[UsageDay]]]:
    first, last = span(period, now)
    by_day = {row.day: row for row in _days(db, profile_id, node_number, first, last)}
    if (profile_id, node_number) != (ALL, ALL_NODES):
        # A day that was counted without this profile or node had nobody there.
        for row in _days(db, ALL, ALL_NODES, first, last):
            by_day.setdefault(row.day, _nobody(row))
    length = max(1, period.point.days)
    steps = []
    for start in range(0, (last - first).days + 1, length):
        days = [first + timedelta(days=start + number) for number in range(length)]
        rows = [by_day[day.isoformat()] for day in days if day.isoformat() in by_day]
        steps.append((usage.bounds(days[0])[0], usage.bounds(days[-1])[1], rows))
    return steps


def _nobody(row: UsageDay) -> UsageDay:
    known = row.peak_connections is not None
    return UsageDay(
        day=row.day, users=0, sessions=0, received_bytes=0, sent_bytes=0, clients={},
        peak_connections=0 if known else None, peak_users=0 if known else None,
    )  # fmt: skip


def span(period: Period, now: datetime) -> tuple[date, date]:
    """Return the first and the last whole day of a period; the last is yesterday in UTC."""
    last = now.astimezone(UTC).date() - timedelta(days=1)
    return last - timedelta(days=period.days - 1), last


def summary(
    db: Session, period: Period, profile_id: str, node_number: int, *, now: datetime
) -> tuple[Days, Counter[str]]:
    """Return the whole days of a period added up, and how many connections were of which app."""
    rows = _days(db, profile_id, node_number, *span(period, now))
    clients: Counter[str] = Counter()
    for row in rows:
        clients.update(row.clients)
    return _sum(rows), clients


def by_profile(
    db: Session, period: Period, ids: Sequence[str], node_number: int, *, now: datetime
) -> dict[str, Days]:
    found = _grouped(db, period, list(ids), [node_number], now=now)
    return {profile_id: days for (profile_id, _node), days in found.items()}


def by_node(
    db: Session, period: Period, numbers: Sequence[int], profile_id: str, *, now: datetime
) -> dict[int, Days]:
    found = _grouped(db, period, [profile_id], list(numbers), now=now)
    return {number: days for (_profile, number), days in found.items()}


def _grouped(
    db: Session, period: Period, ids: list[str], numbers: list[int], *, now: datetime
) -> dict[tuple[str, int], Days]:
    first, last = span(period, now)
    rows = db.execute(
        select(
            UsageDay.profile_id,
            UsageDay.node_number,
            func.max(UsageDay.users),
            func.max(UsageDay.peak_connections),
            func.sum(UsageDay.sessions),
            func.sum(UsageDay.received_bytes),
            func.sum(UsageDay.sent_bytes),
        )
        .where(
            UsageDay.profile_id.in_(ids),
            UsageDay.node_number.in_(numbers),
            UsageDay.day.between(first.isoformat(), last.isoformat()),
        )
        .group_by(UsageDay.profile_id, UsageDay.node_number)
    )
    return {(row[0], row[1]): Days(row[2], row[3], *(int(value) for value in row[4:])) for row in rows}


def _days(db: Session, profile_id: str, node_number: int, first: date, last: date) -> list[UsageDay]:
    return list(
        db.scalars(
            select(UsageDay).where(
                UsageDay.profile_id == profile_id,
                UsageDay.node_number == node_number,
                UsageDay.day.between(first.isoformat(), last.isoformat()),
            )
        )
    )


def _sum(days: Sequence[UsageDay]) -> Days:
    return Days(
        users=_most(d.users for d in days),
        peak_connections=_most(d.peak_connections for d in days),
        sessions=sum(d.sessions for d in days),
        received_bytes=sum(d.received_bytes for d in days),
        sent_bytes=sum(d.sent_bytes for d in days),
    )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
