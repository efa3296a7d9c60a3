"""A node in this process and in its own time: the real agent between a `wg`, an OpenVPN and a disk of ours.

Real: the agent with its loops, store and journal in files, the HTTP parser and handlers, the management
protocol. Stood in for, each at the boundary where the agent leaves its process: the ``wg`` command (a process
per call would take most of the time, and these tests are about what the two sides agree on), OpenVPN behind
its management socket, the clock, and the thread that writes to the disk, so that a crash can be put before,
into or after a write. Time passes only when everything waits: an hour takes milliseconds, and the same steps
give the same run.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPResponse
from io import BytesIO
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from aiohttp import web

from node_agent import records
from node_agent.agent import Agent
from node_agent.app import make_app
from node_agent.clock import Clock
from node_agent.errors import InterfaceMissing
from node_agent.management import Management
from node_agent.records import RecordFile
from node_agent.sessions import QUIET_SECONDS
from node_agent.settings import Settings
from vpn_core.messages import WIREGUARD

#: Within the life of the certificates that the tests make, and a whole second.
BEGIN = 1_900_000_000
LONGEST_CALL_SECONDS = 30.0
#: What a call of ``wg`` takes.
WG_SECONDS = 0.002


class Time:
    """The time of this world. Stands in for the module ``time`` where the code under test reads a clock."""

    CLOCK_BOOTTIME = 7

    def __init__(self) -> None:
        self.elapsed = 1000.0

    def time(self) -> float:
        return BEGIN + self.elapsed

    def monotonic(self) -> float:
        return self.elapsed

    def clock_gettime(self, _clock: int) -> float:
        return self.elapsed


class _Selector(selectors.DefaultSelector):
    """Waits by moving the time on."""

    time: Time

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.time.elapsed += timeout
        assert ready or timeout is not None, "everything waits for nothing"
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, time: Time) -> None:
        selector = _Selector()
        selector.time = time
        super().__init__(selector)
        self._world_time = time

    def time(self) -> float:
        return self._world_time.elapsed


@dataclass
class Truth:
    """A session that really was. ``end`` is None while it lasts; WireGuard's also end by silence."""

    node: int
    connection_id: str
    protocol: str
    start: int
    last: int
    end: float | None = None
    key: str = ""
    received: int = 0
    sent: int = 0
    #: How often the agent could not see it meanwhile: then less is promised.
    outages: int = 0
    #: When WireGuard's client shook hands, and the last time of which an agent knows for sure.
    handshakes: list[int] = field(default_factory=list)
    known: int | None = None
    #: The database was set back since.
    forgotten: bool = False

    def over_at(self, now: float, last: int | None = None) -> float | None:
        """Return when it ended, by its ``last`` handshake; None while it lasts."""
        quiet_at = (last or self.last) + QUIET_SECONDS if self.protocol == WIREGUARD else None
        if self.end is not None:
            return self.end if quiet_at is None else min(self.end, quiet_at)
        return quiet_at if quiet_at is not None and now >= quiet_at else None

    def is_in_doubt(self, now: float) -> bool:
        """Tell whether its end depends on a handshake that no agent may have seen."""
        if self.known is None:
            return False
        return (self.over_at(now) is None) != (self.over_at(now, self.known) is None)


@dataclass
class _Peer:
    """``connection_id`` is whose the agent set it for, when that still knew the key."""

    allowed: set[str]
    connection_id: str | None = None
    handshake: int = 0
    received: int = 0
    sent: int = 0


class Interface:
    """What ``wg`` would speak to, and what clients do with it."""

    def __init__(self, number: int, time: Time) -> None:
        self.number, self.time = number, time
        self.public_key = base64.b64encode(hashlib.sha256(b"node %d" % number).digest()).decode()
        self.present, self.made = True, 1
        self.peers: dict[str, _Peer] = {}
        self.truths: list[Truth] = []
        self.owner: Callable[[str], str | None] = lambda _key: None

    def identity(self) -> tuple[int, int]:
        return (self.made if self.present else 0), 0

    async def run(self, *words: str) -> str:
        """Do what ``wg WORDS`` does; takes some time, as a process would."""
        await asyncio.sleep(WG_SECONDS)
        if not self.present:
            raise InterfaceMissing("WireGuard interface wg0 is missing")
        if words[0] == "show":
            return self._dump()
        rest = list(words[2:])
        while rest:
            assert rest.pop(0) == "peer"
            key = rest.pop(0)
            if rest.pop(0) == "remove":
                self._remove(key)
            else:
                self._set(key, set(rest.pop(0).split(",")))
        return ""

    def _remove(self, key: str) -> None:
        self.peers.pop(key, None)
        for truth in self.truths:
            if truth.key == key and truth.end is None:
                truth.end = self.time.time()

    def _set(self, key: str, allowed: set[str]) -> None:
        for peer in self.peers.values():
            peer.allowed -= allowed
        peer = self.peers.setdefault(key, _Peer(set()))
        peer.allowed, peer.connection_id = allowed, self.owner(key) or peer.connection_id

    def _dump(self) -> str:
        lines = ["\t".join(("(hidden)", self.public_key, "51820", "off"))]
        for key, peer in self.peers.items():
            ips = ",".join(sorted(peer.allowed)) or "(none)"
            counters = (str(peer.handshake), str(peer.received), str(peer.sent))
            lines.append("\t".join((key, "(none)", "198.51.100.7:5000", ips, *counters, "off")))
        return "\n".join(lines) + "\n"

    def rebuild(self, looked_at: float) -> None:
        """The interface is made anew, without peers; clients that soon come back continue their sessions.

        Of what happened later than ``looked_at`` an agent may know nothing, and nobody can tell it any more.
        """
        now = int(self.time.time())
        for truth in self.truths:
            if truth.over_at(now) is None and truth.last >= looked_at:
                truth.outages += 1
                seen = max((at for at in truth.handshakes if at < looked_at), default=truth.start)
                truth.known = min(truth.known or seen, seen)
        self.peers.clear()
        self.made += 1

    def use(self, key: str, connection_id: str | None, received: int) -> bool:
        """A client shakes hands and sends something; True when it got through."""
        peer = self.peers.get(key)
        if peer is None or not self.present or not peer.allowed:
            return False
        now, outages = int(self.time.time()), 0
        peer.handshake, peer.received, peer.sent = now, peer.received + received, peer.sent + 2 * received
        if connection_id is None:
            # An agent that died had dropped the connection, and not yet its peer.
            kept = (t.connection_id for t in reversed(self.truths) if t.key == key and t.end is None)
            connection_id, outages = next(kept, peer.connection_id), 1
        if connection_id is None:
            return True
        session = next((t for t in reversed(self.truths) if t.connection_id == connection_id), None)
        # An agent that died with an end that was not saved goes on with the session.
        if session is not None and session.outages and now - session.last < QUIET_SECONDS:
            session.end = None
        if session is None or session.over_at(now) is not None:
            session = Truth(self.number, connection_id, WIREGUARD, now, now, key=key, outages=outages)
            self.truths.append(session)
        session.last, session.known = now, None
        session.handshakes.append(now)
        session.received += received
        session.sent += 2 * received
        return True


@dataclass
class _Client:
    client_id: int
    common_name: str
    profile_id: str
    address: int | None = None
    truth: Truth | None = None


class OpenVpn:
    """One OpenVPN process, as its management socket shows it (management-notes.txt)."""

    def __init__(self, node: int, share: dict[str, Any], time: Time) -> None:
        self.node, self.time, self.profile_id = node, time, share["profile_id"]
        self.ipv4, self.ipv6 = IPv4Network(share["ipv4"]), IPv6Network(share["ipv6"])
        self.clients: dict[int, _Client] = {}
        self.truths: list[Truth] = []
        self._ids = iter(range(1, 1_000_000))
        self._reader: asyncio.StreamReader | None = None

    # What the agent does

    async def attach(self, on_event: Callable[[Any], None]) -> Management:
        self._reader = asyncio.StreamReader()
        return Management(self._reader, self, on_event)  # type: ignore[arg-type]

    def detach(self) -> None:
        self._reader = None

    close = detach

    async def drain(self) -> None:
        """Everything was taken."""

    def write(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            word, *rest = line.split(" ")
            if word == "status":
                self._say(*self._status(), "END")
            elif word == "kill":
                found = [c for c in self.clients.values() if c.common_name == rest[0] and c.address]
                self._say("SUCCESS: killed" if found else f"ERROR: common name '{rest[0]}' not found")
                for client in found:
                    self.leave(client)
            else:
                self._answer(word, int(rest[0]))

    def _answer(self, word: str, client_id: int) -> None:
        client = self.clients.get(client_id)
        self._say("SUCCESS: done" if client else "ERROR: no such client")
        if client and word == "client-auth-nt":
            self._let_in(client)
        elif client and (word == "client-deny" or client.address is None):
            del self.clients[client_id]

    def _say(self, *lines: str) -> None:
        if self._reader is not None:
            self._reader.feed_data("".join(f"{line}\r\n" for line in lines).encode())

    def _tell(self, client: _Client, kind: str, *numbers: int, **environment: object) -> None:
        values = {"common_name": client.common_name, "X509_0_OU": client.profile_id} | environment
        self._say(
            f">CLIENT:{kind},{','.join(map(str, (client.client_id, *numbers)))}",
            *(f">CLIENT:ENV,{key}={value}" for key, value in values.items()),
            ">CLIENT:ENV,END",
        )

    def _status(self) -> Iterator[str]:
        for c in self.clients.values():
            t = c.truth
            cells = (
                *("CLIENT_LIST", c.common_name, "198.51.100.7:5000", *self._addresses(c)),
                *((t.received, t.sent, "then", t.start) if t else (0, 0, "then", 0)),
                *("UNDEF", c.client_id, 0, "AES-256-GCM"),
            )
            yield "\t".join(map(str, cells))

    def _addresses(self, client: _Client) -> tuple[str, str]:
        if client.address is None:
            return "", ""
        return str(self.ipv4[client.address]), str(self.ipv6[client.address])

    def _let_in(self, client: _Client) -> None:
        # Without "duplicate-cn" the newcomer replaces whoever has the same name.
        for other in [c for c in self.clients.values() if c.common_name == client.common_name]:
            if other.address is not None:
                self.leave(other)
        taken = {c.address for c in self.clients.values()}
        now = int(self.time.time())
        client.address = next(n for n in range(2, 200) if n not in taken)
        client.truth = Truth(self.node, client.common_name, "openvpn", now, now)
        self.truths.append(client.truth)
        ipv4, ipv6 = self._addresses(client)
        self._tell(
            client,
            "ESTABLISHED",
            time_unix=now,
            trusted_ip="198.51.100.7",
            ifconfig_pool_remote_ip=ipv4,
            ifconfig_pool_remote_ip6=ipv6,
        )

    # What clients do

    def arrive(self, common_name: str, profile_id: str) -> None:
        """A client with a good certificate comes; the agent decides. One just gone takes its time."""
        now = self.time.time()
        if any(now - t.start < 5 for t in self.truths if t.connection_id == common_name):
            return
        client = _Client(next(self._ids), common_name, profile_id)
        self.clients[client.client_id] = client
        self._tell(client, "CONNECT", 0)

    def leave(self, client: _Client) -> None:
        del self.clients[client.client_id]
        if (truth := client.truth) is not None:
            truth.end = self.time.time()
            self._tell(client, "DISCONNECT", bytes_received=truth.received, bytes_sent=truth.sent)

    def use(self, common_name: str, received: int) -> None:
        for client in self.clients.values():
            if client.common_name == common_name and client.truth is not None:
                client.truth.received += received
                client.truth.sent += 2 * received

    def restart(self) -> None:
        """The process starts anew; nobody tells the agent about each client."""
        for client in self.clients.values():
            if client.truth is not None:
                client.truth.end = self.time.time()
        self.clients.clear()
        if self._reader is not None:
            self._reader.feed_eof()
            self.detach()


@dataclass
class CrashPlan:
    """Where the agent dies: ``before``, in the middle of (``torn``) or ``after`` a write to ``file``."""

    file: str
    how: str
    skip: int = 0


class _Disk(ThreadPoolExecutor):
    """Runs what the agent hands to threads at once, and lets it die at a write."""

    def __init__(self, node: "Node") -> None:
        super().__init__(1)
        self._node = node

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        work = getattr(fn, "args", (None,))[0]
        file = getattr(work, "__self__", None)
        try:
            if isinstance(file, RecordFile):
                if not self._write(file, fn):
                    # Whoever waits for this waits for ever: the process is gone.
                    return future
                future.set_result(None)
            else:
                future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def _write(self, file: RecordFile, write: Callable[[], None]) -> bool:
        node, plan = self._node, self._node.crash_plan
        if node.dying:
            return False
        if node.disk_is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        due = plan is not None and plan.file in ("any", file.path.name)
        if plan is not None and due and plan.skip:
            plan.skip -= 1
            due = False
        if plan is None or not due:
            write()
            return True
        before = file.path.stat().st_size if file.path.exists() else 0
        if plan.how != "before":
            write()
        after = file.path.stat().st_size if file.path.exists() else 0
        if plan.how == "torn" and after > before > 0:
            _tear(file.path, before, after)
        node.die()
        return False


def _tear(path: Path, before: int, after: int) -> None:
    """Leave the first line of what was appended, and a part of the second: what a power cut does."""
    data = path.read_bytes()
    line_end = data.find(b"\n", before) + 1
    path.write_bytes(data[: min(after - 1, line_end + 7)])


class NodeDown(OSError):
    """Nobody listens."""


class _Pipe(asyncio.Transport):
    """Where the agent's HTTP server writes its answer to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.answer = b""
        self.closed: asyncio.Future[None] = loop.create_future()

    def write(self, data: Any) -> None:
        self.answer += bytes(data)

    def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed.done()

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing more will come."""

    resume_reading = pause_reading


class _Source:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._data)


class Node:
    """One host: its interface and its OpenVPN outlive its agent, which starts, stops and crashes."""

    def __init__(self, share: dict[str, Any], directory: Path, time: Time) -> None:
        self.number, self.name, self.time = share["number"], share["name"], time
        self.directory = directory
        (directory / "state").mkdir(parents=True)
        self.interface = Interface(self.number, time)
        self.interface.owner = self.owner
        self.openvpn = {p["name"]: OpenVpn(self.number, p, time) for p in share["openvpn"]}
        keys = ("profile_id", "ipv4", "ipv6", "gateway_ipv4", "gateway_ipv6")
        self._settings = Settings.parse(
            {
                "node_number": self.number,
                **dict.fromkeys(("certificate_file", "key_file", "ca_file"), str(directory / "none")),
                "state_directory": str(directory / "state"),
                "runtime_directory": str(directory),
                "wireguard": {
                    "interface": "wg0",
                    "restart_file": str(directory / "restart"),
                    "networks": [{key: n[key] for key in keys} for n in share["wireguard"]],
                },
                "openvpn": [
                    {key: p[key] for key in ("name", "profile_id", "device", "ipv4", "ipv6")}
                    | {"socket": str(directory / p["name"])}
                    for p in share["openvpn"]
                ],
            },
            "virtual node",
        )
        self.crash_plan: CrashPlan | None = None
        self.deaths = 0
        self.dying = False
        self._full_since: float | None = None
        self._unsafe_since = float("inf")
        self._durable: set[str] = set()
        self._forgotten: set[str] = set()
        self._loop: _Loop | None = None

    # --- life

    @property
    def is_up(self) -> bool:
        return self._loop is not None

    @property
    def truths(self) -> list[Truth]:
        return self.interface.truths + [t for o in self.openvpn.values() for t in o.truths]

    @property
    def disk_is_full(self) -> bool:
        return self._full_since is not None

    def fill_disk(self) -> None:
        self._full_since = self._full_since or self.time.time()

    def empty_disk(self) -> None:
        self._full_since = None

    def start(self) -> None:
        self._loop = _Loop(self.time)
        self._death = self._loop.create_future()
        self.dying = False
        for truth in self.truths:
            over_at = truth.over_at(self.time.time())
            if over_at is None or over_at >= self._unsafe_since:
                truth.outages += 1
        self._loop.set_default_executor(_Disk(self))
        self.run(self._begin())

    async def _begin(self) -> None:
        clock = Clock(self.time.time, self.time.monotonic)
        self.agent = Agent(self._settings, clock=clock)
        wireguard: Any = self.agent.wireguard
        wireguard._run, wireguard.identity = self.interface.run, self.interface.identity
        self.agent.load()
        runner = web.AppRunner(make_app(self.agent), access_log=None)
        await runner.setup()
        self._server: Any = runner.server
        self._main = asyncio.create_task(self.agent.run())

    def attach(self, path: Path, on_event: Callable[[Any], None]) -> Coroutine[Any, Any, Management]:
        return self.openvpn[path.name].attach(on_event)

    def plan_crash(self, how: str, file: str = "any", skip: int = 0) -> None:
        self.crash_plan = CrashPlan(file, how, skip)

    def die(self) -> None:
        """End at the next moment: what is only in memory is lost."""
        self.dying = True
        if not self._death.done():
            self._death.set_result(None)

    def crash(self) -> None:
        if self.is_up:
            self.die()
            self._bury()

    def stop(self) -> None:
        """End as systemd ends it: what is in memory is saved."""
        if self.is_up:
            with contextlib.suppress(NodeDown):
                self.run(self.agent.close())
            self.crash()

    def _bury(self) -> None:
        loop, self._loop, self.crash_plan = self._loop, None, None
        assert loop is not None
        self.deaths += 1
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()
        for process in self.openvpn.values():
            process.detach()
        self._durable |= self._in_journal()
        # Seen within five seconds and saved within one: what is younger may be lost.
        self._unsafe_since = (self._full_since or self.time.time()) - 10

    def sessions_on_disk(self) -> set[str]:
        """Return the ids of the sessions that the agent's journal has told, or will."""
        return (self._durable | self._in_journal()) - self._forgotten

    def forget_sessions(self) -> None:
        """The portals' database is an old one: what was told already may be lost."""
        self._forgotten |= self._durable | self._in_journal()

    def _in_journal(self) -> set[str]:
        loaded = records.load(self.directory / "state" / "journal").records
        return {r["event"]["session_id"] for r in loaded if r["op"] == "event"}

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = LONGEST_CALL_SECONDS) -> Any:
        """Run ``work`` in the agent's loop; raises NodeDown when the agent dies meanwhile."""
        assert self._loop is not None
        result: list[Any] = []

        async def watched() -> None:
            task = asyncio.ensure_future(work)
            await asyncio.wait([task, self._death], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self.dying:
                task.cancel()
                return
            assert task.done(), "no answer in time"
            result.append(task.result())

        self._loop.run_until_complete(watched())
        if self.dying:
            self._bury()
            raise NodeDown("the agent died")
        if self._main.done():
            self._main.result()
        return result[0]

    def lose_interface(self) -> None:
        """The interface is made anew. An agent looks every five seconds, and saves within one."""
        self.interface.rebuild(self.time.time() - 6 if self.is_up else self._unsafe_since)

    def live_until(self, elapsed: float) -> None:
        """Let time pass for this node."""
        if self.is_up:
            with contextlib.suppress(NodeDown):
                pause = max(0.0, elapsed - self.time.elapsed)
                self.run(asyncio.sleep(pause), pause + 1)

    def owner(self, key: str) -> str | None:
        """Return the connection that the agent, or the one before it, knows this key by."""
        return self.agent.store._owners.get(key)

    # --- calls

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of the agent's answer to a whole HTTP request."""
        if not self.is_up:
            raise NodeDown("refused")
        answer = self.run(self._exchange(request))
        response = HTTPResponse(_Source(answer))  # type: ignore[arg-type]
        response.begin()
        return response.status, response.read()

    async def _exchange(self, request: bytes) -> bytes:
        pipe = _Pipe(asyncio.get_running_loop())
        protocol = self._server()
        protocol.connection_made(pipe)
        protocol.data_received(request)
        await pipe.closed
        protocol.connection_lost(None)
        return pipe.answer
