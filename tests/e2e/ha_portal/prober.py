"""Somebody who asks the portal again and again, and how long nobody would have got an answer."""

import ssl
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Self

from tests.e2e.hosts import Deployment

EVERY_SECONDS = 0.05
ANSWER_SECONDS = 1.0


@dataclass
class Prober:
    """Asks through the portal's name, each time on a new connection, from its ``with`` to its end.

    What it asks needs nginx, the portal, and the database.
    """

    deployment: Deployment
    #: When each request began and ended, and whether it was answered with 200.
    requests: list[tuple[float, float, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.deployment.ca_file))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ends.wait(EVERY_SECONDS):
            began = time.monotonic()
            answered = self._ask()
            self.requests.append((began, time.monotonic(), answered))

    def _ask(self) -> bool:
        try:
            with self._opener.open(f"{self.deployment.portal_url}/healthz", timeout=ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def failed(self) -> int:
        return sum(not answered for _, _, answered in self.requests)

    def longest(self) -> float:
        """Return the longest time, in seconds, from the begin of a refused request to the next answer."""
        longest, since = 0.0, None
        for began, ended, answered in list(self.requests):
            if not answered:
                since = began if since is None else since
                longest = max(longest, ended - since)
            elif since is not None:
                longest, since = max(longest, ended - since), None
        return longest

    def answers_again(self) -> bool:
        return bool(self.requests) and self.requests[-1][2]
