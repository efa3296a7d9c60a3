"""Who leads: an advisory lock in PostgreSQL, a locked file beside SQLite.

The lock is a matter of economy, not of truth: two leaders at once do no harm, because what they send carries
generations (reliability.md R95), journal positions move once and each periodic job is claimed.
"""

import fcntl
import socket
from pathlib import Path
from typing import IO, Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from portal_app.errors import Unavailable
from portal_app.services import leading
from portal_app.services.leading import LOCK_KEY

#: PostgreSQL ends the session of a leader that was silent for so long (a paused process, a host without
#: power), and with it the lock: with one try each second another leads within 10 s (R55).
SILENCE_SECONDS = 7


class LeaderLock(Protocol):
    """``hold`` tells whether this process leads: it takes a free lock, or checks that it still has it."""

    def hold(self) -> bool: ...
    def release(self) -> None: ...


def leader_lock(engine: Engine, state_directory: Path) -> LeaderLock:
    if engine.dialect.name == "postgresql":
        return DatabaseLock(engine)
    return FileLock(state_directory / "controller.lock")


class DatabaseLock:
    """A session's advisory lock on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._held = False

    def hold(self) -> bool:
        """Raises Unavailable when the database does not answer: whoever cannot ask does not lead."""
        try:
            if self._connection is None:
                self._connection = self._open()
            if self._held:
                self._connection.execute(text("SELECT 1"))
            else:
                self._held = bool(
                    self._connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY})
                )
        except DBAPIError as error:
            self._drop()
            raise Unavailable("the database does not answer") from error
        return self._held

    def _open(self) -> Connection:
        connection = self._engine.connect().execution_options(begins=False)
        for name, value in (
            # Pages show by it who leads (services/leading.py).
            ("application_name", leading.session_name(socket.gethostname())),
            ("idle_session_timeout", f"{SILENCE_SECONDS}s"),
            ("tcp_keepalives_idle", "3"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "2"),
        ):
            connection.execute(
                text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value}
            )
        return connection

    def release(self) -> None:
        if self._connection is not None:
            self._drop()

    def _drop(self) -> None:
        """Close the session itself, not only hand it back: it holds the lock and our settings."""
        connection, self._connection, self._held = self._connection, None, False
        if connection is not None:
            connection.invalidate()
            connection.close()


class FileLock:
    """One host: a locked file in the state directory, freed by the kernel when its process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def hold(self) -> bool:
        if self._file is None:
            candidate = self._path.open("w")
            try:
                fcntl.flock(candidate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                candidate.close()
                return False
            self._file = candidate
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
