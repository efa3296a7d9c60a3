"""One OpenVPN process: lets clients in by the wanted set, follows their sessions, cuts them.

The process asks for each client (``management-client-auth``) and the agent decides from memory, so that
clients come and go while every portal is away. While the set is unknown a new client is told to come again
(``TEMP[backoff 2]``): a plain refusal would make it stop for good.
"""

import asyncio
import contextlib
import enum
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from node_agent.clock import Clock
from node_agent.journal import Journal, OpenSession
from node_agent.management import ClientEvent, ClientRow, Management, ManagementError
from node_agent.settings import OpenVpnProcess
from vpn_core.messages import OPENVPN, Connection
from vpn_core.openvpn import is_common_name

log = logging.getLogger(__name__)

ATTACH_SECONDS = 0.5
POLL_SECONDS = 5.0
#: Between asking a client to come again, which makes it learn that it may not, and cutting it off.
CUT_PAUSE_SECONDS = 0.25
CUT_SECONDS = 1.5
#: A process that is being restarted is no problem yet.
DETACHED_SECONDS = 5.0
#: A session that an earlier run of the agent wrote is this client's if they began so close to each other.
SAME_START_SECONDS = 3.0


class Decision(enum.Enum):
    LET_IN = "let in"
    REFUSE = "refuse"
    LATER = "later"


@dataclass
class Client:
    """A client that was let in and has its addresses; ``connected_at`` as the process says it."""

    client_id: int
    common_name: str
    connected_at: int
    session: OpenSession


class Process:
    """One process and its socket. ``decide`` and ``find`` answer from the wanted set."""

    def __init__(
        self,
        settings: OpenVpnProcess,
        journal: Journal,
        *,
        decide: Callable[[str, str, OpenVpnProcess], Decision],
        find: Callable[[str], Connection | None],
        clock: Clock,
        origins: bool,
    ) -> None:
        self.settings = settings
        self.clients: dict[int, Client] = {}
        #: Of the program that runs; "" before it has said so.
        self.version = ""
        self._journal = journal
        self._decide, self._find, self._clock, self._origins = decide, find, clock, origins
        self._management: Management | None = None
        self._announced: set[int] = set()
        self._left: set[int] = set()
        self._unannounced: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = False
        self._detached_at = time.monotonic()
        self._reported = False

    @property
    def problem(self) -> str:
        if not self._answers and time.monotonic() - self._detached_at > DETACHED_SECONDS:
            return f"OpenVPN {self.settings.name}: the management socket does not answer"
        return ""

    # --- the socket

    async def run(self) -> None:
        """Attach, again and again, until cancelled."""
        try:
            while True:
                try:
                    await self._attached()
                except ManagementError as error:
                    log.warning("event=openvpn_trouble process=%s reason=%r", self.settings.name, str(error))
                except (FileNotFoundError, ConnectionRefusedError):
                    self._end_all()
                except (OSError, TimeoutError) as error:
                    log.debug("event=openvpn_away process=%s reason=%r", self.settings.name, str(error))
                if self.problem and not self._reported:
                    self._reported = True
                    log.error("event=openvpn_away process=%s", self.settings.name)
                await asyncio.sleep(ATTACH_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()

    async def _attached(self) -> None:
        management = await Management.attach(self.settings.socket, self._on_event)
        serving = asyncio.create_task(management.serve())
        try:
            self._announced.clear()
            self._unannounced.clear()
            self._management = management
            await self._look(management, first=True)
            self._answers = True
            log.info("event=openvpn_attached process=%s", self.settings.name)
            self._reported = False
            while not serving.done():
                await asyncio.wait([serving], timeout=POLL_SECONDS)
                if not serving.done():
                    await self._look(management)
            serving.result()
        finally:
            if self._answers:
                self._detached_at = time.monotonic()
            self._answers = False
            self._management = None
            management.close()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, ManagementError, OSError):
                await serving

    async def _look(self, management: Management, *, first: bool = False) -> None:
        """Compare the process's clients with what is known and wanted."""
        before = set(self.clients)
        self._left.clear()
        rows = await management.status()
        self.version = management.version
        now = int(self._clock.now())
        earlier = self._earlier() if first else {}
        seen, unannounced, unwanted = set(), set(), set()
        for row in rows:
            # Events may already have told what came after the answer.
            if row.client_id in self._left:
                continue
            if row.ipv4 is None and row.ipv6 is None:
                if row.client_id not in self._announced and is_common_name(row.common_name):
                    unannounced.add(row.client_id)
                continue
            seen.add(row.client_id)
            self._follow(row, now, earlier)
            if self._decide(row.common_name, self.settings.profile_id, self.settings) is Decision.REFUSE:
                unwanted.add(row.common_name)
        for client_id in (before & self.clients.keys()) - seen:
            client = self.clients.pop(client_id)
            self._journal.end(client.session, client.session.last_at)
        await asyncio.gather(*(self._cut(management, name) for name in unwanted if is_common_name(name)))
        # Clients that came while nobody was attached are not announced again: sent away, they come back.
        for client_id in unannounced if first else unannounced & self._unannounced:
            await self._send(management, f"client-kill {client_id}")
        self._unannounced = unannounced
        if first:
            for sessions in self._earlier().values():
                for session in sessions:
                    self._journal.end(session, session.last_at)

    def _follow(self, row: ClientRow, now: int, earlier: dict[str, list[OpenSession]]) -> None:
        client = self.clients.get(row.client_id)
        if client is None or client.connected_at != row.connected_at:
            if client is not None:
                self._journal.end(client.session, client.session.last_at)
            client = self._resume(row, earlier) or self._start(
                row.client_id, row.common_name, row.connected_at, row.ipv4, row.ipv6, row.origin
            )
        if client is not None:
            client.session.received_bytes = row.received_bytes
            client.session.sent_bytes = row.sent_bytes
            client.session.last_at = max(now, client.session.started_at)
            self._journal.touch(client.session)

    def _earlier(self) -> dict[str, list[OpenSession]]:
        """Return by connection the sessions that an earlier run of the agent had written."""
        followed = {client.session.session_id for client in self.clients.values()}
        found: dict[str, list[OpenSession]] = {}
        for session in self._journal.open.values():
            if session.process == self.settings.name and session.session_id not in followed:
                found.setdefault(session.connection_id, []).append(session)
        return found

    def _resume(self, row: ClientRow, earlier: dict[str, list[OpenSession]]) -> Client | None:
        """Return the client with its session among the ``earlier`` ones, which is taken out of them."""
        started_at = self._clock.from_wall(row.connected_at)
        sessions = earlier.get(row.common_name, [])
        for session in sessions:
            if abs(session.started_at - started_at) <= SAME_START_SECONDS:
                sessions.remove(session)
                client = Client(row.client_id, row.common_name, row.connected_at, session)
                self.clients[row.client_id] = client
                return client
        return None

    def _end_all(self) -> None:
        """End every session of a process that is gone."""
        self.clients.clear()
        for session in list(self._journal.open.values()):
            if session.process == self.settings.name:
                self._journal.end(session, session.last_at)

    # --- events

    def _on_event(self, event: ClientEvent) -> None:
        client_id = event.numbers[0]
        environment = event.environment
        if event.kind in ("CONNECT", "REAUTH"):
            self._announced.add(client_id)
            self._answer(event, client_id, event.numbers[1])
        elif event.kind == "ESTABLISHED":
            common_name = environment.get("common_name", "")
            if client_id not in self.clients:
                self._start(
                    client_id,
                    common_name,
                    int(environment.get("time_unix", "") or time.time()),
                    environment.get("ifconfig_pool_remote_ip"),
                    environment.get("ifconfig_pool_remote_ip6"),
                    environment.get("trusted_ip") or environment.get("trusted_ip6", ""),
                )
            # It may have been cut since it was let in, when there was no client yet to cut.
            refused = self._decide(common_name, self.settings.profile_id, self.settings) is Decision.REFUSE
            if refused and self._management is not None and is_common_name(common_name):
                self._run(self._cut(self._management, common_name, client_id))
        elif event.kind == "DISCONNECT":
            self._announced.discard(client_id)
            self._left.add(client_id)
            client = self.clients.pop(client_id, None)
            if client is not None:
                client.session.received_bytes = int(environment.get("bytes_received", "0"))
                client.session.sent_bytes = int(environment.get("bytes_sent", "0"))
                self._journal.end(client.session, int(self._clock.now()))

    def _answer(self, event: ClientEvent, client_id: int, key_id: int) -> None:
        common_name = event.environment.get("common_name", "")
        decision = self._decide(common_name, event.environment.get("X509_0_OU", ""), self.settings)
        if decision is Decision.LATER and event.kind == "REAUTH":
            # Without certain knowledge nobody who is in is sent away.
            decision = Decision.LET_IN
        if decision is Decision.LET_IN:
            line = f"client-auth-nt {client_id} {key_id}"
        elif decision is Decision.LATER:
            line = f'client-deny {client_id} {key_id} "set unknown" "TEMP[backoff 2]: later"'
        else:
            line = f'client-deny {client_id} {key_id} "not wanted" "not allowed"'
            log.info("event=openvpn_refused process=%s common_name=%r", self.settings.name, common_name[:64])
        self._spawn(line)

    def _spawn(self, line: str) -> None:
        """Send a command without making the reader of its answer wait for it."""
        management = self._management
        if management is None:
            return
        self._run(self._send(management, line))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, management: Management, line: str) -> None:
        try:
            await management.command(line)
        except ManagementError as error:
            # The client may be gone already; the next look says what is.
            log.debug("event=openvpn_command process=%s reason=%r", self.settings.name, str(error))

    def _start(
        self,
        client_id: int,
        common_name: str,
        connected_at: int,
        ipv4: str | None,
        ipv6: str | None,
        origin: str,
    ) -> Client | None:
        connection = self._find(common_name)
        if connection is None:
            return None
        session = OpenSession(
            session_id=secrets.token_hex(16),
            connection_id=connection.connection_id,
            profile_id=connection.profile_id,
            protocol=OPENVPN,
            started_at=round(self._clock.from_wall(connected_at)),
            ipv4=_canonical(ipv4),
            ipv6=_canonical(ipv6),
            origin=_canonical(origin) if self._origins else None,
            last_at=max(int(self._clock.now()), round(self._clock.from_wall(connected_at))),
            process=self.settings.name,
        )
        client = Client(client_id, common_name, connected_at, session)
        self.clients[client_id] = client
        self._journal.start(connection, session)
        return client

    # --- cutting

    async def cut(self, common_name: str) -> list[OpenSession]:
        """Cut a client off, and return the sessions it had, with their last counters.

        A process that hangs is not waited for: the first look after it answers again cuts.
        """
        sessions = [c.session for c in self.clients.values() if c.common_name == common_name]
        if self._management is not None and sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_SECONDS):
                    await self._cut(self._management, common_name)
        return sessions

    async def _cut(self, management: Management, common_name: str, *client_ids: int) -> None:
        # Asked to come again, a client learns that it may not; but the server goes on sending for seconds.
        known = {c.client_id for c in self.clients.values() if c.common_name == common_name}
        for client_id in known.union(client_ids):
            await self._send(management, f"client-kill {client_id}")
        await asyncio.sleep(CUT_PAUSE_SECONDS)
        await self._send(management, f"kill {common_name}")


def _canonical(address: str | None) -> str | None:
    try:
        return str(ip_address(address)) if address else None
    except ValueError:
        return None
