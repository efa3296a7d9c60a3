"""The line protocol of OpenVPN's management socket (management-notes.txt): commands, answers, events."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node_agent.errors import AgentError

log = logging.getLogger(__name__)

COMMAND_SECONDS = 5.0
LONGEST_LINE = 64 * 1024
MOST_ENVIRONMENT = 1000


@dataclass(frozen=True)
class ClientEvent:
    """``>CLIENT:`` with its environment; ``numbers`` are client id and, for CONNECT and REAUTH, key id."""

    kind: str
    numbers: tuple[int, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class ClientRow:
    """One row of ``status 3``; addresses are None until the client was let in."""

    client_id: int
    common_name: str
    origin: str
    ipv4: str | None
    ipv6: str | None
    received_bytes: int
    sent_bytes: int
    connected_at: int


class ManagementError(AgentError):
    """The process does not answer, or not as OpenVPN does."""


class Management:
    """One attached socket. ``on_event`` is called for each event while ``serve`` runs."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[ClientEvent], None],
    ) -> None:
        self._reader, self._writer = reader, writer
        self._on_event = on_event
        #: Of the process that runs, as its last status said; "" before.
        self.version = ""
        self._waiting: deque[tuple[asyncio.Future[list[str]], bool]] = deque()
        self._lines: list[str] = []
        self._event: ClientEvent | None = None

    @classmethod
    async def attach(cls, path: Path, on_event: Callable[[ClientEvent], None]) -> "Management":
        async with asyncio.timeout(COMMAND_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path, limit=LONGEST_LINE)
        return cls(reader, writer, on_event)

    async def serve(self) -> None:
        """Read until the process closes the socket; raises ManagementError for what OpenVPN would not say."""
        try:
            while True:
                line = await self._reader.readuntil(b"\n")
                self._take(line.decode(errors="replace").rstrip("\r\n"))
        except asyncio.IncompleteReadError:
            return
        except (asyncio.LimitOverrunError, ValueError, IndexError) as error:
            raise ManagementError(f"unexpected line: {error!s:.100}") from None
        finally:
            for future, _ in self._waiting:
                if not future.done():
                    future.set_exception(ManagementError("detached"))

    async def command(self, line: str, *, rows: bool = False) -> list[str]:
        """Send a command, return its answer (up to END with ``rows``); raises ManagementError."""
        if "\n" in line or "\r" in line:
            raise ManagementError("a command is one line")
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, rows))
        self._writer.write(line.encode() + b"\n")
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                await self._writer.drain()
                return await future
        except TimeoutError:
            raise ManagementError("no answer") from None
        except OSError as error:
            raise ManagementError(str(error)) from None

    async def status(self) -> list[ClientRow]:
        """Return the clients of this process, those that wait to be let in included."""
        rows = []
        for line in await self.command("status 3", rows=True):
            cells = line.split("\t")
            if cells[0] == "TITLE" and len(cells) > 1:
                # OpenVPN 2.6.3 x86_64-pc-linux-gnu [SSL (OpenSSL)] ...
                self.version = cells[1].removeprefix("OpenVPN ").split(" ")[0][:30]
            elif cells[0] == "CLIENT_LIST" and len(cells) >= 11:
                rows.append(
                    ClientRow(
                        client_id=int(cells[10]),
                        common_name=cells[1],
                        origin=address_of(cells[2]),
                        ipv4=cells[3] or None,
                        ipv6=cells[4] or None,
                        received_bytes=int(cells[5]),
                        sent_bytes=int(cells[6]),
                        connected_at=int(cells[8]),
                    )
                )
        return rows

    def close(self) -> None:
        self._writer.close()

    def _take(self, line: str) -> None:
        if line.startswith(">CLIENT:"):
            self._take_event(line.removeprefix(">CLIENT:"))
        elif line.startswith(">"):
            return
        elif self._waiting:
            future, rows = self._waiting[0]
            if line.startswith(("SUCCESS:", "ERROR:")) or (rows and line == "END"):
                self._waiting.popleft()
                lines, self._lines = self._lines, []
                if future.done():
                    return
                if line.startswith("ERROR:"):
                    future.set_exception(ManagementError(line))
                else:
                    future.set_result(lines)
            elif rows:
                self._lines.append(line)

    def _take_event(self, text: str) -> None:
        kind, _, rest = text.partition(",")
        if kind == "ENV":
            if self._event is None:
                return
            if rest == "END":
                event, self._event = self._event, None
                self._on_event(event)
            elif len(self._event.environment) < MOST_ENVIRONMENT:
                name, _, value = rest.partition("=")
                self._event.environment[name] = value
        elif kind in ("CONNECT", "REAUTH", "ESTABLISHED", "DISCONNECT"):
            self._event = ClientEvent(kind, tuple(int(n) for n in rest.split(",")), {})


def address_of(endpoint: str) -> str:
    """Return the address in ``198.51.100.7:1194``, ``[2001:db8::7]:1194`` or ``udp4:198.51.100.7:1194``.

    >>> [address_of(e) for e in ("198.51.100.7:5", "tcp6-server:[2001:db8::7]:5", "2001:db8::7")]
    ['198.51.100.7', '2001:db8::7', '2001:db8::7']
    """
    if "[" in endpoint:
        return endpoint.partition("[")[2].partition("]")[0]
    if "." in endpoint:
        return next(part for part in endpoint.split(":") if "." in part).removeprefix("::ffff:")
    return endpoint
