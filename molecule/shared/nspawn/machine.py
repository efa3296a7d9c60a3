"""The machine the lab runs on: its packages, its processes, its locks."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

RUNTIME = Path("/run/causeway-lab")
"""What is true only while this machine runs: process ids, locks, numbers taken. Shared by all checkouts."""

_COMMANDS = {  # command: Debian package
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
_FILES = {"/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring"}

ENDS_WITH_US = ("setpriv", "--pdeathsig=KILL")
"""Before a command that writes for long: killed with the lab, so that the next run finds nobody writing."""

_begun = time.monotonic()


class LabError(Exception):
    """Something the lab cannot go on without. The message is one line and names the way out."""


def say(text: str) -> None:
    """Print one line of progress with the seconds since the command began."""
    print(f"[{time.monotonic() - _begun:6.1f} s] {text}", flush=True)


def run(command: Sequence[str | Path], *, stdin: str = "", timeout_seconds: float = 120) -> str:
    """Run a command and return its output; raise LabError with its last error line when it fails."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            input=stdin, capture_output=True, text=True, timeout=timeout_seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LabError(f"{command[0]} did not end within {timeout_seconds:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise LabError(f"{' '.join(map(str, command[:4]))} failed ({done.returncode}): {lines[-1]}")
    return done.stdout


def require_root() -> None:
    """Raise LabError unless this is root on Debian or a system made from it."""
    system = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    if not re.search(r"^ID(_LIKE)?=.*\b(debian|ubuntu)\b", system, re.MULTILINE):
        raise LabError("the lab runs on Debian or Ubuntu only (systemd-nspawn, mmdebstrap, apt)")
    if os.geteuid() != 0:
        raise LabError("the lab needs root (bridge, nftables, systemd-nspawn): run it as root or with sudo")


def install_missing_packages() -> None:
    """Install the Debian packages whose commands are missing on this machine."""
    missing = {package for command, package in _COMMANDS.items() if not shutil.which(command)}
    missing |= {package for file, package in _FILES.items() if not Path(file).exists()}
    if not missing:
        return
    say(f"installing on this machine: {' '.join(sorted(missing))}")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"]
    run([*apt, "update"], timeout_seconds=300)
    run([*apt, "install", "--yes", "--no-install-recommends", *sorted(missing)], timeout_seconds=600)


def give_to_caller(*paths: Path) -> None:
    """Under sudo, hand files over to the user who called: their Ansible reads the key and the inventory."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group:
        for path in paths:
            os.chown(path, int(user), int(group), follow_symlinks=False)


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file so that a crash leaves the old or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    beside.replace(path)


def remove_tree(path: Path, timeout_seconds: float = 10) -> None:
    """Remove a directory, also one that a process killed a moment ago still writes to."""
    deadline = time.monotonic() + timeout_seconds
    while path.exists():
        try:
            shutil.rmtree(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def locked(name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a machine-wide lock. The kernel releases it when this process ends, however it ends."""
    directory = RUNTIME / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (directory / name).open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another run of the lab (lock {name})", file=sys.stderr, flush=True)
            fcntl.flock(file, kind)
        yield


def record_process(path: Path, pid: int) -> None:
    """Write down a process so that it can be told from a later one with the same id."""
    started = _start_time(pid)
    if started is None:
        raise LabError(f"process {pid} ended before it could be recorded in {path.name}")
    write_atomically(path, json.dumps({"pid": pid, "started": started, "boot": _boot_id()}))


def recorded_process(path: Path) -> int | None:
    """Return the id of a recorded process, or None when it has ended or was never recorded."""
    try:
        record = json.loads(path.read_text())
        same = record["boot"] == _boot_id() and record["started"] == _start_time(record["pid"])
    except (OSError, ValueError, KeyError):
        return None
    return int(record["pid"]) if same else None


def end_process(path: Path, *, how: signal.Signals, timeout_seconds: float) -> bool:
    """Send a signal to a recorded process and wait; True when it is gone."""
    deadline = time.monotonic() + timeout_seconds
    if (pid := recorded_process(path)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
    while recorded_process(path) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def container_init(supervisor: int) -> int | None:
    """Return the child of a systemd-nspawn that is process 1 of its host."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            ids = fields.get("NSpid", "").split()
            if fields.get("PPid", "").strip() == str(supervisor) and len(ids) > 1 and ids[-1] == "1":
                return int(status.parent.name)
    return None


def enter_own_cgroup(name: str) -> None:
    """Move this process to a control group of its own.

    Two hosts booted from the same group would share one tree of services: the process 1 of each would
    remove groups of the other.
    """
    for directory in _cgroups(name):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.procs").write_text(str(os.getpid()))


def remove_cgroup(name: str) -> None:
    """Remove what a host that is off left of its control groups."""
    for directory in _cgroups(name):
        for path, _, _ in os.walk(directory, topdown=False):
            _rmdir_soon(Path(path))


def _cgroups(name: str) -> list[Path]:
    """Where a group goes: in systemd's own hierarchy (version 1) and in the unified one, if mounted."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    trees = [
        mount for _, mount, kind, how, *_ in mounts if kind == "cgroup2" or "name=systemd" in how.split(",")
    ]
    return [Path(tree) / f"causeway-{name}" for tree in trees]


def _rmdir_soon(path: Path, timeout_seconds: float = 2) -> None:
    """A group stays busy for a moment after its last process was killed."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        else:
            return


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to a process's begin (proc_pid_stat(5), field 22); None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
