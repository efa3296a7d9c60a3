"""Waiting for what happens after an answer: nodes are told of the end of others in the background."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "did not happen in time"
        time.sleep(0.02)
