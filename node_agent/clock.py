"""What time it is, when the host's own clock may be wrong or be set (reliability R52, R61).

The portal that leads says its time with each full set (the ``Date`` header). From then on time is the
portal's, carried on by the kernel's boot-time counter, over restarts of the agent too. Before that it is the
host's clock, which may jump ahead but not back. What ``wg`` and OpenVPN say is in the host's time.
"""

import time
from collections.abc import Callable


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


#: A ``Date`` has whole seconds: what differs by less is the same time.
SAME_SECONDS = 1.5


class Clock:
    """Seconds since 1970, by the portal if one has spoken."""

    def __init__(
        self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = _boot_time
    ) -> None:
        self._wall, self._elapsed = wall, elapsed
        self._offset = wall() - elapsed()
        self._portal = False
        #: A time of the portal that lies behind what it said before, and the offset that it would mean.
        self._doubted: tuple[float, float] | None = None

    @property
    def offset(self) -> float | None:
        """What the portal's time is ahead of the boot-time counter; None while no portal has spoken."""
        return self._offset if self._portal else None

    def resume(self, offset: float) -> None:
        """Go on with what a portal said before, in the same boot of this host."""
        self._offset, self._portal = offset, True

    def now(self) -> float:
        carried = self._elapsed() + self._offset
        return carried if self._portal else max(carried, self._wall())

    def hear(self, portal_time: float) -> None:
        """Follow the portal: ahead at once, back only when a later message says the same.

        What was long on its way, perhaps while this process was frozen, says a time that is over.
        """
        offset = portal_time - self._elapsed()
        doubted, self._doubted = self._doubted, None
        if not self._portal or offset - self._offset >= SAME_SECONDS:
            self.resume(offset)
        elif self._offset - offset >= SAME_SECONDS:
            if doubted and portal_time - doubted[0] >= SAME_SECONDS > abs(offset - doubted[1]):
                self.resume(offset)
            else:
                self._doubted = portal_time, offset

    def from_wall(self, seconds: float) -> float:
        """Return a time of the host's clock, as programs on it say it, in the portal's time."""
        return seconds - self.skew_seconds

    @property
    def skew_seconds(self) -> float:
        """How far the host's clock is ahead of the portal's; 0 while no portal has spoken."""
        return self._wall() - self.now() if self._portal else 0.0
