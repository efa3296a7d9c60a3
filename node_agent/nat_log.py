"""Which client's packets left this node from which of its addresses and ports, and when: the log of NAT.

Kept on the node that translates, in one SQLite file, for as many days as the settings say. As RFC 6888
(REQ-12) asks, it does not hold where the packets went. A process of its own writes it (``vpn-node log-nat``),
so that no amount of flows slows the agent; the agent reads it when a portal asks who was behind an address.
What it cannot tell it says: since when it is kept, and when nobody listened.
"""

import logging
import math
import select
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from node_agent import conntrack
from node_agent.conntrack import Change, Flow, Overrun
from node_agent.notify import notify
from node_agent.settings import Settings
from vpn_core.messages import MOST_GAPS, MOST_TRANSLATIONS, Gap, Translation, Translations

log = logging.getLogger(__name__)

FILE = "translations.sqlite"
#: What was told within this time is written together.
EVERY_SECONDS = 1.0
#: Where nothing begins and ends, it is written this often that somebody listens.
QUIET_SECONDS = 10.0
FORGET_EVERY_SECONDS = 600.0
#: Who has not written for so long does not run.
SILENT_SECONDS = 60.0
#: Rows per transaction, so that who asks does not wait.
_BATCH = 5000
_WAIT_SECONDS = 2.0
#: The file does not grow where less of its volume is free, in bytes and as a part: the oldest makes room.
_LEAST_FREE = (2 * 1024**3, 0.1)
#: How much of the file is to be free then, and how much of the time in it goes at once to get there.
_FREE_PAGES, _SHORTER = 0.05, 0.1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS translations (
    id INTEGER PRIMARY KEY,
    flow INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    client TEXT NOT NULL,
    address TEXT NOT NULL,
    port INTEGER NOT NULL,
    began REAL NOT NULL,
    ended REAL
);
CREATE INDEX IF NOT EXISTS translations_address ON translations (address, port, began);
CREATE INDEX IF NOT EXISTS translations_open ON translations (id) WHERE ended IS NULL;
CREATE TABLE IF NOT EXISTS facts (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    kept_since REAL NOT NULL,
    written REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS gaps (
    began REAL NOT NULL,
    ended REAL NOT NULL
);
"""


class NatLog:
    """The file, to write."""

    def __init__(self, path: Path, now: float) -> None:
        self._path = path
        self._db = sqlite3.connect(path, timeout=_WAIT_SECONDS)
        # Who reads needs no right to write then, and a lost second of a power cut is no lost file.
        self._db.execute("PRAGMA journal_mode=TRUNCATE")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO facts VALUES (1, :now, :now)", {"now": now})
        self.written_at: float = self._db.execute("SELECT written FROM facts").fetchone()[0]
        self._next = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM translations").fetchone()[0]
        self._open: dict[Flow, int] = {
            Flow(number=flow, protocol=protocol, client=client, address=address, port=port): number
            for number, flow, protocol, client, address, port in self._db.execute(
                "SELECT id, flow, protocol, client, address, port FROM translations WHERE ended IS NULL"
            )
        }

    def close(self) -> None:
        self._db.close()

    def agree(self, living: Iterable[Flow], now: float) -> None:
        """Begin anew from what there is. What is there no more was seen last before the gap, and what is new
        began in it.
        """
        there, seen_at = set(living), min(self.written_at, now)
        changes = [Change(False, flow) for flow in self._open.keys() - there]
        changes += [Change(True, flow) for flow in there - self._open.keys()]
        # What was told last before was not read.
        gap = {"began": seen_at - EVERY_SECONDS, "ended": now}
        with self._db:
            if not self._db.execute("UPDATE gaps SET ended = :ended WHERE ended >= :began", gap).rowcount:
                self._db.execute("INSERT INTO gaps VALUES (:began, :ended)", gap)
            self._put(changes, begun_at=now, ended_at=seen_at)
            self._put_written(now)

    def write(self, changes: list[Change], now: float) -> int:
        """Write what began and ended, in one transaction; returns how many began."""
        if not changes and 0 <= now - self.written_at < QUIET_SECONDS:
            return 0
        with self._db:
            count = self._put(changes, begun_at=now, ended_at=now)
            self._put_written(now)
        return count

    def _put_written(self, now: float) -> None:
        self._db.execute("UPDATE facts SET written = ?", (now,))
        self.written_at = now

    def _put(self, changes: Iterable[Change], *, begun_at: float, ended_at: float) -> int:
        rows: list[dict[str, object]] = []
        begun: dict[Flow, dict[str, object]] = {}
        ended: list[tuple[float, int]] = []
        for change in changes:
            flow = change.flow
            if change.begins:
                if flow not in self._open:
                    begun[flow] = vars(flow) | {"id": self._next, "began": begun_at, "ended": None}
                    rows.append(begun[flow])
                    self._open[flow] = self._next
                    self._next += 1
            elif (number := self._open.pop(flow, None)) is not None:
                if flow in begun:
                    begun.pop(flow)["ended"] = ended_at
                else:
                    ended.append((ended_at, number))
        self._db.executemany(
            "INSERT INTO translations (id, flow, protocol, client, address, port, began, ended)"
            " VALUES (:id, :number, :protocol, :client, :address, :port, :began, :ended)",
            rows,
        )
        self._db.executemany("UPDATE translations SET ended = max(began, ?) WHERE id = ?", ended)
        return len(rows)

    def forget(self, before: float) -> Iterator[int]:
        """Delete what ended before a time, a part at each step; yields how many rows went."""
        with self._db:
            self._db.execute("UPDATE facts SET kept_since = max(kept_since, ?)", (before,))
            self._db.execute("DELETE FROM gaps WHERE ended < ?", (before,))
        last = 0
        while True:
            rows = self._db.execute(
                "SELECT id, began, ended FROM translations WHERE id > ? ORDER BY id LIMIT ?", (last, _BATCH)
            ).fetchall()
            gone = [(number,) for number, _, ended in rows if ended is not None and ended < before]
            with self._db:
                self._db.executemany("DELETE FROM translations WHERE id = ?", gone)
            yield len(gone)
            # What has a higher number began later.
            if not rows or rows[-1][1] >= before:
                return
            last = rows[-1][0]

    def shorten(self, now: float) -> Iterator[int] | None:
        """Return steps that forget the oldest, if the file would grow on a volume that is nearly full."""
        if not _is_nearly_full(self._path):
            return None
        pages, free = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")
        )
        if free >= pages * _FREE_PAGES:
            return None
        (since,) = self._db.execute("SELECT kept_since FROM facts").fetchone()
        return self.forget(since + (now - since) * _SHORTER)


def find(directory: Path, address: str, port: int, first: int, last: int, now: float) -> Translations:
    """Return who used an address and port between two times (seconds since 1970), the latest first."""
    path = directory / FILE
    if not path.exists():
        return Translations(is_kept=False, translations=())
    asked = {"address": address, "port": port, "first": first, "after": last + 1}
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as db:
        # One moment of the file: it is forgotten from meanwhile.
        db.execute("BEGIN")
        kept_since, written_at = db.execute("SELECT kept_since, written FROM facts").fetchone()
        # While nobody listens, nobody knows what goes on.
        seen_at = written_at if now - written_at > SILENT_SECONDS else None
        rows = db.execute(
            "SELECT client, protocol, began, coalesce(ended, :seen) AS until FROM translations"
            " WHERE address = :address AND port = :port AND began < :after"
            " AND (until IS NULL OR until >= :first) ORDER BY began DESC LIMIT :most",
            asked | {"seen": seen_at, "most": MOST_TRANSLATIONS},
        ).fetchall()
        gaps = db.execute(
            "SELECT began, ended FROM gaps WHERE began < :after AND ended >= :first"
            " ORDER BY began DESC LIMIT :most",
            asked | {"most": MOST_GAPS - 1},
        ).fetchall()
    if seen_at is not None and last >= seen_at - EVERY_SECONDS:
        gaps.insert(0, (seen_at - EVERY_SECONDS, now))
    return Translations(
        is_kept=True,
        begins_at=math.ceil(kept_since),
        translations=tuple(
            Translation(client, protocol, int(began), None if ended is None else int(ended))
            for client, protocol, began, ended in rows
        ),
        gaps=tuple(Gap(max(0, int(began)), math.ceil(ended)) for began, ended in gaps),
    )


def _is_nearly_full(path: Path) -> bool:
    volume, (bytes_free, part_free) = shutil.disk_usage(path), _LEAST_FREE
    return volume.free < min(bytes_free, volume.total * part_free)


def problem(directory: Path) -> str:
    """Return what is wrong with the log, "" if somebody writes it and it has room."""
    try:
        written_at = (directory / FILE).stat().st_mtime
    except OSError:
        written_at = 0.0
    if time.time() - written_at >= SILENT_SECONDS:
        return "the log of NAT is not written; see journalctl -u causeway-nat-log"
    if _is_nearly_full(directory):
        return f"the volume of {directory} is nearly full, so the log of NAT forgets early; make room there"
    return ""


def remove(directory: Path) -> None:
    """Take the log away where it is to be kept no more."""
    try:
        (directory / FILE).unlink(missing_ok=True)
    except OSError as error:
        log.error("event=cannot_remove file=%s reason=%r", directory / FILE, error.strerror)


def record(settings: Settings) -> None:
    """Write the log until the process is told to end."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(1))
    kept = NatLog(settings.nat_log_directory / FILE, time.time())
    try:
        _record(kept, settings.nat_log_days, lambda: bool(stopped))
    finally:
        kept.close()


def _record(kept: NatLog, days: int, is_over: Callable[[], bool]) -> None:
    while not is_over():
        try:
            # A new socket for each: of what waits in the old one, nobody would hear the end.
            with conntrack.listen() as netlink:
                netlink.setblocking(False)
                kept.agree(conntrack.living(), time.time())
                notify("READY=1\nWATCHDOG=1")
                _follow(kept, netlink, days, is_over)
        except Overrun as error:
            log.warning("event=nat_log_gap reason=%r", str(error))


def _follow(kept: NatLog, netlink: socket.socket, days: int, is_over: Callable[[], bool]) -> None:
    """Write what is told, and forget what is old, until it is over; raises Overrun."""
    changes: list[Change] = []
    written_at, forgotten_at = time.monotonic(), -math.inf
    forgetting: Iterator[int] | None = None
    while not is_over():
        now = time.monotonic()
        waits = max(0.0, written_at + EVERY_SECONDS - now) if forgetting is None else 0.0
        if select.select([netlink], [], [], waits)[0]:
            try:
                changes += conntrack.read(netlink)
            except Overrun:
                # When it was too much is not known: not before the last write.
                kept.write(changes, kept.written_at)
                raise
            except BlockingIOError:
                continue
        elif forgetting is not None and next(forgetting, None) is None:
            forgetting = None
        if now - written_at >= EVERY_SECONDS:
            count = kept.write(changes, time.time())
            changes, written_at = [], now
            notify("WATCHDOG=1")
            if forgetting is not None:
                # Where it never gets quiet, more goes than comes.
                steps = 1 + 2 * count // _BATCH
                if len(list(islice(forgetting, steps))) < steps:
                    forgetting = None
            elif now - forgotten_at >= FORGET_EVERY_SECONDS:
                forgetting, forgotten_at = kept.forget(time.time() - days * 86400), now
            else:
                forgetting = kept.shorten(time.time())
    kept.write(changes, time.time())
