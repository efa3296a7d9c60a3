"""A file of records that survives crashes: appended line by line, now and then replaced whole.

Each line is a CRC-32 and one JSON object; the first says how many lines the last whole write had. Appending
costs the same whatever the file holds. Writes happen in a thread, and callers that wait at once share one
fsync. What cannot be written (disk full) stays in memory: the next whole write, tried every few seconds,
contains it.
"""

import asyncio
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

log = logging.getLogger(__name__)

Record: TypeAlias = dict[str, Any]

FORMAT = 1
RETRY_SECONDS = 5.0
#: Fewer appended lines than this are not worth a whole write.
FEWEST_APPENDED = 2000

MISSING, GOOD, DAMAGED = "missing", "good", "damaged"


@dataclass(frozen=True)
class Loaded:
    """What a file held; ``records`` of a damaged one are those that can be read."""

    state: str
    records: list[Record]
    problem: str = ""


def write(path: Path, text: str) -> None:
    """Replace a small file whole; a crash leaves the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def encode(record: Record) -> bytes:
    """Return a record's line; dataclasses in it become objects."""
    text = json.dumps(record, separators=(",", ":"), default=vars).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(line: bytes) -> Record:
    """Return the record in a line without its line break; raises ValueError unless it is intact."""
    checksum, _, text = line.partition(b" ")
    if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
        raise ValueError("checksum")
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


def load(path: Path) -> Loaded:
    """Read a file. A line cut short at the very end is a crash while appending, the rest is damage."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Loaded(MISSING, [])
    except OSError as error:
        return Loaded(DAMAGED, [], f"{path}: {error.strerror}")
    lines = data.split(b"\n")
    lines.pop()
    records: list[Record] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(decode(line))
        except ValueError:
            damaged.append(number)
    header = records.pop(0) if records and "format" in records[0] else {}
    if damaged:
        return Loaded(DAMAGED, records, f"{path}: line {damaged[0]} is damaged")
    if header.get("format") != FORMAT:
        return Loaded(DAMAGED, [], f"{path}: empty or of an unknown format")
    if not isinstance(header.get("lines"), int) or len(records) < header["lines"]:
        return Loaded(DAMAGED, records, f"{path}: cut short")
    return Loaded(GOOD, records)


class RecordFile:
    """The file at ``path``; ``snapshot`` returns the records that a whole write consists of."""

    def __init__(self, path: Path, snapshot: Callable[[], Iterable[Record]]) -> None:
        self.path = path
        self.problem = ""
        self._snapshot = snapshot
        self._pending: list[Record] = []
        self._appended = 0
        self._whole_lines = 0
        # True: the file does not lead to the present state by appending; it has to be written whole.
        self._stale = True
        self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    def append(self, *records: Record) -> None:
        """Queue records; ``flush`` writes them."""
        if not self._stale:
            self._pending.extend(records)

    def replace(self) -> None:
        """Let the next ``flush`` write the file whole."""
        self._stale = True
        self._pending.clear()
        self._tried_at = float("-inf")

    async def flush(self) -> bool:
        """Return when everything queued before is on disk; False when it could not be written."""
        async with self._lock:
            if self._stale or self._appended > max(FEWEST_APPENDED, self._whole_lines):
                return await self._write_whole()
            if not self._pending:
                return True
            records, self._pending = self._pending, []
            try:
                await asyncio.to_thread(self._append, records)
            except OSError as error:
                self._failed(error)
                return False
            self._appended += len(records)
            return True

    async def _write_whole(self) -> bool:
        if self._stale and time.monotonic() - self._tried_at < RETRY_SECONDS:
            return False
        self._tried_at = time.monotonic()
        records = list(self._snapshot())
        self._pending.clear()
        self._stale = False
        try:
            await asyncio.to_thread(self._replace, records)
        except OSError as error:
            self._failed(error)
            return False
        if self.problem:
            log.info("event=saved file=%s", self.path)
        self._appended, self._whole_lines, self.problem = 0, len(records), ""
        return True

    def _failed(self, error: OSError) -> None:
        if not self.problem:
            log.error("event=cannot_save file=%s reason=%r", self.path, error.strerror)
        self.problem = f"cannot save {self.path.name}: {error.strerror}"
        self._stale = True
        self._pending.clear()
        self._tried_at = time.monotonic()

    def _append(self, records: list[Record]) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(map(encode, records)))
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, records: list[Record]) -> None:
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("wb") as file:
            file.write(encode({"format": FORMAT, "lines": len(records)}))
            for record in records:
                file.write(encode(record))
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
