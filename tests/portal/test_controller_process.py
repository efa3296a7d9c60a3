"""The controller as a process: who leads, how it ends, and what it does while the database is away."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import text

from portal_app import db
from portal_app.controller.leader import LOCK_KEY, DatabaseLock, FileLock
from portal_app.errors import Unavailable
from portal_app.settings import Settings
from tests.portal.commands import start_vpn_portal, write_settings

only_postgresql = pytest.mark.parametrize("database", ["postgresql"])
only_sqlite = pytest.mark.parametrize("database", ["sqlite"])


class Process:
    """One ``vpn-portal controller`` with its log."""

    def __init__(self, directory: Path, settings: Settings, name: str) -> None:
        file = directory / f"{name}.toml"
        write_settings(settings, file)
        self.log_file = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] = start_vpn_portal(file, "controller", log=self.log_file)

    def events(self) -> list[str]:
        return re.findall(r"event=(\S+)", self.log_file.read_text())

    def leads(self) -> bool:
        turns = [event for event in self.events() if event in ("leading", "following")]
        return bool(turns) and turns[-1] == "leading"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        self.signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(20)


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started: list[Process] = []

    def start_one(name: str) -> Process:
        started.append(Process(tmp_path, settings, name))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.end()


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "did not come true in time"
        time.sleep(0.1)


@pytest.mark.usefixtures("app")
@only_postgresql
def test_one_of_two_leads_and_the_other_follows_when_it_ends(start):
    """R55: a clean stop hands over."""
    first, second = start("first"), start("second")
    eventually(lambda: first.leads() or second.leads())
    leader, other = (first, second) if first.leads() else (second, first)
    assert not other.leads()

    assert leader.end() == 0

    eventually(other.leads)


@pytest.mark.slow
@pytest.mark.usefixtures("app")
@only_postgresql
def test_leader_that_hangs_is_replaced_and_knows_it_when_it_wakes(start):
    """R55, R95: another leads within 15 s."""
    first = start("first")
    eventually(first.leads)
    second = start("second")
    eventually(lambda: "controller_started" in second.events())

    first.signal(signal.SIGSTOP)
    eventually(second.leads, seconds=15)
    first.signal(signal.SIGCONT)

    eventually(lambda: not first.leads() or "database_unavailable" in first.events())
    assert second.leads()


@pytest.mark.usefixtures("app")
def test_sigterm_ends_it_at_once(start):
    one = start("one")
    eventually(one.leads)

    assert one.end() == 0

    assert one.events()[-1] == "controller_stopped"


@pytest.mark.usefixtures("app")
@only_sqlite
def test_systemd_hears_that_it_is_ready_and_alive(settings, tmp_path, monkeypatch, start):
    """R44 for the controller: a watchdog that the loop itself feeds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        one = start("one")
        assert systemd.recv(100) == b"READY=1"
        assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        one.end()
        said = systemd.recv(100)
        while said == b"WATCHDOG=1":
            said = systemd.recv(100)
        assert said == b"STOPPING=1"


@contextmanager
def database_away(url: str) -> Iterator[None]:
    """Let nobody connect to the database, and end who is."""
    parsed = sqlalchemy.make_url(url)
    admin = sqlalchemy.create_engine(parsed.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        name = {"name": parsed.database}
        connection.execute(text(f"ALTER DATABASE {parsed.database} ALLOW_CONNECTIONS false"))
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), name
        )
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {parsed.database} ALLOW_CONNECTIONS true"))
    admin.dispose()


@pytest.mark.usefixtures("app")
@only_postgresql
def test_outage_of_the_database_is_waited_for_with_one_line(start, settings):
    """R51: it does not end, does not fill the log, and goes on by itself."""
    one = start("one")
    eventually(one.leads)
    with database_away(settings.database_url):
        eventually(lambda: "database_unavailable" in one.events())
    eventually(lambda: "database_back" in one.events() and one.leads())

    assert one.process.poll() is None
    assert one.events().count("database_unavailable") == 1


@pytest.mark.usefixtures("app")
@only_postgresql
def test_lock_is_lost_with_its_session():
    first, second = DatabaseLock(db.engine()), DatabaseLock(db.engine())
    assert first.hold()
    assert not second.hold()
    with db.engine().connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
                 " AND granted AND (classid::bigint << 32) + objid::bigint = :key"),
            {"key": LOCK_KEY},
        )  # fmt: skip

    assert second.hold()
    with pytest.raises(Unavailable):
        first.hold()
    assert not first.hold()
    second.release()
    # PostgreSQL frees it when it notices that the session is over.
    eventually(first.hold)
    first.release()


@pytest.mark.usefixtures("app")
@only_postgresql
def test_database_ends_the_session_of_a_silent_leader():
    """R55: a host without power sends no goodbye."""
    lock = DatabaseLock(db.engine())
    lock.hold()
    assert lock._connection is not None

    values = [
        lock._connection.scalar(text(f"SHOW {name}"))
        for name in ("idle_session_timeout", "tcp_keepalives_idle")
    ]

    # Through a UNIX socket there is no TCP, so keepalive shows 0.
    assert values == ["7s", "0"]
    lock.release()


def test_file_lock_is_held_by_one(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()
