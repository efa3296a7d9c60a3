"""Lanes of threads, so that slow work waits only for its like (reliability.md R98)."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from portal_app.services import background_errors

logger = logging.getLogger(__name__)


class Lane:
    """Threads for one kind of work, started as they are needed.

    They are daemons, so that the process's end waits for none.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._tasks: deque[Callable[[], None]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False
        self._changed = threading.Condition()

    def submit(self, task: Callable[[], None]) -> None:
        with self._changed:
            self._tasks.append(task)
            if len(self._tasks) > self._idle and len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    def stop(self) -> None:
        """Let each thread end after what it is doing; what waits is dropped."""
        with self._changed:
            self._stopping = True
            self._tasks.clear()
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait so long for all of them together."""
        ends_at = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:
                logger.exception("a task of the controller failed")
                background_errors.note(f"controller {self._name}", error)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._idle += 1
            while not self._tasks and not self._stopping:
                self._changed.wait()
            self._idle -= 1
            return None if self._stopping else self._tasks.popleft()
