"""Statements on the way of every connect: built and translated once, executed by the driver itself.

SQLAlchemy takes several times as long for a statement as the driver and the database do. A ``Statement`` is
written as any other; its text and the conversions of values and columns are worked out at its first use, and
from then on the driver gets them directly. Connection, transaction and errors are SQLAlchemy's as always.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

Values = Mapping[str, Any]
_Conversion = Callable[[Any], Any]


class Rows(list[Any]):
    """What a statement returned: tuples with the columns as attributes."""

    def one_or_none(self) -> Any:
        return self[0] if self else None


class Statement:
    """One statement; ``run`` gives values to its ``bindparam``s, or to the columns of an INSERT.

    Lists of values (IN) and rows that the ORM has to see are not for this.
    """

    def __init__(self, built: Any) -> None:
        self._built = built
        self._texts: dict[tuple[str, ...], _Text] = {}

    def text(self, dialect: Dialect, names: tuple[str, ...]) -> "_Text":
        key = (dialect.name, *names)
        found = self._texts.get(key)
        if found is None:
            found = self._texts[key] = _translated(self._built, dialect, names)
        return found


def run(db: Session | Connection, statement: Statement, values: Values | None = None) -> Rows:
    """Execute a statement in a transaction; what a session has not written yet comes first."""
    values = values or {}
    connection = _connection(db)
    text = statement.text(connection.dialect, tuple(values))
    with _cursor(connection, text.sql) as cursor:
        cursor.execute(text.sql, text.filled(values))
        return text.rows(cursor.fetchall()) if cursor.description else Rows()


def run_all(db: Session | Connection, statement: Statement, values: Sequence[Values]) -> None:
    """Execute a statement that returns nothing once for each of ``values``, which have the same names."""
    if not values:
        return
    connection = _connection(db)
    text = statement.text(connection.dialect, tuple(values[0]))
    with _cursor(connection, text.sql) as cursor:
        cursor.executemany(text.sql, [text.filled(each) for each in values])


def _connection(db: Session | Connection) -> Connection:
    if isinstance(db, Connection):
        return db
    db.flush()
    return db.connection()


@contextmanager
def _cursor(connection: Connection, sql: str) -> Iterator[Any]:
    cursor = connection.connection.cursor()
    try:
        yield cursor
    except connection.dialect.loaded_dbapi.Error as error:
        raise _as_sqlalchemy(error, connection, sql) from error
    finally:
        cursor.close()


@dataclass(frozen=True)
class _Text:
    """A statement in the words of one database; ``values`` are names with the statement's own value, if any,
    and a conversion.
    """

    sql: str
    values: list[tuple[str, Any, _Conversion | None]]
    order: list[str] | None
    row: Any
    columns: list[_Conversion | None]

    def filled(self, given: Values) -> Any:
        found = {}
        for name, own, convert in self.values:
            value = given.get(name, own)
            found[name] = value if convert is None else convert(value)
        return found if self.order is None else [found[name] for name in self.order]

    def rows(self, fetched: Sequence[Any]) -> Rows:
        made, columns = self.row._make, self.columns
        return Rows(
            made([v if c is None else c(v) for c, v in zip(columns, values, strict=True)])
            for values in fetched
        )


def _translated(built: Any, dialect: Dialect, names: tuple[str, ...]) -> _Text:
    compiled = built.compile(dialect=dialect, column_keys=list(names) if built.is_insert else None)
    needed = {name for name in compiled.params if compiled.binds[name].required}
    if needed - set(names) or set(names) - set(compiled.params):
        raise KeyError(f"values for {sorted(names)}, not for {sorted(needed)}: {compiled}")
    columns = list(built.exported_columns)
    return _Text(
        sql=str(compiled),
        values=[
            (name, own if name not in names else None, _of_type(compiled.binds[name].type, dialect))
            for name, own in compiled.params.items()
        ],
        order=compiled.positiontup if compiled.positional else None,
        row=namedtuple("Row", [column.key for column in columns]),
        columns=[column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns],
    )


def _of_type(type_: TypeEngine[Any], dialect: Dialect) -> _Conversion | None:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _as_sqlalchemy(error: Exception, connection: Connection, sql: str) -> Exception:
    """Return what SQLAlchemy would raise; a connection that is dead never goes back to the pool."""
    dialect = connection.dialect
    dead = dialect.is_disconnect(error, connection.connection, None)  # type: ignore[arg-type]
    if dead:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql, None, error, dialect.loaded_dbapi.Error, hide_parameters=True,
        connection_invalidated=dead, dialect=dialect,
    )  # fmt: skip
