"""Which client's packets left this node from which of its addresses and ports, and when: the log of NAT.

Kept on the node that translates, in one SQLite file, for as many days as the settings say. As RFC 6888
(REQ-12) asks, it does not hold where the packets went. A process of its own writes it (``vpn-node log-nat``),
so that no amount of flows slows the agent; the agent reads it when a portal asks who was behind an address.
"""

import logging
import os
import select
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from node_agent import conntrack
from node_agent.conntrack import Change, Flow, Overrun
from node_agent.notify import notify
from node_agent.settings import Settings
from vpn_core.messages import MOST_TRANSLATIONS, Translation, Translations

log = logging.getLogger(__name__)

FILE = "translations.sqlite"
#: What was told within this time is written together.
EVERY_SECONDS = 1.0
FORGET_EVERY_SECONDS = 600.0
#: Who has not written for so long does not run.
SILENT_SECONDS = 60.0
#: Rows per transaction, so that who asks does not wait.
_BATCH = 5000
_WAIT_SECONDS = 2.0
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
"""


class NatLog:
    """The file, to write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, timeout=_WAIT_SECONDS)
        # Who reads needs no right to write then, and a lost second of a power cut is no lost file.
        self._db.execute("PRAGMA journal_mode=TRUNCATE")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._next = self._db.execute("SELECT coalesce(max(id), 0) + 1 FROM translations").fetchone()[0]
        self._open: dict[Flow, int] = {
            Flow(*row[1:]): row[0]
            for row in self._db.execute(
                "SELECT id, flow, protocol, client, address, port FROM translations WHERE ended IS NULL"
            )
        }

    def close(self) -> None:
        self._db.close()

    def touch(self) -> None:
        """Show that somebody writes, also where there is nothing to write."""
        os.utime(self._path)

    def agree(self, living: Iterable[Flow], now: float) -> None:
        """Begin anew from what there is: what is there no more has ended at the latest now."""
        there = set(living)
        gone = [Change(False, flow) for flow in self._open.keys() - there]
        self.write([*gone, *(Change(True, flow) for flow in there - self._open.keys())], now)

    def write(self, changes: Iterable[Change], now: float) -> None:
        """Write what began and ended, in one transaction."""
        rows: list[list[object]] = []
        begun: dict[Flow, list[object]] = {}
        ended: list[tuple[float, int]] = []
        for change in changes:
            flow = change.flow
            if change.begins:
                if flow not in self._open:
                    begun[flow] = [self._next, *vars(flow).values(), now, None]
                    rows.append(begun[flow])
                    self._open[flow] = self._next
                    self._next += 1
            elif (number := self._open.pop(flow, None)) is not None:
                if flow in begun:
                    begun.pop(flow)[-1] = now
                else:
                    ended.append((now, number))
        if not rows and not ended:
            return
        with self._db:
            self._db.executemany("INSERT INTO translations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("UPDATE translations SET ended = ? WHERE id = ?", ended)

    def forget(self, before: float) -> int:
        """Delete what ended before a time; returns how many rows went."""
        total = last = 0
        while True:
            rows = self._db.execute(
                "SELECT id, began, ended FROM translations WHERE id > ? ORDER BY id LIMIT ?", (last, _BATCH)
            ).fetchall()
            gone = [(number,) for number, _, ended in rows if ended is not None and ended < before]
            with self._db:
                self._db.executemany("DELETE FROM translations WHERE id = ?", gone)
            total += len(gone)
            # What has a higher number began later.
            if not rows or rows[-1][1] >= before:
                return total
            last = rows[-1][0]


def find(directory: Path, address: str, port: int, first: int, last: int) -> Translations:
    """Return who used an address and port between two times (seconds since 1970), the latest first."""
    path = directory / FILE
    if not path.exists():
        return Translations(is_kept=False, translations=())
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as db:
        rows = db.execute(
            "SELECT client, protocol, began, ended FROM translations WHERE address = ? AND port = ?"
            " AND began < ? AND (ended IS NULL OR ended >= ?) ORDER BY began DESC LIMIT ?",
            (address, port, last + 1, first, MOST_TRANSLATIONS),
        ).fetchall()
        oldest = db.execute("SELECT began FROM translations ORDER BY id LIMIT 1").fetchone()
    return Translations(
        is_kept=True,
        begins_at=int(oldest[0]) if oldest else None,
        translations=tuple(
            Translation(client, protocol, int(began), None if ended is None else int(ended))
            for client, protocol, began, ended in rows
        ),
    )


def problem(directory: Path) -> str:
    """Return what is wrong with the log, "" if somebody writes it."""
    try:
        written_at = (directory / FILE).stat().st_mtime
    except OSError:
        written_at = 0.0
    if time.time() - written_at < SILENT_SECONDS:
        return ""
    return "the log of NAT is not written; see journalctl -u causeway-nat-log"


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
    kept = NatLog(settings.nat_log_directory / FILE)
    try:
        _record(kept, settings.nat_log_days, lambda: bool(stopped))
    finally:
        kept.close()


def _record(kept: NatLog, days: int, is_over: Callable[[], bool]) -> None:
    with conntrack.listen() as netlink:
        netlink.setblocking(False)
        kept.agree(conntrack.living(), time.time())
        notify("READY=1")
        changes: list[Change] = []
        written_at = forgotten_at = time.monotonic()
        while not is_over():
            now = time.monotonic()
            if select.select([netlink], [], [], max(0.0, written_at + EVERY_SECONDS - now))[0]:
                try:
                    changes += conntrack.read(netlink)
                except Overrun as error:
                    log.warning("event=nat_log_gap reason=%r", str(error))
                    kept.write(changes, time.time())
                    changes = []
                    kept.agree(conntrack.living(), time.time())
                except BlockingIOError:
                    continue
            if now - written_at >= EVERY_SECONDS:
                kept.write(changes, time.time())
                kept.touch()
                changes, written_at = [], now
                notify("WATCHDOG=1")
            if now - forgotten_at >= FORGET_EVERY_SECONDS:
                kept.forget(time.time() - days * 86400)
                forgotten_at = now
        kept.write(changes, time.time())
