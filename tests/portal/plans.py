"""What a database reads for each statement of a page, as its planner or its executor tells."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Engine

from portal_app.models import AddressUse, AuditEvent, Connection, RefusedConnect, User, VpnSession

BIG = {
    model.__tablename__ for model in (AddressUse, AuditEvent, Connection, RefusedConnect, User, VpnSession)
}
#: What a statement may read of them: a list counts up to 1,000 (``connection_list.MOST_COUNTED``).
MOST_READ = 3000
#: What says that few rows are found, which may be sorted: a search, an owner, some connections.
_FEW = ("\U0010ffff", "authorizations.user_id = ", "connection_id IN (")

#: Settings of the database; only a superuser's connections load the module.
_EXPLAINING = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}

#: Yields a list that holds at the end what was wrong, statement by statement.
Watching = Callable[[], Any]


def watching(engine: Engine) -> Watching:
    """Return what watches the statements on ``engine``, whoever gives them to the driver."""
    return _Sqlite(engine).watch if engine.dialect.name == "sqlite" else _Postgresql(engine).watch


@contextmanager
def _each_connection(
    engine: Engine, begin: Callable[[Any], Any], end: Callable[[Any], Any]
) -> Iterator[None]:
    def taken(connection: Any, *_more: object) -> None:
        begin(connection)

    def given_back(connection: Any, *_more: object) -> None:
        end(connection)

    event.listen(engine, "checkout", taken)
    event.listen(engine, "checkin", given_back)
    try:
        yield
    finally:
        event.remove(engine, "checkout", taken)
        event.remove(engine, "checkin", given_back)


class _Sqlite:
    """Plans are asked for afterwards; they do not say how many rows there are, so shapes are what counts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        seen: list[str] = []
        found: list[str] = []
        with _each_connection(
            self._engine, lambda c: c.set_trace_callback(seen.append), lambda c: c.set_trace_callback(None)
        ):
            yield found
        with sqlite3.connect(str(self._engine.url.database)) as raw:
            found += [f"{statement}: {steps}" for statement in seen if (steps := self._wrong(raw, statement))]

    def _wrong(self, raw: sqlite3.Connection, statement: str) -> list[str]:
        """Return the steps of a plan that read a big table whole, or sort what they read of it."""
        big = re.compile(rf"\b({'|'.join(BIG)})\b")
        if not statement.lstrip().upper().startswith(("SELECT", "WITH")) or not big.search(statement):
            return []
        plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}")]
        if "LIMIT" in statement and "ORDER BY" not in statement:
            return []  # counts up to a bound, and stops there
        whole = [step for step in plan if re.match(rf"SCAN ({'|'.join(BIG)})(?! USING)", step)]
        counted = [
            step
            for step in plan
            if step.startswith("SCAN") and big.search(step) and "count(" in statement.lower()
        ]
        sorts = [
            step
            for step in plan
            if step == "USE TEMP B-TREE FOR ORDER BY" and not any(m in statement for m in _FEW)
        ]
        return whole + counted + (sorts if "LIMIT" in statement else [])


class _Postgresql:
    """The server tells what it did after each statement, with the rows that it read (``auto_explain``)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        name = engine.url.database
        with engine.begin() as connection:
            for setting, value in _EXPLAINING.items():
                connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        engine.dispose()

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        heard: list[str] = []
        found: list[str] = []

        def hear(said: psycopg.errors.Diagnostic) -> None:
            heard.append(said.message_primary or "")

        with _each_connection(
            self._engine, lambda c: c.add_notice_handler(hear), lambda c: c.remove_notice_handler(hear)
        ):
            yield found
        for text in heard:
            explained = json.loads(text.partition("plan:\n")[2])
            statement = explained["Query Text"]
            found += [f"{statement}: {step}" for step in _read(explained["Plan"], statement)]


def _read(step: dict[str, Any], statement: str) -> Iterator[str]:
    """Yield the steps of a plan that read more rows of a big table than any page shows."""
    removed = sum(count for name, count in step.items() if name.startswith("Rows Removed by"))
    rows = (step.get("Actual Rows", 0) + removed) * step.get("Actual Loops", 1)
    # A node's page counts what a drain would end there; here one node has all of it.
    counts_of_node = "count(" in statement and "node_number = " in step.get("Index Cond", "")
    if step.get("Relation Name") in BIG and rows > MOST_READ and not counts_of_node:
        yield f"{step['Node Type']} of {step['Relation Name']} reads {rows:.0f} rows"
    for inner in step.get("Plans", []):
        yield from _read(inner, statement)
