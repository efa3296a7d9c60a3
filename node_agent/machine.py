"""Which run of which machine this is."""

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: systemd writes it when a container begins (systemd.io/CONTAINER_INTERFACE).
_CONTAINER = Path("/run/systemd/container")


def boot_id() -> str:
    return _BOOT_ID.read_text().strip().replace("-", "")


def uptime_seconds() -> float:
    """Return how long this machine is up. A container has a boot id of its own, but its host's counter."""
    counted = time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        return min(counted, max(0.0, time.time() - _CONTAINER.stat().st_mtime))
    except OSError:
        return counted
