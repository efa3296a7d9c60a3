"""Who comes first is served first, where only so many can be at work at once."""

import threading
from collections import deque


class Turns:
    """So many threads at once, in the order of their asking.

    Python's semaphores and locks let a newcomer overtake those who wait: of hundreds some waited for seconds.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[threading.Lock] = deque()

    def take(self, seconds: float) -> bool:
        """Wait for a turn; False if there was none in time."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            called = threading.Lock()
            called.acquire()
            self._waiting.append(called)
        if called.acquire(timeout=seconds):
            return True
        with self._lock:
            if called in self._waiting:
                self._waiting.remove(called)
                return False
        # It was given in the last moment.
        return True

    def give_back(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1

    def waiting(self) -> int:
        return len(self._waiting)

    def are_taken(self) -> bool:
        """Tell whether the next one would have to wait."""
        return not self._free
