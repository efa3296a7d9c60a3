"""WireGuard sessions, derived from handshakes.

WireGuard knows no sessions: a client that has something to send shakes hands every two minutes. A session
starts with a handshake after at least 180 s without one, and ends 180 s after its last one or when its peer
is removed.
"""

import secrets
from collections.abc import Mapping, Sequence

from node_agent.journal import Journal, OpenSession
from node_agent.wireguard import Counters
from vpn_core.messages import WIREGUARD, Connection

#: REJECT_AFTER_TIME of the WireGuard protocol: without a new handshake nothing passes any more.
QUIET_SECONDS = 180
ZERO = Counters(0, 0, 0, None)


class WireGuardSessions:
    """The sessions of one interface's peers; ``journal`` gets their starts and ends."""

    def __init__(self, journal: Journal, *, origins: bool) -> None:
        self._journal = journal
        self._origins = origins
        self._open = {s.connection_id: s for s in journal.open.values() if s.protocol == WIREGUARD}
        self._before: dict[str, Counters] = {}

    def admitted(self, connection: Connection) -> None:
        """Take a new peer's counters as starting at zero."""
        self._before.setdefault(str(connection.public_key), ZERO)

    def observe(
        self, connections: Sequence[Connection], counters: Mapping[str, Counters], now: float
    ) -> None:
        """Compare one look at these peers with the one before; ``observed`` follows when all are done."""
        for connection in connections:
            session, key = self._open.get(connection.connection_id), str(connection.public_key)
            seen = counters.get(key)
            if seen is not None:
                # Most peers rest most of the time.
                if session is not None or now - seen.last_handshake_at < QUIET_SECONDS:
                    self._observe_peer(connection, session, seen, now)
            elif session is not None:
                self._end_if_quiet(session, now)
            # What the interface does not have yet, or lost, starts at zero there.
            self._before[key] = ZERO if seen is None else seen

    def observed(
        self, entries: Mapping[str, Connection], counters: Mapping[str, Counters], now: float
    ) -> None:
        """End what no connection of ``entries`` is behind; remember what a stranger's counters were."""
        for session in [s for s in self._open.values() if s.connection_id not in entries]:
            self._end(session, min(int(now), session.last_at + QUIET_SECONDS))
        keys = [str(c.public_key) for c in entries.values() if c.protocol == WIREGUARD]
        self._before = dict(counters) | {key: self._before.get(key, ZERO) for key in keys}

    def _observe_peer(
        self, connection: Connection, session: OpenSession | None, seen: Counters, now: float
    ) -> None:
        handshake = min(seen.last_handshake_at, int(now))
        if session is None:
            if handshake and now - handshake < QUIET_SECONDS:
                self._start(connection, seen, handshake)
            return
        if handshake - session.last_at >= QUIET_SECONDS:
            # Between two looks, or while the agent was away, one session ended and another one started. What
            # passed since then counts for the new one: in normal times these are a few seconds.
            self._before[str(connection.public_key)] = Counters(
                session.last_at, session.raw_received, session.raw_sent, None
            )
            self._end(session, session.last_at + QUIET_SECONDS)
            self._start(connection, seen, handshake)
            return
        if session.count(seen.received_bytes, seen.sent_bytes):
            self._journal.touch(session)
        if handshake > session.last_at:
            session.last_at = handshake
            self._journal.touch(session)
        self._end_if_quiet(session, now)

    def _start(self, connection: Connection, seen: Counters, handshake: int) -> None:
        before = self._before.get(str(connection.public_key), seen)
        session = OpenSession(
            session_id=secrets.token_hex(16),
            connection_id=connection.connection_id,
            profile_id=connection.profile_id,
            protocol=WIREGUARD,
            started_at=handshake,
            ipv4=connection.ipv4,
            ipv6=connection.ipv6,
            origin=seen.endpoint if self._origins else None,
            last_at=handshake,
            raw_received=before.received_bytes,
            raw_sent=before.sent_bytes,
        )
        session.count(seen.received_bytes, seen.sent_bytes)
        self._open[connection.connection_id] = session
        self._journal.start(connection, session)

    def _end_if_quiet(self, session: OpenSession, now: float) -> None:
        if now - session.last_at >= QUIET_SECONDS:
            self._end(session, session.last_at + QUIET_SECONDS)

    def _end(self, session: OpenSession, at: int) -> None:
        self._open.pop(session.connection_id, None)
        self._journal.end(session, at)

    def removed(self, connection: Connection, last: Counters | None, now: float) -> None:
        """End what a removed peer had; ``last`` are its last counters."""
        if last is not None:
            self._observe_peer(connection, self._open.get(connection.connection_id), last, now)
        session = self._open.get(connection.connection_id)
        if session is not None:
            self._end(session, min(int(now), session.last_at + QUIET_SECONDS))
        self._before.pop(str(connection.public_key), None)
