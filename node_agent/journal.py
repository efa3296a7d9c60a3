"""The session journal: starts and ends of sessions, kept on disk until a portal has them, for a bounded time.

Portals read from a sequence number on and so acknowledge what came before. Only what is on disk is read: a
number is never given to two events, whatever crashes. Open sessions stay in the file after their start was
acknowledged, so that a restarted agent goes on with them.
"""

import logging
import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from node_agent import records
from node_agent.records import Record, RecordFile
from vpn_core.errors import MessageError
from vpn_core.messages import Connection, Events, SessionEvent

log = logging.getLogger(__name__)

EVENTS_PER_ANSWER = 1000
MOST_EVENTS = 100_000


@dataclass
class OpenSession:
    """A session that has not ended. ``last_at`` is the last sign of life; counters are those of the session.

    ``raw_received`` and ``raw_sent`` are what the peer's own counters showed when these were last updated.
    ``process`` names the OpenVPN process.
    """

    session_id: str
    connection_id: str
    profile_id: str
    protocol: str
    started_at: int
    ipv4: str | None
    ipv6: str | None
    origin: str | None
    last_at: int
    received_bytes: int = 0
    sent_bytes: int = 0
    raw_received: int = 0
    raw_sent: int = 0
    process: str = ""

    def count(self, raw_received: int, raw_sent: int) -> bool:
        """Add what the peer's counters have grown by; a smaller number means that they began anew."""
        before = (self.raw_received, self.raw_sent)
        self.received_bytes += raw_received - (self.raw_received if raw_received >= self.raw_received else 0)
        self.sent_bytes += raw_sent - (self.raw_sent if raw_sent >= self.raw_sent else 0)
        self.raw_received, self.raw_sent = raw_received, raw_sent
        return before != (raw_received, raw_sent)


class Journal:
    """Events and open sessions. Methods change memory at once; ``flush`` makes it last."""

    def __init__(self, path: Path, days: int) -> None:
        self.journal_id = secrets.token_hex(16)
        self.open: dict[str, OpenSession] = {}
        self.problem = ""
        self._events: deque[SessionEvent] = deque()
        self._next = 1
        self._durable = 0
        self._days = days
        self._marked: set[str] = set()
        self._file = RecordFile(path, self._snapshot)

    def load(self) -> None:
        """Read the file; a damaged one keeps what is readable under a new journal id."""
        loaded = records.load(self._file.path)
        try:
            for record in loaded.records:
                self._apply(record)
        except (KeyError, TypeError, ValueError, MessageError) as error:
            loaded = records.Loaded(records.DAMAGED, [], f"{self._file.path}: {error}")
        if loaded.state == records.DAMAGED:
            self.journal_id = secrets.token_hex(16)
            self.problem = f"{loaded.problem}; sessions may be missing"
            log.error("event=journal_damaged problem=%r", self.problem)
        self._file.replace()

    async def flush(self) -> bool:
        head = self._next - 1
        saved = await self._file.flush()
        if saved:
            self._durable = max(self._durable, head)
        return saved

    @property
    def problems(self) -> list[str]:
        return [text for text in (self.problem, self._file.problem) if text]

    @property
    def head(self) -> int:
        return self._durable

    def start(self, connection: Connection, session: OpenSession) -> None:
        """Write the start of a session."""
        self.open[session.session_id] = session
        log.info(
            "event=session_start connection=%s protocol=%s ipv4=%s ipv6=%s",
            session.connection_id,
            session.protocol,
            session.ipv4,
            session.ipv6,
        )
        # First: of an append that a power cut tore, a start alone would never end, and begin once more.
        self._file.append(_opened(session))
        self._write(
            SessionEvent(
                sequence=self._next,
                kind="start",
                session_id=session.session_id,
                connection_id=connection.connection_id,
                profile_id=connection.profile_id,
                protocol=connection.protocol,
                at=session.started_at,
                ipv4=session.ipv4,
                ipv6=session.ipv6,
                origin=session.origin,
            )
        )

    def end(self, session: OpenSession, at: int) -> None:
        """Write the end of a session with its counters."""
        self.open.pop(session.session_id, None)
        self._marked.discard(session.session_id)
        log.info(
            "event=session_end connection=%s protocol=%s received=%d sent=%d",
            session.connection_id,
            session.protocol,
            session.received_bytes,
            session.sent_bytes,
        )
        self._write(
            SessionEvent(
                sequence=self._next,
                kind="end",
                session_id=session.session_id,
                connection_id=session.connection_id,
                profile_id=session.profile_id,
                protocol=session.protocol,
                at=max(at, session.started_at),
                ipv4=session.ipv4,
                ipv6=session.ipv6,
                origin=session.origin,
                started_at=session.started_at,
                received_bytes=session.received_bytes,
                sent_bytes=session.sent_bytes,
            )
        )

    def _write(self, event: SessionEvent) -> None:
        self._events.append(event)
        self._next += 1
        self._file.append({"op": "event", "event": event})
        if len(self._events) > MOST_EVENTS:
            self._events.popleft()

    def touch(self, session: OpenSession) -> None:
        """Remember that a session's counters changed, for the next ``mark``."""
        self._marked.add(session.session_id)

    def mark(self) -> None:
        """Write the counters of sessions that changed: what a power cut leaves of them."""
        changed = [_opened(self.open[i]) for i in self._marked if i in self.open]
        self._marked.clear()
        self._file.append(*changed)

    def acknowledge(self, sequence: int) -> None:
        """Drop what a portal has."""
        sequence = min(sequence, self._durable)
        if self._events and self._events[0].sequence <= sequence:
            while self._events and self._events[0].sequence <= sequence:
                self._events.popleft()
            self._file.append({"op": "acknowledged", "sequence": sequence})

    def forget_old(self, now: float) -> None:
        """Drop what no portal fetched in time; readers see the gap in ``first``."""
        oldest = now - self._days * 86400
        dropped = 0
        while self._events and self._events[0].at < oldest:
            dropped = self._events.popleft().sequence
        if dropped:
            log.warning("event=journal_dropped up_to=%d", dropped)
            self._file.append({"op": "acknowledged", "sequence": dropped})

    def read(self, after: int) -> Events:
        """Return what follows ``after`` and is on disk."""
        first = self._events[0].sequence if self._events else self._next
        skip = max(0, after + 1 - first)
        found = tuple(
            event
            for event in islice(self._events, skip, skip + EVENTS_PER_ANSWER)
            if event.sequence <= self._durable
        )
        return Events(self.journal_id, first, self._durable, found)

    def _snapshot(self) -> Iterator[Record]:
        yield {"op": "journal", "id": self.journal_id, "next": self._next}
        for session in self.open.values():
            yield _opened(session)
        for event in self._events:
            yield {"op": "event", "event": event}

    def _apply(self, record: Record) -> None:
        op = record["op"]
        if op == "journal":
            self.journal_id, self._next = record["id"], record["next"]
            self._durable = self._next - 1
        elif op == "open":
            session = OpenSession(**record["session"])
            self.open[session.session_id] = session
        elif op == "event":
            event = SessionEvent.parse(record["event"])
            self._events.append(event)
            self._next = max(self._next, event.sequence + 1)
            self._durable = self._next - 1
            if event.kind == "end":
                self.open.pop(event.session_id, None)
        elif op == "acknowledged":
            while self._events and self._events[0].sequence <= record["sequence"]:
                self._events.popleft()
        else:
            raise KeyError(op)


def _opened(session: OpenSession) -> Record:
    """Return an open session as it is now: a thread writes it later."""
    return {"op": "open", "session": dict(vars(session))}
