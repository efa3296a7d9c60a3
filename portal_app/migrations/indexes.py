"""Indexes of tables that are in use: built while others read and write.

PostgreSQL's plain CREATE INDEX lets every writer of a table wait until the transaction ends. CONCURRENTLY it
does not, outside of transactions and in several steps of its own. Cut off half-way it leaves an index that is
invalid: kept up to date, never read (documentation, "Building Indexes Concurrently").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic import op

from portal_app.statements import BEGINS

#: One index of a large table. Its build, and its wait for whoever began before it, hold up nobody.
BUILD_SECONDS = 3600
_DEADLINES = ("lock_timeout", "statement_timeout")


@dataclass(frozen=True)
class New:
    """An index to build; ``where`` makes it a partial one, ``where_sqlite`` if SQLite says that otherwise."""

    name: str
    table: str
    columns: list[Any] = field(default_factory=list)
    where: str | None = None
    where_sqlite: str | None = None

    def create(self, **how: Any) -> None:
        sqlite = self.where_sqlite or self.where
        op.create_index(
            self.name,
            self.table,
            self.columns,
            postgresql_where=None if self.where is None else sa.text(self.where),
            sqlite_where=None if sqlite is None else sa.text(sqlite),
            **how,
        )


def build(*wanted: New) -> None:
    """Build what is not there yet; the first thing that a migration does, so that it can be repeated.

    On PostgreSQL each index stays when it is done, whatever becomes of the migration.
    """
    if op.get_bind().dialect.name != "postgresql":
        for index in wanted:
            index.create()
        return
    with op.get_context().autocommit_block(), _in_no_transaction(op.get_bind()) as connection:
        for index in wanted:
            _build(connection, index)


def drop(name: str, table: str) -> None:
    """Drop an index, if it is there, while others read and write; the last thing that a migration does."""
    if op.get_bind().dialect.name != "postgresql":
        op.drop_index(name, table, if_exists=True)
        return
    with op.get_context().autocommit_block(), _in_no_transaction(op.get_bind()):
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


def _build(connection: sa.Connection, index: New) -> None:
    valid = connection.scalar(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": index.name}
    )
    if valid is False:
        op.drop_index(index.name, index.table, postgresql_concurrently=True)
    if not valid:
        index.create(postgresql_concurrently=True)


@contextmanager
def _in_no_transaction(connection: sa.Connection) -> Iterator[sa.Connection]:
    """Send no BEGIN (``db``), and wait long: for the build, and for the standby to have it."""
    connection.execution_options(begins=False)
    connection.info.pop(BEGINS, None)
    try:
        shown = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in _DEADLINES}
        for name in _DEADLINES:
            connection.execute(sa.text(f"SET {name} = '{BUILD_SECONDS}s'"))
        yield connection
        for name, value in shown.items():
            connection.execute(sa.text(f"SET {name} = '{value}'"))
    finally:
        connection.execution_options(begins=True)
