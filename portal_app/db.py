"""The database: one engine, short transactions, PostgreSQL or SQLite behind the same code.

A transaction never spans a call to a node. What two portals could break at once is a constraint; a lost race,
a deadlock or a serialization failure is repeated by ``@retried``, an outage becomes ``Unavailable``.
"""

import functools
import json
import random
import select
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psycopg
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from portal_app import clock, waiting
from portal_app.errors import Unavailable
from portal_app.statements import BEGINS, as_sqlalchemy, begin
from portal_app.turns import Turns

P = ParamSpec("P")
R = TypeVar("R")

#: Every request that needs the database is answered within five seconds (reliability.md R25, R26).
LOCK_SECONDS = 3
POOL_SECONDS = 2
#: Of one process; more than it has threads, so that none is opened for one transaction only.
POOL_SIZE = 20
SQLITE_BUSY_SECONDS = 4
#: A connection to PostgreSQL that has rested for so long is tried before it is used (reliability.md R22).
RESTED_SECONDS = 1.0
RETRIES = 8
#: In ``info`` of a connection on which the server has warned.
UNCONFIRMED = "causeway_unconfirmed"
#: Deadlock, serialization failure.
_TRANSIENT_SQLSTATES = {"40P01", "40001"}
#: Others held a row for LOCK_SECONDS.
_LOCK_NOT_AVAILABLE = "55P03"


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


#: Where services read and write: without the ORM on the way of each connect, with it elsewhere.
Database = Session | Connection


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
_silence: waiting.Silence | None = None


def connect_to(url: str, *, pool_size: int = POOL_SIZE) -> Engine:
    """Make ``url`` the database of this process and return its engine; nothing is opened yet."""
    global _engine, _silence
    if _engine is not None:
        _engine.dispose()
    if _silence is not None:
        _silence.forget()
    _engine = make_engine(url, pool_size=pool_size)
    is_shared = _engine.dialect.name == "postgresql"
    _silence = waiting.Silence(_engine) if is_shared else None
    clock.follow_another(_meet if is_shared else None)
    return _engine


def _meet() -> None:
    """Open this process's first connection, which reads the clock; a database that is away shows none."""
    with suppress(Unavailable), connected(read_only=True):
        pass


def make_engine(url: str, *, pool_size: int = POOL_SIZE) -> Engine:
    """Return an engine with bounded waiting everywhere."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            hide_parameters=True,
            json_deserializer=_parsed,
            pool_use_lifo=True,
            connect_args={"timeout": SQLITE_BUSY_SECONDS, "isolation_level": None},
        )
        event.listen(engine, "do_connect", _refuse_copied)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin)
        return engine
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = (
        f"-c statement_timeout={waiting.STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s"
        " -c idle_in_transaction_session_timeout=30s"
    )
    engine = create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        pool_use_lifo=True,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # an error's text reaches the log
        json_deserializer=_parsed,
        connect_args={
            "connect_timeout": waiting.CONNECT_SECONDS,
            "tcp_user_timeout": waiting.PACKET_SECONDS * 1000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "options": options,
        },
    )
    event.listen(engine, "do_connect", waiting.connect)
    event.listen(engine, "connect", _hear_warnings)
    event.listen(engine, "connect", _read_clock)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "before_cursor_execute", _begin_now)
    event.listen(engine, "checkin", _note_rest)
    event.listen(engine, "checkout", _try_rested)
    return engine


def _hear_warnings(connection: Any, record: Any) -> None:
    """Note that a commit was cut short while it waited for the standby.

    PostgreSQL answers such a commit as any other and says only with a warning that no other server has it
    (documentation, "Synchronous Replication"): what was confirmed could be lost with the server.
    """
    connection.add_notice_handler(functools.partial(_note_warning, record.info))


def _note_warning(info: dict[str, Any], said: Any) -> None:
    if said.severity_nonlocalized == "WARNING" and said.sqlstate == "01000":
        info[UNCONFIRMED] = said.message_primary


def _note_rest(_connection: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()
    record.info.pop(BEGINS, None)


def _try_rested(connection: Any, record: Any, _proxy: Any) -> None:
    """Let the pool take another connection for one that the server has closed.

    One that was used a moment ago is asked only if the server has said something meanwhile, such as good-bye,
    or to read its clock again: asking each time would be one more question in each transaction.
    """
    now = time.monotonic()
    rested = now - record.info.get("rests_since", now)
    try:
        if rested < RESTED_SECONDS and not _has_news(connection) and not clock.is_old():
            return
        _read_clock(connection, record)
    except psycopg.Error as error:
        if time.monotonic() - now >= waiting.SILENT_SECONDS:
            # Another one would have to wait as well.
            raise psycopg.OperationalError("the server did not answer") from error
        raise DisconnectionError("the server has closed it") from error


def _read_clock(connection: Any, _record: Any) -> None:
    try:
        (shown,) = connection.execute("SELECT clock_timestamp()").fetchone()
    except psycopg.Error:
        # A new one nobody else closes.
        connection.close()
        raise
    clock.follow(shown)


def _has_news(connection: Any) -> bool:
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def copied_name(file: Path) -> Path:
    """Return where a SQLite file is kept once everything of it is in another database."""
    return file.with_name(file.name + ".copied")


def _refuse_copied(_dialect: Dialect, _record: Any, arguments: list[Any], _named: dict[str, Any]) -> None:
    """Make no new file beside one that was put aside: it would be an empty portal."""
    file = Path(arguments[0])
    if copied_name(file).exists() and not file.exists():
        raise Unavailable(
            f"{file} was copied to another database and is {copied_name(file)} now;"
            " the settings still name SQLite"
        )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={SQLITE_BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Let readers and the writer go on side by side.

    A new file is turned to that by whoever opens it first. SQLite says "locked" at once to another who tries
    in that moment, whatever ``busy_timeout`` is.
    """
    deadline = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - not a secret


def _begin(connection: Connection) -> None:
    """Begin a transaction, which no driver does here by itself: a read of one statement needs none."""
    options = connection.get_execution_options()
    if not options.get("begins", True):
        return
    if connection.dialect.name != "sqlite":
        # PostgreSQL gets it together with the first statement.
        connection.info[BEGINS] = True
        return
    driver: Any = connection.connection.driver_connection
    try:
        # A writer takes the lock at once: upgrading later fails with "locked" however long one waits.
        driver.execute("BEGIN" if options.get("read_only", False) else "BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        raise Unavailable("the database is busy") from error
    except sqlite3.Error as error:
        raise as_sqlalchemy(error, connection, "BEGIN") from error


def _begin_now(connection: Connection, *_statement: Any) -> None:
    """Begin before a statement of SQLAlchemy's own."""
    if BEGINS in connection.info:
        try:
            begin(connection)
        except connection.dialect.loaded_dbapi.Error as error:
            raise as_sqlalchemy(error, connection, "BEGIN") from error


@functools.lru_cache(maxsize=1024)
def _parsed(text: str | bytes) -> Any:
    """Parse a JSON column. A connect reads the same few again and again; nobody changes what it reads."""
    return json.loads(text)


def engine() -> Engine:
    if _engine is None:
        raise RuntimeError("connect_to() was not called")
    return _engine


#: SQLite lets one writer in and makes the others poll, some for seconds; those of one process queue here.
_sqlite_writer = Turns(1)
#: In PostgreSQL they wait for the same rows, such as a node's, and it lets nobody wait for long: so few of
#: one process at once (reliability.md R33).
WRITERS = 6
_writers = Turns(WRITERS)


@contextmanager
def transaction(*, read_only: bool = False) -> Iterator[Session]:
    """Yield a session; commit when the block ends, roll back when it raises.

    Raises Unavailable when the database does not answer; IntegrityError and transient errors pass through for
    ``@retried``. Objects stay readable after the commit.
    """
    with (
        _Opened(read_only) as connection,
        Session(connection, expire_on_commit=False, join_transaction_mode="control_fully") as db,
        db.begin(),
    ):
        yield db


@contextmanager
def connected(*, read_only: bool = False) -> Iterator[Connection]:
    """As ``transaction``, without the ORM: for what each connect does, and for lists.

    Reading begins and commits nothing: each statement sees what is committed by then.
    """
    with _Opened(read_only) as connection:
        if read_only:
            yield connection.execution_options(begins=False)
            return
        with connection.begin():
            yield connection


class _Opened:
    """A connection of the pool, with this process's turn to write.

    A class and no generator, as every request passes here several times.
    """

    def __init__(self, read_only: bool) -> None:
        self._engine = engine()
        self._read_only = read_only
        self._began = time.monotonic()
        self._turn: Turns | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        if _silence is not None:
            _silence.refuse()
        try:
            if not self._read_only:
                self._take_turn()
            connection = self._engine.connect()
        except Exception as error:
            self.__exit__(type(error), error, None)
            raise
        self._connection = connection.execution_options(read_only=True) if self._read_only else connection
        return self._connection

    def _take_turn(self) -> None:
        is_sqlite = self._engine.dialect.name == "sqlite"
        turn = _sqlite_writer if is_sqlite else _writers
        if not turn.take(SQLITE_BUSY_SECONDS if is_sqlite else POOL_SECONDS):
            raise Unavailable("the database is busy")
        self._turn = turn
        if _silence is not None:
            # It may have begun meanwhile.
            _silence.refuse()

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        unconfirmed = None
        try:
            if self._connection is not None:
                if not self._connection.closed and not self._connection.invalidated:
                    unconfirmed = self._connection.info.pop(UNCONFIRMED, None)
                self._connection.close()
            if _silence is not None and error is not None and self._waited_in_vain(error):
                _silence.begin(self._began)
        finally:
            if self._turn is not None:
                # Whose turn comes now knows of a silence.
                turn, self._turn = self._turn, None
                turn.give_back()
        if error is not None and (meant := _outage(error)) is not error:
            raise meant from error
        if error is None and _silence is not None:
            _silence.answered()
        if error is None and unconfirmed:
            raise Unavailable(f"the database did not confirm a change: {unconfirmed}")

    def _waited_in_vain(self, error: BaseException) -> bool:
        """Tell whether an outage is none that PostgreSQL told of: it did not answer, or was not reached."""
        is_untold = isinstance(error, DBAPIError) and _sqlstate(error) is None
        waited = time.monotonic() - self._began
        return is_untold and _outage(error) is not error and waited >= waiting.SILENT_SECONDS


def _outage(error: BaseException) -> BaseException:
    """Return Unavailable for what says that the database is away, other errors as they are."""
    if isinstance(error, PoolTimeoutError) or _sqlstate(error) == _LOCK_NOT_AVAILABLE:
        return Unavailable("the database is busy")
    if isinstance(error, OperationalError | InterfaceError) and not is_transient(error):
        return Unavailable("the database does not answer")
    return error


def is_transient(error: DBAPIError) -> bool:
    """Tell whether repeating the transaction can succeed: a deadlock or a serialization failure."""
    return _sqlstate(error) in _TRANSIENT_SQLSTATES


def _sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


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


def is_postgresql(db: Database) -> bool:
    connection = db if isinstance(db, Connection) else db.get_bind()
    return connection.dialect.name == "postgresql"
