"""What time it is, when the host's own clock may be wrong or be set (reliability R52, R61).

The portal that leads says its time with each full set (the ``Date`` header). From then on time is the
portal's, carried on by the kernel's boot-time counter. Before that it is the host's clock, which may jump
ahead but not back.
"""

import time
from collections.abc import Callable


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Seconds since 1970, by the portal if one has spoken."""

    def __init__(
        self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = _boot_time
    ) -> None:
        self._wall, self._elapsed = wall, elapsed
        self._offset = wall() - elapsed()
        self._portal = False

    def now(self) -> float:
        carried = self._elapsed() + self._offset
        return carried if self._portal else max(carried, self._wall())

    def hear(self, portal_time: float) -> None:
        self._offset = portal_time - self._elapsed()
        self._portal = True

    @property
    def skew_seconds(self) -> float:
        """How far the host's clock is ahead of the portal's; 0 while no portal has spoken."""
        return self._wall() - self.now() if self._portal else 0.0
