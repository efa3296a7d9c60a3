"""``vpn-portal database copy``: a portal on SQLite goes on with PostgreSQL (reliability.md R91)."""

import os
import signal
import sqlite3
import subprocess
from datetime import timedelta

import pytest
import sqlalchemy
from sqlalchemy import func, insert, select, text, update

from portal_app import database_copy, db, migrations
from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import Base, transaction
from portal_app.errors import Conflict, Unavailable
from portal_app.login import SESSION_COOKIE
from portal_app.models import AddressUse, Authorization, User, VpnSession
from portal_app.settings import Settings
from tests.portal.app_user import HOST, HttpsClient, VpnApp, add_user
from tests.portal.commands import PROGRAM, run_vpn_portal, write_settings
from tests.portal.scripts import Script
from tests.portal.waiting import wait_until

pytestmark = pytest.mark.parametrize("database", ["sqlite"])


@pytest.fixture
def target(postgresql_url):
    """The URL of a database without any table, on a server that sorts as Debian's does."""
    url = sqlalchemy.make_url(postgresql_url)
    admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS copied WITH (FORCE)"))
        connection.execute(
            text(
                "CREATE DATABASE copied TEMPLATE template0"
                " LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C.UTF-8'"
            )
        )
    admin.dispose()
    return url.set(database="copied").render_as_string(hide_password=False)


@pytest.fixture
def target_engine(target):
    engine = db.make_engine(target)
    yield engine
    engine.dispose()


@pytest.fixture
def file(settings):
    """The portal's SQLite database, as migrated."""
    with sqlite3.connect(settings.sqlite_file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [migrations.head()])
    connection.close()
    return settings.sqlite_file


@pytest.fixture
def device(app, file, make_nodes):
    """An app that is connected, in a database with something in most tables."""
    make_nodes(2)
    device = VpnApp(app, add_user("alice", ["staff", "ünï"])).authorize()
    assert device.refresh().status_code == 200
    device.tokens = VpnApp(app, add_user("bob")).authorize().tokens
    assert device.connect().status_code == 200
    key = {"headers": {"Idempotency-Key": "k"}}
    assert Script(app).patch("/users/alice", {"disabled": False}, **key).status_code == 200
    return device


@pytest.fixture
def many(device):
    """What was observed over months: more rows than go over at once, keys that sort in several ways."""
    now = utc_now()
    uses = [
        {
            "connection_id": f"{number:032x}", "user_name": ("alice", "Bob", "émile")[number % 3],
            "profile_id": "employees", "node_number": number % 2, "protocol": "wireguard",
            "ipv4": "10.61.0.9", "started_at": now - timedelta(seconds=number),
            "ended_at": now if number % 2 else None,
        }
        for number in range(2500)
    ]  # fmt: skip
    sessions = [
        {
            "node_number": number % 2, "session_id": f"{'aBé_-Z'[number % 6]}{number}",
            "connection_id": f"{number:032x}", "profile_id": "employees", "protocol": "openvpn",
            "started_at": now, "sent_bytes": 2**40 + number,
        }
        for number in range(2500)
    ]  # fmt: skip
    with transaction() as session:
        session.execute(insert(AddressUse), uses)
        session.execute(insert(VpnSession), sessions)


@pytest.fixture
def stop(app):
    """End the portal, which has the file open."""

    def end() -> None:
        app.extensions["causeway"].agents.close()
        db.engine().dispose()

    return end


def rows(engine):
    """Every row of every table, times as SQLite has them."""
    found = {}
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            read = [tuple(row) for row in connection.execute(select(table))]
            found[table.name] = sorted(read, key=repr)
    return found


def interrupt_after_users(file, target):
    def say(line: str) -> None:
        if line.startswith("users"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database_copy.copy(file, target, say)


def test_portal_goes_on_with_the_copy(device, many, file, stop, settings, target, target_engine, monkeypatch):
    """The same rows, and nobody signs in or authorizes again; new rows get numbers of their own."""
    monkeypatch.setattr(database_copy, "ROWS_AT_ONCE", 400)
    before = rows(db.engine())
    assert sum(map(len, before.values())) > 5000
    stop()
    said = []

    contents = database_copy.copy(file, target, said.append)

    assert rows(target_engine) == before
    assert {name: content.rows for name, content in contents.items()} == {
        n: len(r) for n, r in before.items()
    }
    assert not file.exists()
    assert db.copied_name(file).exists()
    assert "address_uses: 400 of 2,501 rows" in said

    settings.database_url_file.write_text(target)
    moved = create_app(settings)
    moved.test_client_class = HttpsClient
    try:
        with moved.app_context():
            http, browser = moved.test_client(), moved.test_client()
            device.http = http
            assert device.info().status_code == 200
            assert device.refresh().status_code == 200
            assert device.connect().status_code == 200
            cookie = device.browser.get_cookie(SESSION_COOKIE, domain=HOST)
            browser.set_cookie(SESSION_COOKIE, cookie.value, domain=HOST, path="/", secure=True)
            assert browser.get("/").status_code == 200
            assert add_user("carol").id > max(row[0] for row in before["users"])
    finally:
        moved.extensions["causeway"].agents.close()
        db.engine().dispose()


def test_command_says_what_it_copied(device, file, stop, settings, target, tmp_path):
    stop()
    (tmp_path / "url").write_text(target + "\n")
    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)

    done = run_vpn_portal(settings_file, "database", "copy", "--to", f"@{tmp_path}/url")

    assert (done.status, done.error) == (0, "")
    assert "users                2" in done.out
    assert f"the file is {file}.copied now" in done.out
    again = run_vpn_portal(settings_file, "database", "copy", "--to", f"@{tmp_path}/url")
    assert again.status == 1
    assert f"it was copied before, and is {file}.copied now" in again.error


@pytest.mark.parametrize("kill_after", [1, 4])
def test_interrupted_copy_goes_on_where_it_was(
    device, many, file, stop, target, target_engine, monkeypatch, kill_after
):
    monkeypatch.setattr(database_copy, "ROWS_AT_ONCE", 400)
    before = rows(db.engine())
    stop()
    seen = []

    def interrupt(line: str) -> None:
        seen.append(line)
        if sum("address_uses" in one for one in seen) == kill_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database_copy.copy(file, target, interrupt)
    assert file.exists()
    # Nobody takes what is half for a portal's database.
    assert database_copy.is_unfinished(target_engine)

    said = []
    database_copy.copy(file, target, said.append)

    assert f"address_uses: going on after {400 * kill_after:,} of 2,501 rows" in said
    assert not any(line.startswith("users: going on after 0") for line in said)
    assert not database_copy.is_unfinished(target_engine)
    assert rows(target_engine) == before


def test_killed_copy_is_complete_after_the_next(
    device, many, file, stop, settings, target, target_engine, tmp_path
):
    """SIGKILL at whatever moment."""
    before = rows(db.engine())
    stop()
    settings.database_url_file.write_text(target)
    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)
    killed = subprocess.Popen(
        [*PROGRAM, "--settings", settings_file, "database", "copy"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: killed.poll() is not None or database_copy.is_unfinished(target_engine), 30)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()

    if file.exists():
        done = run_vpn_portal(settings_file, "database", "copy")
        assert (done.status, done.error) == (0, "")
    assert rows(target_engine) == before


def test_what_changed_after_an_interruption_is_copied_too(device, many, file, stop, target, target_engine):
    stop()
    interrupt_after_users(file, target)
    source = db.make_engine(f"sqlite:///{file}")
    with source.begin() as connection:
        connection.execute(update(User).where(User.name == "alice").values(is_disabled=True))
    before = rows(source)
    source.dispose()

    said = []
    database_copy.copy(file, target, said.append)

    assert "users has changed since the copy was interrupted: beginning it anew" in said
    # It depends on nothing of that.
    assert any(line.startswith("deployment: going on after 1") for line in said)
    assert rows(target_engine) == before


@pytest.mark.parametrize("renamed", [False, True])
def test_copy_that_was_complete_but_for_its_end(
    device, file, stop, settings, target, target_engine, tmp_path, monkeypatch, renamed
):
    """Killed before the file had its new name, after which the portal goes on; or after that."""
    stop()
    step = "_forget_progress" if renamed else "_put_aside"

    def kill(*_words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(database_copy, step, kill)
        with pytest.raises(KeyboardInterrupt):
            database_copy.copy(file, target, lambda _line: None)
    assert database_copy.is_unfinished(target_engine)
    if not renamed:
        source = db.make_engine(f"sqlite:///{file}")
        with source.begin() as connection:
            connection.execute(update(User).where(User.name == "alice").values(is_disabled=True))
        source.dispose()

    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)
    (tmp_path / "url").write_text(target)
    done = run_vpn_portal(settings_file, "database", "copy", "--to", f"@{tmp_path}/url")

    assert (done.status, done.error) == (0, "")
    assert ("the copy is complete now" in done.out) == renamed
    assert not database_copy.is_unfinished(target_engine)
    assert not file.exists()
    source = db.make_engine(f"sqlite:///{db.copied_name(file)}")
    assert rows(target_engine) == rows(source)
    source.dispose()


def test_nobody_begins_anew_beside_the_old_file(device, file, stop, settings, target, tmp_path):
    """Whoever opens SQLite afterwards is told, and makes no empty database."""
    stop()
    database_copy.copy(file, target, lambda _line: None)
    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)

    for words in (["migrate"], ["user", "list"]):
        done = run_vpn_portal(settings_file, *words)
        assert done.status == 1
        assert f"is {file}.copied now; the settings still name SQLite" in done.error
    assert not file.exists()
    assert file.with_name(f"{file.name}.copied").exists()
    assert list(file.parent.glob("portal.sqlite*")) == [db.copied_name(file)]


def test_error_within_a_copy_quotes_no_row(device, file, stop, target, monkeypatch):
    stop()
    send = database_copy._send

    def spoil(connection, table, found):
        if table.name == "users":
            found = [(row[0], "x" * 300, *row[2:]) for row in found]
        send(connection, table, found)

    monkeypatch.setattr(database_copy, "_send", spoil)

    with pytest.raises(Unavailable) as caught:
        database_copy.copy(file, target, lambda _line: None)
    assert "value too long for type character varying(255); repeat" in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_database_that_is_not_empty_is_refused(device, file, stop, target, target_engine):
    stop()
    migrations.upgrade(target_engine)
    with target_engine.begin() as connection:
        connection.execute(
            insert(User).values(name="mallory", permissions=[], is_disabled=False, created_at=utc_now())
        )
    before = rows(target_engine)

    with pytest.raises(Conflict, match=r"the target is not empty \(users\)"):
        database_copy.copy(file, target, lambda _line: None)

    assert rows(target_engine) == before
    assert file.exists()


def test_database_of_something_else_is_refused(device, file, stop, target, target_engine):
    stop()
    with target_engine.begin() as connection:
        connection.execute(text("CREATE TABLE books (title text)"))

    with pytest.raises(Conflict, match=r"something else \(table books\)"):
        database_copy.copy(file, target, lambda _line: None)

    assert sqlalchemy.inspect(target_engine).get_table_names() == ["books"]


def test_portal_that_runs_keeps_its_file(device, file, target, target_engine):
    with transaction(read_only=True) as session:
        session.scalar(select(func.count()).select_from(Authorization))

    with pytest.raises(Conflict, match=r"is in use; stop vpn-portal\.socket"):
        database_copy.copy(file, target, lambda _line: None)

    assert sqlalchemy.inspect(target_engine).get_table_names() == []
    assert device.info().status_code == 200


def test_two_copies_at_once(device, file, stop, target, target_engine):
    stop()
    with target_engine.connect() as other:
        other.execute(select(func.pg_advisory_lock(database_copy.LOCK_KEY)))
        with pytest.raises(Conflict, match="another copy into this database is under way"):
            database_copy.copy(file, target, lambda _line: None)
    assert file.exists()


def test_row_that_arrives_otherwise_is_noticed(device, file, stop, target, target_engine, monkeypatch):
    stop()
    send = database_copy._send

    def spoil(connection, table, found):
        send(connection, table, found)
        if table.name == "users":
            connection.execute(text("UPDATE users SET name = 'mallory' WHERE name = 'alice'"))

    monkeypatch.setattr(database_copy, "_send", spoil)

    with pytest.raises(Conflict, match="users: 2 rows arrived of 2, or other ones"):
        database_copy.copy(file, target, lambda _line: None)

    assert file.exists()
    assert database_copy.is_unfinished(target_engine)


def test_unfinished_copy_serves_nobody(device, file, stop, settings, target, tmp_path):
    stop()
    interrupt_after_users(file, target)
    settings.database_url_file.write_text(target)
    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)

    done = run_vpn_portal(settings_file, "migrate")

    assert done.status == 1
    assert "a copy into this database was begun and is not complete" in done.error


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("postgresql+psycopg://causeway:secret@db1/causeway", "everyone here would see its password"),
        ("sqlite:////tmp/other.sqlite", "only PostgreSQL takes a copy"),
        ("db1", "no URL"),
        ("@/nowhere/url", "/nowhere/url: No such file"),
    ],
)
def test_wrong_target_changes_nothing(file, settings: Settings, tmp_path, to, said):
    settings_file = tmp_path / "settings.toml"
    write_settings(settings, settings_file)

    done = run_vpn_portal(settings_file, "database", "copy", "--to", to)

    assert done.status == 1
    assert said in done.error
    assert "secret" not in done.error
    assert file.exists()
