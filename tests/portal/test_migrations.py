"""``vpn-portal migrate``: the tables that migrations make are the tables of the models."""

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from portal_app import db, migrations
from portal_app.cli import main
from portal_app.db import Base
from portal_app.settings import Settings
from tests.portal.commands import write_settings

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
        }
    return result


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
    other.dispose()


def test_each_migration_serves_the_release_before(engine):
    """R85: what that release reads and writes is still there, and nothing new has to be written."""
    script = ScriptDirectory.from_config(migrations._config())
    old: dict[str, Any] = {}
    for step in reversed(list(script.walk_revisions())):
        with engine.connect() as connection, connection.begin():
            command.upgrade(migrations._config(connection), step.revision)
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
    assert inspect(engine).get_table_names() == []


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
