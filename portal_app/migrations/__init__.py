"""Bring a database to this release's tables.

Each step still serves the release before it: expand now, contract one release later. Alembic runs from inside
the package, so that it works from the installed wheel; two portals may migrate at once.

The release before goes on meanwhile. SQLite migrates in one transaction. On PostgreSQL each step has its own,
and indexes of tables in use are built beside it (``indexes.py``): nobody waits for more than a moment, and
what was cut off half-way is done by the next ``vpn-portal migrate``.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

from portal_app.errors import Unavailable
from portal_app.migrations import indexes
from portal_app.waiting import let_take

#: Key of the PostgreSQL advisory lock that one migration holds.
LOCK_KEY = 0x6361757365_01
#: As long a migration waits for the other portal's, and for tables that are in use.
_WAIT_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
#: Who needs a table queues behind a step that waits for it, for no longer than ``db.LOCK_SECONDS``.
_LOCK_SECONDS, _STATEMENT_SECONDS = 1, 600
#: Somebody else has had a table for too long.
_LOCK_NOT_AVAILABLE = "55P03"


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def head() -> str:
    """Return the revision that this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("no migration in the package")
    return revision


def current(engine: Engine) -> str | None:
    """Return the revision a database is at, None when it is empty; makes no file. Raises Unavailable."""
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return None
    with _outage(), engine.connect().execution_options(read_only=True) as connection:
        return revision_of(connection)


def is_ahead(revision: str | None) -> bool:
    """Tell whether ``revision`` is unknown here: a later release migrated the database."""
    return revision is not None and revision not in _known()


@cache
def _known() -> frozenset[str]:
    return frozenset(step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions())


def upgrade(engine: Engine, to: str | None = None) -> tuple[str | None, str | None]:
    """Migrate to the head, or to a revision; return the revisions before and after. Raises Unavailable."""
    with _outage(), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # BEGIN IMMEDIATE lets one migration run at a time.
            with connection.begin():
                return _upgrade(connection, to)
        try:
            _prepare(connection)
            return _repeated(connection, to)
        finally:
            # Closed with its lock and its long deadlines, not given back to the pool.
            connection.invalidate()


def _upgrade(connection: Connection, to: str | None) -> tuple[str | None, str | None]:
    before = revision_of(connection)
    if before != (to or head()) and not is_ahead(before):
        if connection.dialect.name == "postgresql":
            connection.rollback()
        command.upgrade(_config(connection), to or "head")
    return before, revision_of(connection)


def _repeated(connection: Connection, to: str | None) -> tuple[str | None, str | None]:
    """Try again with what is left while others have a table: what was done before is committed."""
    first, ends_at = revision_of(connection), time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return first, _upgrade(connection, to)[1]
        except OperationalError as error:
            connection.rollback()
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or time.monotonic() > ends_at:
                raise
        time.sleep(_PAUSE_SECONDS)


def _prepare(connection: Connection) -> None:
    """Set a migration's deadlines, and let one run at a time."""
    connection.execute(text(f"SET lock_timeout = '{_LOCK_SECONDS}s'"))
    connection.execute(text(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'"))
    connection.commit()
    let_take(connection, max(_STATEMENT_SECONDS, indexes.BUILD_SECONDS))
    ends_at = time.monotonic() + _WAIT_SECONDS
    while not _is_alone(connection):
        if time.monotonic() > ends_at:
            raise Unavailable("another portal migrates the database; repeat this when it has ended")
        time.sleep(_PAUSE_SECONDS)


def _is_alone(connection: Connection) -> bool:
    """Take the lock if it is free. Whoever waited in a transaction would keep the other's index waiting."""
    taken = connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY})
    connection.commit()
    return bool(taken)


def revision_of(connection: Connection) -> str | None:
    """As ``current``, on a connection that is there."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _outage() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise Unavailable(f"the database does not answer: {error.orig}") from error
    except PendingRollbackError as error:
        # What Alembic does with a connection that broke off while an index was built.
        raise Unavailable("the database broke off the migration; repeat it") from error
