"""Statements of connects and pages: built and translated once, executed by the driver itself.

SQLAlchemy takes several times as long for a statement as the driver and the database do. A ``Statement`` is
written as any other; its text and the conversions of values and columns are worked out at its first use, and
from then on the driver gets them directly. Connection, transaction and errors are SQLAlchemy's as always.
"""

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Dialect, literal_column
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.sql import visitors
from sqlalchemy.types import NullType

Values = Mapping[str, Any]
#: A statement with its values, for ``run_together``.
Asked = tuple["Statement", Values]
_Conversion = Callable[[Any], Any]
_NOTHING: Values = MappingProxyType({})
#: As many statements share one deadline for their answers (``waiting.py``).
MOST_TOGETHER = 200
#: In ``Connection.info`` of PostgreSQL: a transaction begins with the next statement.
BEGINS = "begins"


def at_most(count: int) -> ColumnElement[int]:
    """Return a LIMIT that is part of the text, also of what is no ``Statement``.

    PostgreSQL plans a prepared statement once; one whose limit is a value it plans each time anew, which
    takes milliseconds where many tables are joined.
    """
    return literal_column(str(int(count)))


class Rows(list[Any]):
    """What a statement returned: tuples with the columns as attributes."""

    def one_or_none(self) -> Any:
        return self[0] if self else None


class Statement:
    """One statement; ``run`` gives values to its ``bindparam``s, or to the columns of an INSERT. Numbers and
    words of its own are part of its text.

    Lists of values (IN) and rows that the ORM has to see are not for this.
    """

    def __init__(self, built: Any) -> None:
        self._built = built
        self._texts: dict[tuple[str, tuple[str, ...]], _Text] = {}

    def text(self, dialect: Dialect, names: tuple[str, ...]) -> "_Text":
        key = (dialect.name, names)
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = _translated(self._built, dialect, names)
        return found


def run(db: Session | Connection, statement: Statement, values: Values = _NOTHING) -> Rows:
    """Execute a statement in a transaction; what a session has not written yet comes first."""
    connection = db if isinstance(db, Connection) else _connection(db)
    if BEGINS in connection.info:
        return run_together(connection, [(statement, values)])[0]
    text = statement.text(connection.dialect, tuple(values))
    cursor = connection.connection.cursor()
    try:
        cursor.execute(text.sql, text.filled(values), **text.options)
        return text.rows(cursor.fetchall()) if text.returns else Rows()
    except text.errors as error:
        raise as_sqlalchemy(error, connection, text.sql) from error
    finally:
        cursor.close()


def run_together(db: Session | Connection, asked: Sequence[Asked], *, last: bool = False) -> list[Rows]:
    """Execute statements of which none needs another's answer, in their order.

    PostgreSQL gets all at once, with the begin of a transaction whose first these are and the commit of one
    whose ``last`` they are: each question of its own lets processes wait for each other. After the ``last``
    ones the caller executes nothing more.
    """
    if len(asked) > MOST_TOGETHER:
        parts = [asked[at : at + MOST_TOGETHER] for at in range(0, len(asked), MOST_TOGETHER)]
        return [rows for part in parts for rows in run_together(db, part, last=last and part is parts[-1])]
    connection = db if isinstance(db, Connection) else _connection(db)
    begins = BEGINS in connection.info
    if connection.dialect.driver != "psycopg" or len(asked) + begins + last < 2:
        return [run(connection, statement, values) for statement, values in asked]
    texts = [statement.text(connection.dialect, tuple(values)) for statement, values in asked]
    driver: Any = connection.connection.driver_connection
    cursors = [driver.cursor() for _ in texts]
    try:
        with driver.pipeline():
            if begins:
                begin(connection)
            for text, cursor, (_, values) in zip(texts, cursors, asked, strict=True):
                cursor.execute(text.sql, text.filled(values), **text.options)
            if last:
                driver.execute("COMMIT", prepare=True)
        return [
            text.rows(cursor.fetchall()) if text.returns else Rows()
            for text, cursor in zip(texts, cursors, strict=True)
        ]
    except connection.dialect.loaded_dbapi.Error as error:
        each_once = dict.fromkeys(text.sql for text in texts)
        raise as_sqlalchemy(error, connection, "; ".join(each_once)) from error
    finally:
        for cursor in cursors:
            cursor.close()


def begin(connection: Connection) -> None:
    """Let the transaction begin that nothing was executed in yet."""
    driver: Any = connection.connection.driver_connection
    driver.execute("BEGIN", prepare=True)
    del connection.info[BEGINS]


def _connection(db: Session) -> Connection:
    db.flush()
    return db.connection()


@dataclass(frozen=True)
class _Text:
    """A statement in the words of one database.

    ``values`` in the order of the text are name, conversion, and for what nobody gives the statement's own
    value; ``conversions`` are those of columns, by index.
    """

    sql: str
    options: dict[str, Any]
    errors: type[Exception]
    values: list[tuple[str, _Conversion | None, Any]]
    named: bool
    row: Any
    returns: bool
    conversions: list[tuple[int, _Conversion]]

    def filled(self, given: Values) -> Any:
        found = [
            own if name not in given else given[name] if convert is None else convert(given[name])
            for name, convert, own in self.values
        ]
        return dict(zip([name for name, _, _ in self.values], found, strict=True)) if self.named else found

    def rows(self, fetched: Sequence[Any]) -> Rows:
        if not self.conversions:
            return Rows(map(self.row._make, fetched))
        found = Rows()
        for values in fetched:
            converted = list(values)
            for index, convert in self.conversions:
                converted[index] = convert(converted[index])
            found.append(self.row._make(converted))
        return found


def _translated(built: Any, dialect: Dialect, names: tuple[str, ...]) -> _Text:
    if built.is_insert:
        compiled = built.compile(dialect=dialect, column_keys=list(names))
    else:
        compiled = _with_constants(built, dialect, names).compile(dialect=dialect)
    needed = {name for name in compiled.params if compiled.binds[name].required}
    if needed - set(names) or set(names) - set(compiled.params):
        raise KeyError(f"values for {sorted(names)}, not for {sorted(needed)}: {compiled}")
    values = []
    for name in compiled.positiontup if compiled.positional else compiled.params:
        convert = compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)
        own = None if name in names else compiled.params[name]
        values.append((name, convert, own if convert is None or name in names else convert(own)))
    columns = list(built.exported_columns)
    conversions = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    return _Text(
        sql=str(compiled),
        # Each is executed again and again: worth preparing the first time.
        options={"prepare": True} if dialect.driver == "psycopg" else {},
        errors=dialect.loaded_dbapi.Error,
        values=values,
        named=not compiled.positional,
        row=namedtuple("Row", [column.key for column in columns]),
        returns=bool(columns),
        conversions=[(index, convert) for index, convert in enumerate(conversions) if convert is not None],
    )


def _with_constants(built: Any, dialect: Dialect, names: Collection[str]) -> Any:
    """Make numbers and words that are the same each time part of the text.

    PostgreSQL plans a prepared statement once, for values as they usually are: what is asked for seldom would
    be looked for among everything.
    """

    def constant(element: Any, **_more: object) -> ColumnElement[Any] | None:
        if not isinstance(element, BindParameter) or element.required or element.key in names:
            return None
        if not isinstance(element.value, int | str) or isinstance(element.type, NullType):
            return None
        text = str(element.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        # Each % would be doubled once more, and a minus after another one begins a comment.
        return None if "%" in text or text.startswith("-") else literal_column(text, element.type)

    return visitors.replacement_traverse(built, {}, constant)


def as_sqlalchemy(error: Exception, connection: Connection, sql: str) -> Exception:
    """Return what SQLAlchemy would raise; a connection that is dead never goes back to the pool."""
    dialect = connection.dialect
    dead = dialect.is_disconnect(error, connection.connection, None)  # type: ignore[arg-type]
    if dead:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True,
        connection_invalidated=dead, dialect=dialect,
    )  # fmt: skip
