"""Count how the service is used: every five minutes who is connected, and once each day what was.

Rows are per profile and node, per profile, per node, and over everything (``ALL``): users cannot be added up.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import and_, case, func, insert, literal, or_, select
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.errors import Unavailable
from portal_app.models import AddressUse, UsageDay, UsageSample, VpnSession
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.waiting import longer
from vpn_core.messages import OPENVPN

log = logging.getLogger(__name__)

SLOT = timedelta(minutes=5)
#: Samples serve the statistics of a week, and the peaks of days that are counted late.
SAMPLES_KEPT = timedelta(days=8)
#: A day is counted so long after its end: what nodes told late is in it, too.
_SETTLED = timedelta(hours=1)
#: So many days are made up for after an outage.
_DAYS_BACK = 7

#: The day of a large service has millions of sessions.
_COUNT_SECONDS = 30

Key = tuple[str, int]


def slot_of(moment: datetime) -> int:
    return int(moment.timestamp()) // int(SLOT.total_seconds())


def time_of(slot: int) -> datetime:
    return datetime.fromtimestamp(slot * SLOT.total_seconds(), UTC)


def bounds(day: date) -> tuple[datetime, datetime]:
    """Return the begin of a day in UTC and of the one after it."""
    begin = datetime.combine(day, time(), UTC)
    return begin, begin + timedelta(days=1)


@retried
def sample(now: datetime) -> bool:
    """Store who is connected now; False when these five minutes have their sample already."""
    slot = slot_of(now)
    with transaction(read_only=True) as db:
        if _has_sample(db, slot):
            return False
        rows = list(_samples(db))
    with transaction() as db:
        # Another portal may do so at once: the loser repeats and finds the rows.
        db.execute(insert(UsageSample), [row | {"slot": slot} for row in rows])
    return True


def _has_sample(db: Session, slot: int) -> bool:
    over_everything = (ALL, ALL_NODES, ALL, slot)
    return db.get(UsageSample, over_everything) is not None


def _samples(db: Session) -> Iterator[dict[str, Any]]:
    """Yield a row per combination that pages show; those over protocols have ``ALL`` in place of one."""
    profile, node, protocol = VpnSession.profile_id, VpnSession.node_number, VpnSession.protocol
    for columns in ([profile, node, protocol], [profile, node], [profile], [node], []):
        counted = select(
            *columns,
            func.count(VpnSession.connection_id.distinct()).label("connections"),
            func.count(VpnSession.user_name.distinct()).label("users"),
        ).where(VpnSession.ended_at.is_(None))
        for row in db.execute(counted.group_by(*columns) if columns else counted):
            yield {"profile_id": ALL, "node_number": ALL_NODES, "protocol": ALL} | dict(row._mapping)


def windows(retention: timedelta) -> dict[str, int]:
    """Return over how many days, until the end of one, different users are counted, by the column of it.

    A day is counted after its end, when the begin of as many days as sessions are kept is forgotten already:
    so it is one fewer at most. Sessions are kept no longer for it.
    """
    known = retention.days - 1
    found = {"users_of_7_days": 7} if known >= 7 else {}
    if known > 7:
        found["users_of_30_days"] = min(30, known)
    return found


def count_days(now: datetime, *, retention: timedelta) -> int:
    """Count the oldest day that is over and was not counted; returns how many: one or none.

    One at a time, so that an outage is not made up for in one go. A day that cannot be counted keeps no later
    one from it. Raises Unavailable when there were only such days.
    """
    last = (now - _SETTLED).date() - timedelta(days=1)
    days = [last - timedelta(days=back) for back in reversed(range(_DAYS_BACK))]
    failed: Unavailable | None = None
    for day in days:
        try:
            if count_day(day, retention=retention, now=now):
                return 1
        except Unavailable as error:
            failed = error
    if failed is not None:
        raise failed
    return 0


@retried
def count_day(day: date, *, retention: timedelta, now: datetime) -> bool:
    """Store what was on one day; False when it is known already."""
    with transaction(read_only=True) as db:
        if db.get(UsageDay, (ALL, ALL_NODES, day.isoformat())) is not None:
            return False
        with longer(db.connection(), _COUNT_SECONDS):
            rows = _days(db, day)
    users = _of_last_days(bounds(day)[1], retention, now)
    nobody = dict.fromkeys(users)
    with transaction() as db:
        db.execute(insert(UsageDay), [row | (users if _is_of_all(row) else nobody) for row in rows])
    return True


class _Count:
    """What is added up for one row."""

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.sessions = self.received_bytes = self.sent_bytes = 0
        self.clients: Counter[str] = Counter()


def _days(db: Session, day: date) -> list[dict[str, Any]]:
    counts: defaultdict[Key, _Count] = defaultdict(_Count)
    counts[ALL, ALL_NODES] = _Count()
    begin, end = bounds(day)
    for row in db.execute(_sessions(begin, end)):
        for key in _keys(row.profile_id, row.node_number):
            count = counts[key]
            if row.user_name is not None:
                count.users.add(row.user_name)
            count.sessions += row.began
            count.received_bytes += row.received_bytes or 0
            count.sent_bytes += row.sent_bytes or 0
    for row in db.execute(_clients(begin, end)):
        for key in _keys(row.profile_id, row.node_number):
            counts[key].clients[row.client_id or ""] += row.connections
    peaks = _peaks(db, begin, end)
    # Where samples were taken, what has none had nobody.
    no_peak = (0, 0) if peaks else (None, None)
    return [
        {
            "profile_id": profile_id,
            "node_number": node_number,
            "day": day.isoformat(),
            "users": len(count.users),
            "sessions": count.sessions,
            "peak_connections": peaks.get((profile_id, node_number), no_peak)[0],
            "peak_users": peaks.get((profile_id, node_number), no_peak)[1],
            "received_bytes": count.received_bytes,
            "sent_bytes": count.sent_bytes,
            "clients": dict(count.clients),
        }
        for (profile_id, node_number), count in sorted(counts.items())
    ]


def _is_of_all(row: dict[str, Any]) -> bool:
    return (row["profile_id"], row["node_number"]) == (ALL, ALL_NODES)


def _of_last_days(end: datetime, retention: timedelta, now: datetime) -> dict[str, int | None]:
    """Return how many different users there were until then. None is unknown: what is that long ago may be
    forgotten, or the count took too long. The day has its other numbers all the same.
    """
    found: dict[str, int | None] = {"users_of_7_days": None, "users_of_30_days": None}
    for column, days in windows(retention).items():
        begin = end - timedelta(days=days)
        if begin <= now - retention:
            continue
        try:
            with transaction(read_only=True) as db, longer(db.connection(), _COUNT_SECONDS):
                found[column] = users_between(db, begin, end)
        except Unavailable as error:
            log.warning("users of %d days until %s are not counted: %s", days, end.date(), error)
    return found


def users_between(db: Session, begin: datetime, end: datetime) -> int:
    """Count the different users who had a session at some time between.

    Name by name, each with a look into the index of names and times: of the sessions of somebody who came
    meanwhile one is read, and not the millions that there are.
    """
    name = VpnSession.user_name
    names = select(func.min(name).label("name")).cte("names", recursive=True)
    following = select(func.min(name)).where(name > names.c.name).scalar_subquery()
    names = names.union_all(select(following).where(names.c.name.is_not(None)))

    def had(*when: Any) -> Any:
        # With a limit it stays a look for each name: "exists" lets PostgreSQL read all sessions at once.
        one = select(literal(1)).where(name == names.c.name, *when).limit(1)
        return one.correlate(names).scalar_subquery().is_not(None)

    began = had(VpnSession.started_at >= begin, VpnSession.started_at < end)
    went_on = had(VpnSession.started_at < begin, _not_over(VpnSession.ended_at, begin))
    return db.scalar(select(func.count()).select_from(names).where(or_(began, went_on))) or 0


def _keys(profile_id: str, node_number: int) -> tuple[Key, ...]:
    return (profile_id, node_number), (profile_id, ALL_NODES), (ALL, node_number), (ALL, ALL_NODES)


def _sessions(begin: datetime, end: datetime) -> Any:
    """Per user, profile and node: the sessions that were open at some time between, and what they carried."""
    ended = and_(VpnSession.ended_at >= begin, VpnSession.ended_at < end)
    return (
        select(
            VpnSession.profile_id,
            VpnSession.node_number,
            VpnSession.user_name,
            func.sum(case((VpnSession.started_at >= begin, 1), else_=0)).label("began"),
            func.sum(case((ended, VpnSession.received_bytes), else_=0)).label("received_bytes"),
            func.sum(case((ended, VpnSession.sent_bytes), else_=0)).label("sent_bytes"),
        )
        .where(VpnSession.started_at < end, _not_over(VpnSession.ended_at, begin))
        .group_by(VpnSession.profile_id, VpnSession.node_number, VpnSession.user_name)
    )


def _clients(begin: datetime, end: datetime) -> Any:
    """Per profile, node and app: how many connections were in use."""
    same_use = or_(AddressUse.protocol != OPENVPN, AddressUse.started_at == VpnSession.started_at)
    return (
        select(
            VpnSession.profile_id,
            VpnSession.node_number,
            AddressUse.client_id,
            func.count(VpnSession.connection_id.distinct()).label("connections"),
        )
        .join(AddressUse, and_(AddressUse.connection_id == VpnSession.connection_id, same_use))
        .where(VpnSession.started_at < end, _not_over(VpnSession.ended_at, begin))
        .group_by(VpnSession.profile_id, VpnSession.node_number, AddressUse.client_id)
    )


def _not_over(ended_at: Any, moment: datetime) -> Any:
    return or_(ended_at.is_(None), ended_at >= moment)


def _peaks(db: Session, begin: datetime, end: datetime) -> dict[Key, tuple[int, int]]:
    """Return the highest samples of a day; empty when there was none."""
    rows = db.execute(
        select(
            UsageSample.profile_id,
            UsageSample.node_number,
            func.max(UsageSample.connections),
            func.max(UsageSample.users),
        )
        .where(
            UsageSample.slot >= slot_of(begin), UsageSample.slot < slot_of(end), UsageSample.protocol == ALL
        )
        .group_by(UsageSample.profile_id, UsageSample.node_number)
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}
