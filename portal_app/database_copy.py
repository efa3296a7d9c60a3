"""Copy the portal's database from SQLite to PostgreSQL: ``vpn-portal database copy``.

Nobody else has the SQLite file open meanwhile. Rows go over in the order of their keys, a few thousand in one
transaction, together with how far that is, so that a copy that was interrupted goes on there. At the end
every row is read back. The digest of a table is the sum of its rows' digests, so it depends on no order:
the two databases sort differently.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Table,
    Text,
    cast,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from portal_app import migrations
from portal_app.db import UNCONFIRMED, copied_name, make_engine
from portal_app.errors import BadRequest, Conflict, Unavailable
from portal_app.models import Base
from portal_app.waiting import let_take

#: What the target has until the copy is complete, and no migration knows: how far each table is, as JSON and
#: hex. The row without a table says whose copy it is.
UNFINISHED = Table(
    "unfinished_copy",
    MetaData(),
    Column("table_name", Text, primary_key=True),
    Column("copied_rows", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("last_key", Text, nullable=False),
)
ROWS_AT_ONCE = 5000
#: Of one statement; the longest is a count or ANALYZE of a large table.
STATEMENT_SECONDS = 600
#: What the row that says whose copy it is has as its key when everything was compared.
COMPLETE = "complete"
_DIGEST_BYTES = 16
#: Key of the PostgreSQL advisory lock that one copy holds.
LOCK_KEY = 0x6361757365_03

Say = Callable[[str], None]


@dataclass
class Content:
    """What was read of a table: how many rows, and the sum of their digests."""

    rows: int = 0
    digest: int = 0
    #: The key of the last row, in the order of the database that was read.
    last_key: list[Any] | None = field(default=None, compare=False)

    def add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            said = json.dumps([_plain(value) for value in row], ensure_ascii=False).encode()
            digest = hashlib.blake2b(said, digest_size=_DIGEST_BYTES).digest()
            self.digest = (self.digest + int.from_bytes(digest)) % (1 << 8 * _DIGEST_BYTES)
        self.rows += len(rows)
        if rows:
            self.last_key = _key(table, rows[-1])


def copy(file: Path, url: str, say: Say) -> dict[str, Content]:
    """Copy every table of the SQLite ``file`` into the PostgreSQL database ``url``; return what each holds.

    The file is renamed then, before anybody else can open it, so that no portal goes on with it. Repeating an
    interrupted copy goes on where it was. Raises BadRequest for what cannot be copied, Conflict when the
    target holds something else or somebody uses one of the two, Unavailable when a database does not answer.
    """
    if make_url(url).get_backend_name() not in ("postgresql", "postgres"):
        raise BadRequest(
            "--to: only PostgreSQL takes a copy, such as postgresql+psycopg://causeway@db1/causeway"
        )
    target = make_engine(url, pool_size=2)
    try:
        with _outage(), target.connect() as connection:
            _have_alone(connection)
            if not file.exists():
                _finish(file, connection)
                return {}
            with _alone_with(file) as source:
                contents = _copy(source, target, connection, say)
                _put_aside(source, file)
            _forget_progress(connection)
            if connection.info.pop(UNCONFIRMED, None):
                say("the standby of the database has not confirmed it yet")
    finally:
        target.dispose()
    return contents


def _finish(file: Path, connection: Connection) -> None:
    """End a copy that was complete but for its mark."""
    before = copied_name(file)
    with connection.begin():
        complete = inspect(connection).has_table(UNFINISHED.name) and connection.scalar(
            select(UNFINISHED.c.last_key).where(UNFINISHED.c.table_name == "")
        )
    if not (before.exists() and complete == COMPLETE):
        said = f"; it was copied before, and is {before} now" if before.exists() else ""
        raise BadRequest(f"{file}: there is no such file{said}")
    _forget_progress(connection)


def _put_aside(source: Connection, file: Path) -> None:
    """Rename the file while nobody else can open it; nothing of it is in a file beside it any more."""
    driver: Any = source.connection.driver_connection
    driver.execute("PRAGMA journal_mode=DELETE")
    file.rename(copied_name(file))


def _forget_progress(connection: Connection) -> None:
    with connection.begin():
        UNFINISHED.drop(connection)


def is_unfinished(engine: Engine) -> bool:
    """Tell whether a copy into this database was begun and is not complete."""
    with engine.connect().execution_options(read_only=True) as connection:
        return inspect(connection).has_table(UNFINISHED.name)


@contextmanager
def _alone_with(file: Path) -> Iterator[Connection]:
    """Open the file so that nobody else can, not even to read."""
    engine = create_engine(
        f"sqlite:///{file}", poolclass=NullPool, hide_parameters=True, connect_args={"isolation_level": None}
    )
    event.listen(engine, "connect", _take_alone)
    try:
        connection = engine.connect()
    except OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        raise Conflict(
            f"{file} is in use; stop vpn-portal.socket, vpn-portal.service and vpn-portal-controller.service"
        ) from error
    with connection:
        revision = migrations.revision_of(connection)
        if revision != migrations.head():
            raise BadRequest(
                f"{file} is at {revision or 'nothing'}, not {migrations.head()}; run vpn-portal migrate"
            )
        yield connection


def _take_alone(connection: Any, _record: Any) -> None:
    # With a log written ahead everybody who has the file open holds a shared lock, so an exclusive one
    # is got only when nobody has (sqlite.org/pragma.html, locking_mode).
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("COMMIT")


@contextmanager
def _outage() -> Iterator[None]:
    """Say what the database said, in its first line only: more could quote a row."""
    try:
        yield
    except DBAPIError as error:
        raise Unavailable(f"{_first_line(error.orig)}; repeat the command to go on") from error
    except psycopg.Error as error:  # COPY passes SQLAlchemy by
        raise Unavailable(f"{_first_line(error)}; repeat the command to go on") from error


def _first_line(error: Any) -> str:
    said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    return f"the database: {said.splitlines()[0] if said else type(error).__name__}"


def _copy(source: Connection, target: Engine, connection: Connection, say: Say) -> dict[str, Content]:
    tables = Base.metadata.sorted_tables
    with connection.begin():
        _refuse_foreign(connection)
        is_new = not inspect(connection).has_table(UNFINISHED.name)
        has_rows = [table.name for table in tables if _has_rows(connection, table)]
    if is_new and has_rows:
        raise Conflict(
            f"the target is not empty ({', '.join(has_rows)}); name an empty database, or drop this one if"
            " nobody needs what is in it"
        )
    migrations.upgrade(target)
    if is_new:
        _begin(connection, _identity(source))
    else:
        _resume(source, connection, tables, say)
    contents = {table.name: _copy_table(source, connection, table, say) for table in tables}
    say("reading everything back")
    for table in tables:
        if (read := _read(connection, table)) != contents[table.name]:
            raise Conflict(
                f"{table.name}: {read.rows} rows arrived of {contents[table.name].rows}, or other ones; does"
                " somebody write into the target? Make that database anew and repeat the command"
            )
    with connection.begin():
        for table in tables:
            _continue_numbers(connection, table)
        # Without it the first queries would be planned as for empty tables.
        connection.execute(text("ANALYZE " + ", ".join(_quoted(tables))))
        is_whose = UNFINISHED.c.table_name == ""
        connection.execute(update(UNFINISHED).where(is_whose).values(last_key=COMPLETE))
    return contents


def _have_alone(connection: Connection) -> None:
    with connection.begin():
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_SECONDS}s'"))
        let_take(connection, STATEMENT_SECONDS)
        locked = connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY})
    if not locked:
        raise Conflict("another copy into this database is under way")


def _refuse_foreign(connection: Connection) -> None:
    """Refuse to make our tables beside those of something else."""
    found = sorted(inspect(connection).get_table_names())
    ours = {UNFINISHED.name, "alembic_version", *Base.metadata.tables}
    if others := [name for name in found if name not in ours]:
        raise Conflict(f"the target holds something else (table {others[0]}); name an empty database")
    if migrations.is_ahead(migrations.revision_of(connection)):
        raise Conflict("the target has the tables of another release; name an empty database")


def _has_rows(connection: Connection, table: Table) -> bool:
    if not inspect(connection).has_table(table.name):
        return False
    return connection.execute(select(text("1")).select_from(table).limit(1)).first() is not None


def _identity(source: Connection) -> str:
    """Return what this database calls itself, the same at each attempt."""
    deployment = Base.metadata.tables["deployment"]
    found = source.scalar(select(deployment.c.deployment_id))
    return f"deployment {found}" if found else "no deployment yet"


def _begin(connection: Connection, identity: str) -> None:
    with connection.begin():
        UNFINISHED.create(connection)
        row = {"table_name": "", "copied_rows": 0, "digest": identity, "last_key": ""}
        connection.execute(insert(UNFINISHED).values(row))


def _resume(source: Connection, connection: Connection, tables: Sequence[Table], say: Say) -> None:
    """Go on with an interrupted copy; tables that the portal has changed since then begin anew."""
    with connection.begin():
        whose = select(UNFINISHED.c.digest).where(UNFINISHED.c.table_name == "")
        if (found := connection.scalar(whose)) != _identity(source):
            raise Conflict(f"the target holds an unfinished copy of another database ({found}); make it anew")
    anew: list[Table] = []
    for table in tables:
        done = _progress(connection, table)
        needs = {key.column.table for key in table.foreign_keys}
        has_changed = done.rows > 0 and _read(source, table, until=done.last_key) != done
        if has_changed or needs & set(anew):
            anew.append(table)
            if has_changed:
                say(f"{table.name} has changed since the copy was interrupted: beginning it anew")
    if anew:
        with connection.begin():
            connection.execute(text("TRUNCATE " + ", ".join(_quoted(anew))))
            names = [table.name for table in anew]
            connection.execute(delete(UNFINISHED).where(UNFINISHED.c.table_name.in_(names)))


def _progress(connection: Connection, table: Table) -> Content:
    with connection.begin():
        row = connection.execute(
            select(UNFINISHED).where(UNFINISHED.c.table_name == table.name)
        ).one_or_none()
    if row is None:
        return Content()
    return Content(row.copied_rows, int(row.digest, 16), _key_from_text(row.last_key))


def _copy_table(source: Connection, target: Connection, table: Table, say: Say) -> Content:
    wanted = source.scalar(select(func.count()).select_from(table)) or 0
    done = _progress(target, table)
    if done.rows:
        say(f"{table.name}: going on after {done.rows:,} of {wanted:,} rows")
    for rows in _chunks(source, table, after=done.last_key):
        done.add(table, rows)
        values = {
            "copied_rows": done.rows,
            "digest": f"{done.digest:x}",
            "last_key": _key_to_text(done.last_key),
        }
        mark = insert(UNFINISHED).values(table_name=table.name, **values)
        with target.begin():
            target.execute(mark.on_conflict_do_update(index_elements=["table_name"], set_=values))
            _send(target, table, rows)
        if done.rows < wanted:
            say(f"{table.name}: {done.rows:,} of {wanted:,} rows")
    if done.rows:
        say(f"{table.name}: {done.rows:,} rows")
    return done


def _send(connection: Connection, table: Table, rows: list[Any]) -> None:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as into:
        for row in rows:
            into.write_row(row)


def _read(connection: Connection, table: Table, *, until: list[Any] | None = None) -> Content:
    content = Content()
    with nullcontext() if connection.in_transaction() else connection.begin():
        for rows in _chunks(connection, table, until=until):
            content.add(table, rows)
    return content


def _chunks(
    connection: Connection, table: Table, *, after: list[Any] | None = None, until: list[Any] | None = None
) -> Iterator[list[Any]]:
    """Yield the rows of a table in the order of their keys, after one key and until another."""
    keys = list(table.primary_key.columns)
    columns = [_as_text(column) if isinstance(column.type, JSON) else column for column in table.columns]
    rows = select(*columns).order_by(*keys).limit(ROWS_AT_ONCE)
    if until is not None:
        rows = rows.where(tuple_(*keys) <= tuple_(*until))
    while True:
        chunk = rows if after is None else rows.where(tuple_(*keys) > tuple_(*after))
        found = [tuple(row) for row in connection.execute(chunk)]
        if found:
            yield found
        if len(found) < ROWS_AT_ONCE:
            return
        after = _key(table, found[-1])


def _key(table: Table, row: Sequence[Any]) -> list[Any]:
    return [row[list(table.columns).index(column)] for column in table.primary_key.columns]


def _as_text(column: Column[Any]) -> Any:
    """Read JSON as it is stored: null and an absent value are two things."""
    return cast(column, Text).label(column.name)


def _quoted(tables: Sequence[Table]) -> list[str]:
    return [f'"{table.name}"' for table in tables]


def _continue_numbers(connection: Connection, table: Table) -> None:
    """Let new rows get numbers after those that were copied."""
    for column in table.primary_key.columns:
        sequence = connection.scalar(
            text("SELECT pg_get_serial_sequence(:table, :column)"),
            {"table": table.name, "column": column.name},
        )
        if sequence:
            last = connection.scalar(select(func.max(column)))
            connection.execute(
                text("SELECT setval(CAST(:sequence AS regclass), :last, :used)"),
                {"sequence": sequence, "last": last or 1, "used": last is not None},
            )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.hex() if isinstance(value, bytes | memoryview) else value


def _key_to_text(key: list[Any] | None) -> str:
    """Keys are numbers, texts and digests."""
    return json.dumps([{"hex": part.hex()} if isinstance(part, bytes) else part for part in key or []])


def _key_from_text(said: str) -> list[Any]:
    return [bytes.fromhex(part["hex"]) if isinstance(part, dict) else part for part in json.loads(said)]
