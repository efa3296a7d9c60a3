"""``vpn-portal migrate``: the tables that migrations make are the tables of the models."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, inspect, text

from portal_app import db, migrations
from portal_app.cli import main
from portal_app.db import Base
from portal_app.errors import Unavailable
from portal_app.settings import Settings
from tests.portal.commands import write_settings

#: Where the databases of the last release are.
RELEASED = "0004"
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def empty_url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A database without any table."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path}/empty.sqlite"
    url = sqlalchemy.make_url(request.getfixturevalue("postgresql_url"))
    admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS migrated"))
        connection.execute(text("CREATE DATABASE migrated"))
    admin.dispose()
    return url.set(database="migrated").render_as_string(hide_password=False)


@pytest.fixture
def engine(empty_url: str) -> Any:
    engine = db.make_engine(empty_url)
    yield engine
    engine.dispose()


def shape(engine: Engine) -> dict[str, Any]:
    """Return what a database knows of its tables, in a form that compares."""
    found = inspect(engine)
    result: dict[str, Any] = {}
    for table in sorted(found.get_table_names()):
        if table == "alembic_version":
            continue
        result[table] = {
            "columns": {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(table)},
            "primary key": found.get_pk_constraint(table),
            "foreign keys": texts(found.get_foreign_keys(table)),
            "unique": texts(found.get_unique_constraints(table)),
            "check": texts(found.get_check_constraints(table)),
            "indexes": texts(found.get_indexes(table)),
            "options": found.get_table_options(table),
            "triggers": triggers(engine, table),
        }
    return result


def triggers(engine: Engine, table: str) -> list[str]:
    """Return what a database does by itself where a table is written."""
    asked = (
        "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table"
        if engine.dialect.name == "sqlite"
        else "SELECT pg_get_triggerdef(t.oid) || pg_get_functiondef(t.tgfoid) FROM pg_trigger t"
        " WHERE t.tgrelid = to_regclass(:table) AND NOT t.tgisinternal"
    )
    with engine.connect() as connection:
        return sorted(connection.scalars(text(asked), {"table": table}))


def texts(items: Any) -> list[str]:
    """Return what was found in one order, conditions of partial indexes as text."""
    return sorted(json.dumps(item, default=str, sort_keys=True) for item in items)


def test_migrations_make_what_the_models_say(engine, database, tmp_path):
    assert migrations.upgrade(engine) == (None, migrations.head())

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    migrated = shape(engine)
    if database == "sqlite":
        other = db.make_engine(f"sqlite:///{tmp_path}/models.sqlite")
    else:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        other = engine
    Base.metadata.create_all(other)
    assert migrated == shape(other)
    assert migrated["audit_events"]["triggers"]
    other.dispose()


def test_each_migration_serves_the_release_before(engine):
    """R85: what that release reads and writes is still there, and nothing new has to be written."""
    script = ScriptDirectory.from_config(migrations._config())
    old: dict[str, Any] = {}
    for step in reversed(list(script.walk_revisions())):
        migrations.upgrade(engine, step.revision)
        new = shape(engine)
        assert old.keys() <= new.keys()
        for table in old:
            assert old[table]["columns"].items() <= new[table]["columns"].items()
            added = new[table]["columns"].keys() - old[table]["columns"].keys()
            assert all(new[table]["columns"][name][1] for name in added), "a new column may be empty"
            for kind in ("primary key", "foreign keys", "unique", "check"):
                assert new[table][kind] == old[table][kind]
        old = new
    assert step.revision == migrations.head()


def test_no_index_of_the_journal_saves_only_what_another_one_saves(engine):
    """Each session that begins or ends writes all of them: two protocols are no places to look up."""
    migrations.upgrade(engine)
    first = {str(index["column_names"][0]) for index in inspect(engine).get_indexes("vpn_sessions")}
    assert "protocol" not in first


def test_sqlite_gives_an_id_once(engine, database):
    """The queue of addresses is in the order of its ids; both ways of making tables say so."""
    migrations.upgrade(engine)
    with engine.connect() as connection:
        if database == "sqlite":
            made = connection.scalar(text("SELECT sql FROM sqlite_master WHERE name = 'free_addresses'"))
            assert "AUTOINCREMENT" in str(made)


def test_migrating_again_changes_nothing(engine):
    migrations.upgrade(engine)
    before = shape(engine)

    assert migrations.upgrade(engine) == (migrations.head(), migrations.head())

    assert shape(engine) == before


def test_two_portals_may_migrate_at_once(engine):
    """R85: one does it, the other waits and finds it done."""
    barrier, results = threading.Barrier(2), []

    def migrate() -> None:
        own = db.make_engine(engine.url.render_as_string(hide_password=False))
        barrier.wait()
        results.append(migrations.upgrade(own))
        own.dispose()

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results, key=str) == [(migrations.head(), migrations.head()), (None, migrations.head())]


def test_many_may_open_a_new_file_at_once(tmp_path):
    """SQLite lets one of them turn the file to write-ahead logging, and says "locked" to the others."""
    for number in range(40):
        engines = [db.make_engine(f"sqlite:///{tmp_path}/{number}.sqlite") for _ in range(4)]
        start = threading.Barrier(len(engines))

        def opens(engine: Engine, start: threading.Barrier = start) -> None:
            start.wait()
            engine.connect().close()

        with ThreadPoolExecutor(len(engines)) as threads:
            list(threads.map(opens, engines))  # raises what a thread raised
        for engine in engines:
            engine.dispose()


def test_migration_that_fails_leaves_nothing_behind(engine, monkeypatch):
    """R86: no half state."""

    made: list[str] = []
    original = Operations.create_table  # type: ignore[attr-defined]

    def create_table(self: Any, name: str, *words: Any, **options: Any) -> Any:
        if len(made) == 3:
            raise RuntimeError("power cut")
        made.append(name)
        return original(self, name, *words, **options)

    monkeypatch.setattr(Operations, "create_table", create_table)
    with pytest.raises(RuntimeError, match="power cut"):
        migrations.upgrade(engine)

    assert made
    assert inspect(engine).get_table_names() in ([], ["alembic_version"])
    assert migrations.current(engine) is None


def waits(connection: Connection) -> bool:
    """Tell whether somebody waits for a lock in this database."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'migrated'"
    found = bool(connection.scalar(text(asked)))
    connection.rollback()  # within one transaction the answer stays the same
    return found


def wait_until(happens: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < ends_at, "it did not happen"
        time.sleep(0.02)


ADDED = {
    "vpn_sessions": "INSERT INTO vpn_sessions (node_number, session_id, connection_id, profile_id, protocol,"
    " started_at) VALUES (0, :id, 'c', 'p', 'openvpn', now())",
    "audit_events": "INSERT INTO audit_events (at, actor, action, details) VALUES (now(), :id, 'a', '{}')",
    "users": "INSERT INTO users (name, permissions, is_disabled, created_at)"
    " VALUES (:id, '[]', false, now())",
}


@pytest.mark.parametrize("database", ["postgresql"])
@pytest.mark.parametrize("table", ADDED)
def test_nobody_waits_for_a_migration_that_builds_indexes(engine, table):
    """R85: one who began to write before it keeps it waiting, and the others write on."""
    migrations.upgrade(engine, RELEASED)
    with ThreadPoolExecutor(1) as thread, engine.connect() as before, engine.connect() as later:
        before.execute(text(ADDED[table]), {"id": "before"})
        migrated = thread.submit(migrations.upgrade, engine)
        try:
            wait_until(lambda: waits(later) or migrated.done())
            assert not migrated.done()
            later.execute(text("SET LOCAL lock_timeout = '500ms'"))
            for other in ADDED:
                later.execute(text(ADDED[other]), {"id": "later"})
            later.commit()
        finally:
            before.rollback()
            later.rollback()
        assert migrated.result(60) == (RELEASED, migrations.head())
    assert invalid(engine) == 0


def invalid(engine: Engine) -> int:
    """Count indexes that were begun and not ended."""
    if engine.dialect.name == "sqlite":
        return 0
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")) or 0)


@pytest.mark.parametrize("database", ["postgresql"])
def test_an_index_that_was_cut_off_is_built_again(engine):
    """R86: PostgreSQL leaves half an index behind."""
    migrations.upgrade(engine, RELEASED)
    with ThreadPoolExecutor(1) as thread, engine.connect() as before, engine.connect() as other:
        before.execute(text(ADDED["vpn_sessions"]), {"id": "before"})
        migrated = thread.submit(migrations.upgrade, engine)
        wait_until(lambda: waits(other))
        other.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                 " WHERE wait_event_type = 'Lock' AND datname = 'migrated'")
        )  # fmt: skip
        other.rollback()
        with pytest.raises(Unavailable):
            migrated.result(60)
        before.rollback()
    assert invalid(engine) == 1

    assert migrations.upgrade(engine) == (RELEASED, migrations.head())

    assert invalid(engine) == 0
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_migration_may_be_cut_off_anywhere(engine):
    """R86: after each of its statements; whoever repeats it goes on from there."""
    migrations.upgrade(engine, RELEASED)
    seen: set[str] = set()

    def cut_off(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement not in seen and statement.lstrip().startswith(("CREATE", "ALTER", "UPDATE", "DROP")):
            seen.add(statement)
            raise RuntimeError("power cut")

    event.listen(engine, "after_cursor_execute", cut_off)
    result = None
    while result is None:
        with contextlib.suppress(RuntimeError):
            result = migrations.upgrade(engine)
    event.remove(engine, "after_cursor_execute", cut_off)

    assert len(seen) > 10
    assert migrations.current(engine) == migrations.head()
    assert invalid(engine) == 0
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


@pytest.mark.parametrize("database", ["postgresql"])
def test_a_table_that_is_in_use_is_waited_for_without_blocking_others(engine):
    """R85: a column is added in a moment, or a little later."""
    migrations.upgrade(engine, "0006")
    with ThreadPoolExecutor(1) as thread, engine.connect() as before, engine.connect() as later:
        before.execute(text("SELECT * FROM node_status"))
        migrated = thread.submit(migrations.upgrade, engine)
        for _ in range(2):
            wait_until(lambda: waits(later))
            # As every connection of the portal waits.
            later.execute(text("SELECT * FROM node_status"))
            later.rollback()
        before.rollback()
        assert migrated.result(60) == ("0006", migrations.head())


def test_command_checks_migrates_and_repeats(settings: Settings, empty_url, tmp_path, capsys, engine):
    (tmp_path / "database-url").write_text(empty_url)
    file = tmp_path / "settings.toml"
    write_settings(settings, file)

    def run(*words: str) -> tuple[int, str]:
        status = main(["--settings", str(file), "migrate", *words])
        return status, capsys.readouterr().out

    head = migrations.head()
    assert run("--check") == (1, f"the database is at nothing, this release needs {head}\n")
    assert run() == (0, f"migrated from nothing to {head}\n")
    assert run("--check") == (0, f"the database is at {head}\n")
    assert run() == (0, f"no changes: the database is at {head}\n")
    db.engine().dispose()


def test_checking_makes_no_sqlite_file(tmp_path):
    engine = db.make_engine(f"sqlite:///{tmp_path}/none.sqlite")

    assert migrations.current(engine) is None
    assert not (tmp_path / "none.sqlite").exists()


def test_database_of_a_later_release_is_refused(settings: Settings, empty_url, tmp_path, capsys, engine):
    """R87."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    (tmp_path / "database-url").write_text(empty_url)
    file = tmp_path / "settings.toml"
    write_settings(settings, file)

    assert main(["--settings", str(file), "migrate"]) == 1

    assert "a later release migrated it" in capsys.readouterr().err
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    db.engine().dispose()


@pytest.mark.slow
def test_wheel_brings_its_migrations(tmp_path):
    """From the installed package there is no source tree to find them in."""
    # A copy: building writes beside the sources.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for package in ("portal_app", "vpn_core"):
        shutil.copytree(PROJECT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in (PROJECT / "portal_app" / "migrations").rglob("*.py"):
        assert str(file.relative_to(PROJECT)) in names
    assert "portal_app/migrations/script.py.mako" in names


def test_log_does_not_begin_with_alembic():
    begin = "import logging; logging.basicConfig(level=logging.INFO); import portal_app.migrations"
    done = subprocess.run([sys.executable, "-c", begin], check=True, capture_output=True, text=True)

    assert done.stderr == ""
