"""Time comes in as ``now``; this is where the outermost caller gets it.

Where the database is a PostgreSQL, its clock counts as soon as this host's is wrong: a portal that is a day
behind would else grant each token and session a day more than the other one does (reliability.md R20).
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

#: This far apart are the clocks of hosts whose time is kept; further apart is wrong, and reported.
SKEW = timedelta(seconds=5)
#: What the database said is asked anew after this time.
OLD_SECONDS = 60.0

#: What the database's clock showed, and this host's seconds since boot then, which no clock setting changes.
_database: tuple[datetime, float] | None = None
#: Asks the database for the first time, before anything is decided by a time; None where none is followed.
_ask: Callable[[], None] | None = None


def utc_now() -> datetime:
    """Return the time that counts: this host's, the database's where that differs by more than SKEW."""
    if _database is None and _ask is not None:
        _ask()
    here, there = own(), _of_database()
    return here if there is None or abs(here - there) <= SKEW else there


def own() -> datetime:
    """Return what this host's clock shows, right or wrong."""
    return datetime.now(UTC)


def behind() -> timedelta | None:
    """Return how far this host's clock is behind the database's; None where there is nothing to compare."""
    there = _of_database()
    return None if there is None else there - own()


def follow_another(ask: Callable[[], None] | None) -> None:
    """Forget what a database showed. ``ask`` lets the one of now say it (``follow``), if it can; None to
    follow none.
    """
    global _database, _ask
    _database, _ask = None, ask


def follow(database: datetime) -> None:
    """Note what the database's clock shows."""
    global _database
    _database = database.astimezone(UTC), _since_boot()


def is_old() -> bool:
    """Tell whether the database's clock was not read for a while."""
    return _database is None or _since_boot() - _database[1] > OLD_SECONDS


def _of_database() -> datetime | None:
    if _database is None:
        return None
    shown, then = _database
    return shown + timedelta(seconds=_since_boot() - then)


def _since_boot() -> float:
    """Return seconds, those that the host slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
