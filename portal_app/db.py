"""The database: one engine, short transactions, PostgreSQL or SQLite behind the same code.

A transaction never spans a call to a node. What two portals could break at once is a constraint; a lost race,
a deadlock or a serialization failure is repeated by ``@retried``, an outage becomes ``Unavailable``.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import CursorResult, DateTime, Dialect, Engine, Executable, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from portal_app.errors import Unavailable

P = ParamSpec("P")
R = TypeVar("R")

#: Every request that needs the database is answered within five seconds (reliability.md R25, R26).
CONNECT_SECONDS = 2
STATEMENT_SECONDS = 4
LOCK_SECONDS = 3
POOL_SECONDS = 2
SQLITE_BUSY_SECONDS = 4
RETRIES = 8
#: Deadlock, serialization failure.
_TRANSIENT_SQLSTATES = {"40P01", "40001"}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite stores no zone, so it is put back when read. A naive value is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime()}  # noqa: RUF012 - SQLAlchemy reads it from the class


_engine: Engine | None = None


def connect_to(url: str, *, pool_size: int = 10) -> Engine:
    """Make ``url`` the database of this process and return its engine; nothing is opened yet."""
    global _engine
    if _engine is not None:
        _engine.dispose()
    _engine = make_engine(url, pool_size=pool_size)
    return _engine


def make_engine(url: str, *, pool_size: int = 10) -> Engine:
    """Return an engine with bounded waiting everywhere."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_SECONDS,
            hide_parameters=True,
            connect_args={"timeout": SQLITE_BUSY_SECONDS, "isolation_level": None},
        )
        # isolation_level None: the driver begins nothing by itself, _begin_sqlite does.
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = (
        f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s"
        " -c idle_in_transaction_session_timeout=30s"
    )
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text reaches the log
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": STATEMENT_SECONDS * 1000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "options": options,
        },
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={SQLITE_BUSY_SECONDS * 1000}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # A writer takes the write lock at once: upgrading later fails with "locked" however long one waits.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def engine() -> Engine:
    if _engine is None:
        raise RuntimeError("connect_to() was not called")
    return _engine


#: SQLite lets one writer in and makes the others poll, some for seconds; those of one process queue here.
_sqlite_writer = threading.Lock()


@contextmanager
def _turn_to_write(read_only: bool) -> Iterator[None]:
    if read_only or engine().dialect.name != "sqlite":
        yield
        return
    if not _sqlite_writer.acquire(timeout=SQLITE_BUSY_SECONDS):
        raise Unavailable("the database is busy")
    try:
        yield
    finally:
        _sqlite_writer.release()


@contextmanager
def transaction(*, read_only: bool = False) -> Iterator[Session]:
    """Yield a session; commit when the block ends, roll back when it raises.

    Raises Unavailable when the database does not answer; IntegrityError and transient errors pass through for
    ``@retried``. Objects stay readable after the commit.
    """
    execution = {"read_only": True} if read_only else {}
    try:
        with (
            _turn_to_write(read_only),
            engine().connect().execution_options(**execution) as connection,
            Session(connection, expire_on_commit=False, join_transaction_mode="control_fully") as db,
            db.begin(),
        ):
            yield db
    except PoolTimeoutError as error:
        raise Unavailable("the database is busy") from error
    except (OperationalError, InterfaceError) as error:
        if is_transient(error):
            raise
        raise Unavailable("the database does not answer") from error


def is_transient(error: DBAPIError) -> bool:
    """Tell whether repeating the transaction can succeed: a deadlock or a serialization failure."""
    return getattr(error.orig, "sqlstate", None) in _TRANSIENT_SQLSTATES


def retried(function: Callable[P, R]) -> Callable[P, R]:
    """Repeat ``function`` (which owns its transactions) after a lost race, with growing random pauses."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(RETRIES):
            try:
                return function(*args, **kwargs)
            except IntegrityError:
                if attempt == RETRIES - 1:
                    raise
            except (OperationalError, DBAPIError) as error:
                if attempt == RETRIES - 1 or not is_transient(error):
                    raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311 - a pause, not a secret
        raise AssertionError("unreachable")

    return wrapper


def run(
    db: Session,
    statement: Executable,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> CursorResult[Any]:
    """Execute a statement that was built once, on the session's connection: rows, never objects.

    On the way of every connect; building a statement and the session's own execute() cost several times what
    the database takes for it.
    """
    db.flush()  # as execute() does: what was added or changed in the session is there first
    return db.connection().execute(statement, values)


def is_postgresql(db: Session) -> bool:
    return db.get_bind().dialect.name == "postgresql"
