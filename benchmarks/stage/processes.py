"""What a process has used, from /proc and its clock."""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Let what starts meanwhile run on one core of this process's, counted from 0; one core serves all."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[number % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Used:
    """CPU seconds since the process began; ``children`` are those that have ended. ``at`` is monotonic."""

    at: float
    own: float
    children: float

    @classmethod
    def by(cls, pid: int) -> "Used":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, ended_user, ended_system = map(int, fields[11:15])
        return cls(time.monotonic(), (user + system) / _TICK, (ended_user + ended_system) / _TICK)

    def share_until(self, later: "Used") -> tuple[float, float]:
        """Return the percent of one core that the process and its children took until ``later``."""
        seconds = later.at - self.at
        return 100 * (later.own - self.own) / seconds, 100 * (later.children - self.children) / seconds


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Return the resident memory, or the most it ever was."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


def used_by_all(pid: int) -> float:
    """Return the CPU seconds of a process, its living children and theirs, and those that have ended.

    The living are read from their clocks, to the nanosecond: /proc counts in hundredths of a second, too
    coarse for a block of some requests.
    """
    used = _clock(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):  # ended this moment
            used += used_by_all(int(child))
    return used + Used.by(pid).children


def _clock(pid: int) -> float:
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)
