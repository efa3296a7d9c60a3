"""What failed in the background, one row for each kind of fault, so that an administrator can read it.

``note`` only remembers; a thread writes, at most once in ``EVERY_SECONDS``. So nothing waits for it, and no
failed transaction is touched. What cannot be written is a line in the journal and nothing else.
"""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, bindparam, delete, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from portal_app import db as database
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import Unavailable
from portal_app.models import BackgroundError
from portal_app.services.peers import host_name
from portal_app.statements import Asked, Statement

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
#: The kinds of fault that are kept; those not seen for longest are forgotten.
MOST_KINDS = 200
KEPT = timedelta(days=30)
#: How long ago a fault may be that an administrator should look at first.
RECENT = timedelta(days=1)
_LONGEST_MESSAGE = 300
_ROOT = Path(__file__).parents[2]
_OURS = ("portal_app", "vpn_core")


@dataclass
class _Fault:
    engine: Engine
    part: str
    message: str
    first_seen_at: datetime
    last_seen_at: datetime
    count: int


_lock = threading.Lock()
_pending: dict[str, _Fault] = {}
_writer: threading.Thread | None = None


def note(part: str, error: BaseException) -> None:
    """Remember a fault; ``part`` says what was being done, such as ``job expire``. Raises nothing."""
    try:
        if not _is_of_database(error):
            _remember(part[:60], error, utc_now())
    except Exception:
        logger.exception("a background error could not be noted")


def flush() -> None:
    """Write down what is remembered. Raises nothing."""
    with _lock:
        faults = dict(_pending)
        _pending.clear()
    try:
        for key, fault in faults.items():
            if fault.engine is database.engine():
                _write(key, fault)
    except Exception as error:
        logger.warning("background errors were not written down: %s", type(error).__name__)


_RECENT = Statement(
    select(*BackgroundError.__table__.columns)
    .where(BackgroundError.last_seen_at > bindparam("since"))
    .order_by(BackgroundError.last_seen_at.desc())
    .limit(MOST_KINDS)
)


def asking(*, now: datetime, within: timedelta = KEPT) -> Asked:
    """Return what asks for that which was seen ``within`` that time, as in ``BackgroundError``, the last seen
    first.
    """
    return _RECENT, {"since": now - within}


def describe(error: BaseException) -> str:
    """Return type and place of an error, such as ``ValueError in portal_app/services/usage.py:123``."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(_ROOT) and file.relative_to(_ROOT).parts[0] in _OURS:
            place = f" in {file.relative_to(_ROOT)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return type(error).__name__ + place


def _is_of_database(error: BaseException) -> bool:
    return type(error) is Unavailable or isinstance(error, OperationalError | InterfaceError)


def _remember(part: str, error: BaseException, now: datetime) -> None:
    said = describe(error)
    key = f"{part}: {said}"[:255]
    with _lock:
        fault = _pending.get(key)
        if fault is not None:
            fault.count, fault.last_seen_at = fault.count + 1, now
        elif len(_pending) < MOST_KINDS:
            _pending[key] = _Fault(database.engine(), part, said[:_LONGEST_MESSAGE], now, now, 1)
        _start_writer()


def _start_writer() -> None:
    global _writer
    if _writer is None or not _writer.is_alive():
        _writer = threading.Thread(target=_write_on, name="background-errors", daemon=True)
        _writer.start()


def _write_on() -> None:
    """Write until nothing new came for a while."""
    global _writer
    while True:
        flush()
        time.sleep(EVERY_SECONDS)
        with _lock:
            if not _pending:
                _writer = None
                return


@retried
def _write(key: str, fault: _Fault) -> None:
    with transaction() as db:
        known = db.execute(
            update(BackgroundError)
            .where(BackgroundError.key == key)
            .values(
                count=BackgroundError.count + fault.count,
                last_seen_at=fault.last_seen_at,
                message=fault.message,
                host=host_name(),
            )
            .returning(BackgroundError.key)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if known is not None:
            return
        # Two portals may do so at once: the loser repeats and finds the row.
        db.add(
            BackgroundError(
                key=key,
                part=fault.part,
                message=fault.message,
                host=host_name(),
                first_seen_at=fault.first_seen_at,
                last_seen_at=fault.last_seen_at,
                count=fault.count,
            )
        )
        db.flush()
        newest = select(BackgroundError.key).order_by(BackgroundError.last_seen_at.desc()).limit(MOST_KINDS)
        db.execute(
            delete(BackgroundError)
            .where(BackgroundError.key.not_in(newest))
            .execution_options(synchronize_session=False)
        )
