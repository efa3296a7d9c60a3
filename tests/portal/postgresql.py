"""A real PostgreSQL from Debian's package, on a UNIX socket in a directory of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30

_OPTIONS = {"listen_addresses": "", "max_connections": "120", "log_min_messages": "fatal"}
#: Nothing here survives a test session, so nothing has to reach the disk.
_HASTY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        raise RuntimeError("no PostgreSQL under /usr/lib/postgresql; install Debian's package postgresql")
    return found[-1].parent


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """Run one cluster and yield the start of its URLs, which a database name completes.

    ``durable``: a commit reaches the disk, as with Debian's settings.
    """
    binaries, as_postgres = _binaries(), _as_postgres()
    directory = Path(tempfile.mkdtemp(prefix="causeway-pg-"))
    try:
        if as_postgres:
            os.chown(directory, pwd.getpwnam("postgres").pw_uid, -1)
        data = directory / "data"
        subprocess.run(
            [*as_postgres, binaries / "initdb", "-D", data, "-U", "test", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        chosen = _OPTIONS | ({} if durable else _HASTY)
        options = [word for key, value in chosen.items() for word in ("-c", f"{key}={value}")]
        server = subprocess.Popen(
            [*as_postgres, binaries / "postgres", "-D", data, "-k", directory, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        try:
            _wait(binaries, directory, server)
            yield f"postgresql+psycopg://test@/{{}}?host={directory}"
        finally:
            server.terminate()
            server.wait(START_SECONDS)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait(binaries: Path, directory: Path, server: "subprocess.Popen[bytes]") -> None:
    ends_at = time.monotonic() + START_SECONDS
    while subprocess.run([binaries / "pg_isready", "-h", directory, "-q"], check=False, cwd="/").returncode:
        if server.poll() is not None or time.monotonic() > ends_at:
            raise RuntimeError("PostgreSQL did not start")
        time.sleep(0.05)
