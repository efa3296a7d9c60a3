"""Bring a database to this release's tables.

Each step still serves the release before it: expand now, contract one release later. Alembic runs from inside
the package, so that it works from the installed wheel; two portals may migrate at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import InterfaceError, OperationalError

from portal_app.errors import Unavailable
from portal_app.waiting import let_take

#: Key of the PostgreSQL advisory lock that one migration holds.
LOCK_KEY = 0x6361757365_01
#: A migration may wait for the other portal's, and rewrite a table.
_LOCK_SECONDS, _STATEMENT_SECONDS = 60, 600


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


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
    known = {step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()}
    return revision is not None and revision not in known


def upgrade(engine: Engine) -> tuple[str | None, str | None]:
    """Migrate to the head in one transaction; return the revisions before and after. Raises Unavailable."""
    with _outage(), engine.connect() as connection, connection.begin():
        _lock(connection)
        before = revision_of(connection)
        if before != head() and not is_ahead(before):
            command.upgrade(_config(connection), "head")
        return before, revision_of(connection)


def _lock(connection: Connection) -> None:
    """Let one migration run at a time; SQLite's BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
        let_take(connection, max(_LOCK_SECONDS, _STATEMENT_SECONDS))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})


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
