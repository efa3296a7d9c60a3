"""What connections use at this moment, asked of their nodes: nothing of it is stored.

A page must not wait for a node that is away: all are asked at once, and after a second what was not said is
unknown. A rate needs two answers; the one before is remembered for a while in this process.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from portal_app.agents import Agents
from portal_app.services.nodes import NodeRef
from vpn_core.messages import Usage

log = logging.getLogger(__name__)

SECONDS = 1.0
#: An answer is compared with one that is at least this old, and at most: then it tells nothing of now.
_NEAREST_SECONDS, _OLDEST_SECONDS = 2.0, 90.0
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Live:
    """What one connection uses; ``sent`` is what its user sent. The rate is bytes a second, if known."""

    active: bool
    sent_bytes: int
    received_bytes: int
    handshake_at: datetime | None
    addresses: tuple[str, ...]
    origin: str | None
    rate: float | None


class _Memory:
    """The answers before, by connection: when, bytes of both ways, and the rate since the one before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, tuple[float, int, float | None]] = OrderedDict()

    def rate(self, connection_id: str, total: int, now: float) -> float | None:
        with self._lock:
            before = self._seen.get(connection_id)
            if before is not None and now - before[0] < _NEAREST_SECONDS:
                return before[2]
            rate = None
            # Counters begin again at zero when a client comes again.
            if before is not None and now - before[0] <= _OLDEST_SECONDS and total >= before[1]:
                rate = (total - before[1]) / (now - before[0])
            self._seen[connection_id] = (now, total, rate)
            self._seen.move_to_end(connection_id)
            while len(self._seen) > _MOST_REMEMBERED:
                self._seen.popitem(last=False)
            return rate


_memory = _Memory()


class Pending:
    """Nodes that were asked about connections of theirs, all at once, while whoever asked goes on."""

    def __init__(
        self, agents: Agents, wanted: Mapping[NodeRef, Collection[str]], *, seconds: float = SECONDS
    ) -> None:
        self._ends_at = time.monotonic() + seconds
        self._calls = [
            (set(ids), agents.start(partial(agents.usage, node, only=sorted(set(ids)), seconds=seconds)))
            for node, ids in wanted.items()
            if ids
        ]

    def found(self) -> dict[str, Live]:
        """Return what they say; who does not answer in time says nothing."""
        said: dict[str, Live] = {}
        for ids, call in self._calls:
            try:
                answer = call.result(max(0.0, self._ends_at - time.monotonic()))
            except Exception as error:
                # Whatever it is: what a node says, or does not, keeps nobody from a page.
                log.debug("no usage: %s", type(error).__name__)
                continue
            now = time.monotonic()
            # A node speaks of what it was asked for, and no other's.
            said.update({u.connection_id: _live(u, now) for u in answer if u.connection_id in ids})
        return said


def _live(usage: Usage, now: float) -> Live:
    handshake = usage.last_handshake_at
    return Live(
        active=usage.active,
        # The node received what the user sent.
        sent_bytes=usage.received_bytes,
        received_bytes=usage.sent_bytes,
        handshake_at=_moment(handshake) if handshake else None,
        addresses=tuple(filter(None, (usage.ipv4, usage.ipv6))),
        origin=usage.origin,
        rate=_memory.rate(usage.connection_id, usage.received_bytes + usage.sent_bytes, now),
    )


def _moment(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
