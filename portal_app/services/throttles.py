"""Token buckets in a table: guessing counts together over all portals and workers (W9, R41)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from portal_app.db import is_postgresql
from portal_app.models import Throttle


@dataclass(frozen=True)
class Limit:
    """``burst`` tries at once, then one more every ``refill_seconds``.

    A bucket must be full again within a day: retention.py deletes those that nobody touched for so long.
    """

    kind: str
    burst: int
    refill_seconds: float

    def bucket(self, key: str) -> "Bucket":
        return Bucket(f"{self.kind}:{key}", self)


@dataclass(frozen=True)
class Bucket:
    name: str
    limit: Limit

    def tokens(self, row: Throttle | None, now: datetime) -> float:
        """Return what is in the bucket; another portal's clock may be ahead, which takes nothing away."""
        if row is None:
            return float(self.limit.burst)
        passed = max(0.0, (now - row.updated_at).total_seconds())
        return min(float(self.limit.burst), row.tokens + passed / self.limit.refill_seconds)


def wait_seconds(db: Session, buckets: Sequence[Bucket], *, now: datetime) -> float:
    """Return how long until every bucket holds a token, 0 if they do; takes nothing and writes nothing."""
    rows = _rows(db, buckets, lock=False)
    return max(_missing(bucket, rows.get(bucket.name), now) for bucket in buckets)


def take(db: Session, buckets: Sequence[Bucket], *, now: datetime) -> float:
    """Take one token from every bucket and return 0, or take none and return the seconds to wait.

    The rows are locked until the caller's transaction ends, in the order of their names, so two portals
    cannot both take the last token and do not deadlock.
    """
    insert = postgresql.insert if is_postgresql(db) else sqlite.insert
    ordered = sorted(buckets, key=lambda bucket: bucket.name)
    for bucket in ordered:
        row = {"bucket": bucket.name, "tokens": bucket.limit.burst, "updated_at": now}
        db.execute(insert(Throttle).values(row).on_conflict_do_nothing())
    rows = _rows(db, ordered, lock=True)
    wait = max(_missing(bucket, rows.get(bucket.name), now) for bucket in ordered)
    if wait == 0:
        for bucket in ordered:
            _store(db, bucket, bucket.tokens(rows.get(bucket.name), now) - 1, rows.get(bucket.name), now)
    return wait


def give_back(db: Session, buckets: Sequence[Bucket], *, now: datetime) -> None:
    """Return the token of a try that was right: only failures are counted."""
    rows = _rows(db, buckets, lock=True)
    for bucket in sorted(buckets, key=lambda bucket: bucket.name):
        row = rows.get(bucket.name)
        _store(db, bucket, min(bucket.limit.burst, bucket.tokens(row, now) + 1), row, now)


def network(source: str | None) -> str:
    """Return the address, or the /64 of an IPv6 address: one customer has all of its addresses."""
    try:
        address = ip_address(source or "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)


def _rows(db: Session, buckets: Sequence[Bucket], *, lock: bool) -> dict[str, Throttle]:
    query = (
        select(Throttle)
        .where(Throttle.bucket.in_([bucket.name for bucket in buckets]))
        .order_by(Throttle.bucket)
        .execution_options(populate_existing=True)
    )
    if lock:
        query = query.with_for_update()
    return {row.bucket: row for row in db.scalars(query)}


def _missing(bucket: Bucket, row: Throttle | None, now: datetime) -> float:
    return max(0.0, (1 - bucket.tokens(row, now)) * bucket.limit.refill_seconds)


def _store(db: Session, bucket: Bucket, tokens: float, row: Throttle | None, now: datetime) -> None:
    """Never with an earlier time than the row's: a portal whose clock is behind would else refill the bucket
    for the next one.
    """
    updated_at = max(row.updated_at, now) if row else now
    db.execute(
        update(Throttle).where(Throttle.bucket == bucket.name).values(tokens=tokens, updated_at=updated_at)
    )
