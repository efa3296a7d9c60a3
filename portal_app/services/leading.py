"""Which portal's controller leads, as the database knows it."""

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from portal_app.models import PeriodicJob

#: Of the advisory lock that the leader holds in PostgreSQL (controller/leader.py).
LOCK_KEY = 0x6361757365_02
#: A leader begins its most frequent job at least this often.
ALIVE = timedelta(minutes=1)
_PREFIX = "causeway-controller "
#: PostgreSQL keeps no more of a session's name.
_LONGEST = 63


def session_name(host: str) -> str:
    """Return how the session that holds the lock is called."""
    return (_PREFIX + host)[:_LONGEST]


def leader(db: Session, own_name: str, *, now: datetime) -> str | None:
    """Return the name of the portal that leads, None when nobody does.

    SQLite is one host's: whoever runs its jobs is this one.
    """
    if db.get_bind().dialect.name == "sqlite":
        job = db.get(PeriodicJob, "expire")
        return own_name if job is not None and abs(now - job.started_at) < ALIVE else None
    found: str | None = db.scalar(
        text(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
            " AND l.classid::bigint = :high AND l.objid::bigint = :low"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"high": LOCK_KEY >> 32, "low": LOCK_KEY & 0xFFFFFFFF},
    )
    return None if found is None else found.removeprefix(_PREFIX) or "?"
