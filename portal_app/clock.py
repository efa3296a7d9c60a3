"""Time comes in as ``now``; this is where the outermost caller gets it."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)
