"""What takes long to count or to ask for, kept for some seconds by each process."""

import time
from collections.abc import Callable
from typing import TypeVar

from cryptography import x509
from flask import current_app

from portal_app.application import portal
from portal_app.db import transaction
from portal_app.services import peers, statistics
from portal_app.services.statistics import Live

R = TypeVar("R")

LIVE_SECONDS = 10.0
WEB_SECONDS = 600.0


def counts() -> Live:
    """Return who is connected, at most ten seconds ago."""
    return _kept("admin live", LIVE_SECONDS, _count)


def _count() -> Live:
    with transaction(read_only=True) as db:
        return statistics.live(db)


def connections_of_nodes() -> dict[int, int]:
    """Return how many connections each node has, at most ten seconds ago."""
    return _kept("admin connections of nodes", LIVE_SECONDS, _count_of_nodes)


def _count_of_nodes() -> dict[int, int]:
    with transaction(read_only=True) as db:
        return statistics.connections_of_nodes(db)


def web_certificate() -> x509.Certificate | None:
    """Return what this host's web server shows."""
    return _kept(
        "admin web certificate", WEB_SECONDS, lambda: peers.web_certificate(portal().settings.host_name)
    )


def _kept(name: str, seconds: float, find: Callable[[], R]) -> R:
    kept: tuple[float, R] | None = current_app.extensions.get(name)
    if kept is None or time.monotonic() - kept[0] >= seconds:
        kept = time.monotonic(), find()
        current_app.extensions[name] = kept
    return kept[1]
