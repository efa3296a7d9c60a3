"""What keeps two servers from both taking writes (roles/postgresql/files/replication), on two real ones."""

import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "roles/postgresql/files/replication"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
CONFIGURATION = """
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = '{directory}'
primary_conninfo = '{conninfo}'
wal_keep_size = '64MB'
wal_sender_timeout = 2s
wal_receiver_timeout = 2s
wal_retrieve_retry_interval = 1s
shared_buffers = 16MB
fsync = off
"""


def as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def eventually(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, f"not in time: {what}"
        time.sleep(0.1)


@dataclass
class Server:
    """One server, its marks, and the program as it runs beside it."""

    directory: Path
    port: int
    peer_port: int
    watching: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        for path in (self.directory, self.marks):
            path.mkdir()
        conninfo = f"host=127.0.0.1 port={self.peer_port} user=postgres connect_timeout=2"
        conninfo += " application_name=causeway"
        settings = {
            "own": self.directory.name, "peer": "the other one", "address": "127.0.0.1", "conninfo": conninfo,
            "data": str(self.data), "version": PROGRAMS.parts[-2], "marks": str(self.marks),
            "portal_role": "causeway", "ask_seconds": 1,
        }  # fmt: skip
        (self.directory / "replication.json").write_text(json.dumps(settings))
        # PostgreSQL's user may not be let into the checkout, such as one below /root.
        self.program = shutil.copy(PROGRAM, self.directory)
        self.configuration = CONFIGURATION.format(port=self.port, directory=self.directory, conninfo=conninfo)
        if os.geteuid() == 0:
            for path in (self.directory, self.marks):
                os.chown(path, pwd.getpwnam("postgres").pw_uid, -1)

    @property
    def data(self) -> Path:
        return self.directory / "main"

    @property
    def marks(self) -> Path:
        return self.directory / "marks"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PGHOST": str(self.directory), "PGPORT": str(self.port), "PGUSER": "postgres",
            "CAUSEWAY_REPLICATION": str(self.directory / "replication.json"),
        }  # fmt: skip

    @property
    def is_alone(self) -> bool:
        return (self.marks / "alone").exists()

    def begin(self) -> None:
        """Make it the first one, as the role does."""
        words = ["-U", "postgres", "-A", "trust", "--locale=C", "-E", "UTF8", "--no-sync"]
        self.run(PROGRAMS / "initdb", "-D", self.data, *words)
        self.configure("postgresql.conf")
        self.start()
        self.sql("CREATE ROLE causeway LOGIN; CREATE TABLE written (n int); GRANT ALL ON written TO causeway")
        self.run("touch", self.marks / "alone", self.marks / "begun")

    def configure(self, name: str) -> None:
        with (self.data / name).open("a") as file:
            file.write(self.configuration)

    def copy_the_other(self) -> None:
        self.replication("clone", check=True)
        # The copy has the other one's.
        self.configure("postgresql.auto.conf")
        self.start()

    def run(self, *words: Any, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [*as_postgres(), *map(str, words)],
            capture_output=True, text=True, check=False, env=self.environment, cwd="/", timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def replication(self, word: str, *, check: bool = False) -> "subprocess.CompletedProcess[str]":
        return self.run(sys.executable, self.program, word, check=check)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.replication("status", check=True).stdout))

    def sql(self, statement: str, *, user: str = "postgres") -> str:
        """Execute it; return what was said about it beside its answer."""
        return self.run("psql", "-X", "-q", "-U", user, "-d", "postgres", "-c", statement).stderr

    def start(self) -> None:
        self.run(PROGRAMS / "pg_ctl", "start", "-w", "-D", self.data, "-l", self.directory / "log")

    def crash(self) -> None:
        self.run(PROGRAMS / "pg_ctl", "stop", "-m", "immediate", "-D", self.data)

    def watch(self) -> None:
        words = [*as_postgres(), sys.executable, str(self.program), "watch"]
        self.watching.append(
            subprocess.Popen(words, env=self.environment, cwd="/", stdout=subprocess.DEVNULL, stderr=None)
        )

    def end(self) -> None:
        for process in self.watching:
            process.kill()
            process.wait()
        if (self.data / "postmaster.pid").exists():
            self.run(PROGRAMS / "pg_ctl", "stop", "-m", "immediate", "-D", self.data, check=False)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """The first one takes writes and is alone; the second one does not exist yet."""
    directory = Path(tempfile.mkdtemp(prefix="causeway-replication-"))
    directory.chmod(0o755)
    ports = free_port(), free_port()
    pair = Server(directory / "one", *ports), Server(directory / "two", *reversed(ports))
    try:
        pair[0].begin()
        yield pair
    finally:
        for server in pair:
            server.end()
        shutil.rmtree(directory)


@pytest.fixture
def pair(servers: tuple[Server, Server]) -> tuple[Server, Server]:
    """One takes writes, the other one is its standby and in step."""
    first, second = servers
    second.copy_the_other()
    first.watch()
    eventually(lambda: not first.is_alone, "the standby is in step")
    return first, second


def test_primary_waits_for_its_standby_until_it_is_written_down_as_alone(pair):
    first, second = pair
    assert first.sql("INSERT INTO written VALUES (1)", user="causeway") == ""
    assert first.status()["waits_for_standby"]

    second.crash()
    said = first.sql("INSERT INTO written VALUES (2)", user="causeway")

    assert "canceling wait for synchronous replication" in said
    eventually(lambda: first.sql("INSERT INTO written VALUES (3)", user="causeway") == "", "it goes on")
    assert first.is_alone
    assert not first.status()["waits_for_standby"]

    second.start()
    eventually(lambda: not first.is_alone, "the standby is in step again")


def test_primary_that_no_portal_reaches_goes_on_for_nobody(pair):
    """It may be the one that was given up: when the network is back it must not take writes at once."""
    first, second = pair

    second.crash()

    ends_at = time.monotonic() + 8
    while time.monotonic() < ends_at:
        assert not first.is_alone
        time.sleep(0.2)
    assert first.status()["waits_for_standby"]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("other", ["standby", "away", "promoted"])
def test_server_that_took_writes_starts_only_when_the_other_one_takes_none(pair, other, alone):
    first, second = pair
    first.end()
    if alone:
        (first.marks / "alone").touch()
    if other == "away":
        second.crash()
    elif other == "promoted":
        second.replication("promote", check=True)

    done = first.replication("may-start")

    assert (done.returncode == 0) == (other == "standby" or (other == "away" and alone))
    if other == "promoted":
        assert "takes writes, and this server's data is older" in done.stderr
        assert not first.is_alone, "it would start by itself when the promoted one is away for a moment"
    elif done.returncode:
        assert "the other one does not answer (" in done.stderr


def test_standby_starts_whatever_the_other_one_does(pair):
    first, second = pair
    second.crash()
    first.end()

    assert second.replication("may-start").returncode == 0


def test_server_that_was_promoted_earlier_gives_way(pair):
    first, second = pair
    # As if the other one had been out of sight: it does not ask.
    second.run(PROGRAMS / "pg_ctl", "promote", "-w", "-D", second.data)

    eventually(lambda: first.status()["role"] == "down", "the older one stops")
    assert second.status()["role"] == "primary"


def test_promotion_is_refused_while_the_other_one_takes_writes(pair):
    first, second = pair

    done = second.replication("promote")

    assert (done.returncode, done.stderr) == (1, "the other one takes writes; stop it first\n")
    assert second.status()["role"] == "standby"
    assert first.replication("promote").stderr == "this server takes writes already\n"


def test_copy_keeps_what_was_there_and_the_promoted_one_knows_that_it_is_alone(pair):
    first, second = pair
    first.end()
    second.replication("promote", check=True)
    assert second.is_alone
    second.sql("INSERT INTO written VALUES (4)")

    first.copy_the_other()

    (kept,) = first.directory.glob("main.before-*")
    assert (kept / "PG_VERSION").exists()
    assert first.status()["role"] == "standby"
    second.watch()
    eventually(lambda: not second.is_alone, "the new standby is in step")


def test_copy_is_refused_without_a_source_and_beside_another_copy(pair):
    first, second = pair
    with (second.marks / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is being copied already" in second.replication("clone").stderr
    first.end()

    done = second.replication("clone")

    assert done.returncode == 1
    assert "takes no writes now, so there is nothing to copy" in done.stderr
    assert (second.data / "standby.signal").exists()


def test_copy_that_runs_is_not_taken_for_the_standby(servers):
    """The primary would confirm what nobody else could serve."""
    first, second = servers
    first.sql("INSERT INTO written SELECT generate_series(1, 300000)")
    first.watch()
    names = "SELECT string_agg(DISTINCT application_name, ',') FROM pg_stat_replication"

    copying = subprocess.Popen(
        [*as_postgres(), sys.executable, str(second.program), "clone"], cwd="/", stdout=subprocess.DEVNULL,
        env=second.environment,
    )  # fmt: skip
    seen = set()
    while copying.poll() is None:
        seen.add(first.run("psql", "-XAt", "-d", "postgres", "-c", names).stdout.strip())

    assert copying.returncode == 0
    assert "causeway_copy" in seen
    assert not any("causeway" in names.split(",") for names in seen)
    assert first.is_alone
