"""Many simulated agents in one process: mutual TLS, each at its own address, with the state that counts.

``python -m benchmarks.stage.agents FILE`` reads where they are from the JSON of ``simulated`` and takes
commands, one JSON object a line; each is answered with one line.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.portal.agent_server import WIREGUARD_KEY
from tests.portal.certificates import Deployment
from vpn_core.messages import Admit, Authority, Cut, Events, NodeInfo, SessionEvent, Usage, WantedSet
from vpn_core.plan import AGENT_PORT


class Simulated:
    """The process, as a benchmark holds it. Times are of the monotonic clock, which all processes share."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def _tell(self, **command: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def become(self, mode: str, numbers: Collection[int]) -> float:
        """Make these ok, silent (connections are taken and never answered) or gone (nobody listens).

        Returns when it came about.
        """
        return float(self._tell(do="become", mode=mode, numbers=list(numbers)))

    def asked(self) -> dict[int, list[float]]:
        """Return when each was asked how it is since this was called last."""
        return {int(number): times for number, times in self._tell(do="asked").items()}

    def live_on(self, sessions: dict[int, list[tuple[str, str]]]) -> None:
        """Let each node see a session start and end, for connections of these ids and profiles."""
        self._tell(do="live_on", sessions=sessions)

    def state(self) -> dict[int, dict[str, Any]]:
        """Return of each a digest of the ids it would let in, and how many events nobody acknowledged."""
        return {int(number): state for number, state in self._tell(do="state").items()}


@contextmanager
def simulated(deployment: Deployment, addresses: dict[int, str]) -> Iterator[Simulated]:
    """Run agents with these numbers at these addresses."""
    file = deployment.directory / "agents.json"
    pairs = {number: deployment.node(number) for number in addresses}
    file.write_text(
        json.dumps(
            {
                "ca": str(deployment.management.pair.certificate),
                "nodes": [
                    [number, address, str(pairs[number].certificate), str(pairs[number].key)]
                    for number, address in addresses.items()
                ],
            }
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield Simulated(process)
    finally:
        process.terminate()
        process.wait(10)


class _Agent:
    """One node: what it was told, what it has to tell."""

    def __init__(self, number: int, address: str, context: ssl.SSLContext) -> None:
        self.number, self.address, self.context, self.mode = number, address, context, "ok"
        self.asked: list[float] = []
        self.connections: set[str] = set()
        self.authority: Authority | None = None
        self.generation = 0
        self.instance_id, self.boot_id, self.journal_id = (secrets.token_hex(16) for _ in range(3))
        self.journal: list[SessionEvent] = []
        self.head = 0
        self.open: set[asyncio.BaseTransport] = set()
        self._held: list[socket.socket] = []
        self._serving: asyncio.Task[None] | None = None

    # --- the door

    def listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, AGENT_PORT))
        listener.listen(16)
        listener.setblocking(False)
        self._serving = asyncio.create_task(self._accept(listener))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.closing(listener):
            while True:
                connection, _ = await loop.sock_accept(listener)
                if self.mode == "silent":
                    self._held.append(connection)
                    continue
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError):
                    await loop.connect_accepted_socket(lambda: _Caller(self), connection, ssl=self.context)

    async def become(self, mode: str) -> None:
        if self._serving is not None and mode == "gone":
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
            self._serving = None
        if mode == "gone" or self.mode == "silent":
            for transport in list(self.open):
                transport.close()
        while self._held:
            self._held.pop().close()
        self.mode = mode
        if mode != "gone" and self._serving is None:
            self.listen()

    # --- what portals call

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        path, _, query = path.partition("?")
        if path == "/n/info":
            self.asked.append(time.monotonic())
            return 200, self._info()
        if path == "/n/events":
            return 200, self._events(dict(pair.split("=") for pair in query.split("&")))
        if path == "/n/connections":
            return self._replace(WantedSet.parse(json.loads(body)))
        if path == "/n/usage":
            # Whatever is asked about is in use.
            return 200, {"usage": [self._usage(name) for name in query.partition("=")[2].split(",")]}
        connection_id = path.rpartition("/")[2]
        if method == "PUT":
            admit = Admit.parse(json.loads(body))
            self.connections.add(connection_id)
            self.generation = max(self.generation, admit.connection.generation)
            return 204, None
        if method == "DELETE":
            cut = Cut.parse(json.loads(body))
            self.connections.discard(connection_id)
            self.generation = max(self.generation, cut.generation)
            return 200, Usage(connection_id, "wireguard", False, 0, 0).to_dict()
        return 404, {"error": "not simulated"}

    def _usage(self, connection_id: str) -> dict[str, Any]:
        return Usage(connection_id, "openvpn", True, 1_000_000, 20_000_000, ipv4="10.128.0.2").to_dict()

    def _info(self) -> dict[str, Any]:
        return NodeInfo(
            v="1.0", node_number=self.number, instance_id=self.instance_id, boot_id=self.boot_id,
            node_uptime=1000, now=int(time.time()), maintenance_mode=False, cpu_count=2,
            load_average=(0.1, 0.1, 0.1), rel_load_average=(5, 5, 5), profiles={"employees": ["wireguard"]},
            wireguard_public_key=WIREGUARD_KEY, w_peer_count=0, o_client_count=0,
            connection_count=len(self.connections),
            deployment_id=self.authority.deployment_id if self.authority else None,
            epoch=self.authority.epoch if self.authority else 0, generation=self.generation,
            journal_id=self.journal_id, journal_head=self.head,
        ).to_dict()  # fmt: skip

    def _replace(self, wanted: WantedSet) -> tuple[int, object]:
        before, self.connections = self.connections, {c.connection_id for c in wanted.connections}
        self.authority, self.generation = wanted.authority, max(self.generation, wanted.generation)
        return 200, {
            "removed": len(before - self.connections),
            "added": len(self.connections - before),
            "generation": self.generation,
        }

    def _events(self, query: dict[str, str]) -> dict[str, Any]:
        after = int(query["after"]) if query.get("journal") == self.journal_id else 0
        self.journal = [event for event in self.journal if event.sequence > after]
        first = self.journal[0].sequence if self.journal else self.head + 1
        return Events(self.journal_id, first, self.head, tuple(self.journal[:1000])).to_dict()

    def live_on(self, sessions: Sequence[tuple[str, str]]) -> None:
        now = int(time.time())
        for connection_id, profile_id in sessions:
            session_id = secrets.token_hex(16)
            for kind, more in (
                ("start", {"at": now - 60}),
                ("end", {"at": now, "started_at": now - 60, "received_bytes": 1000, "sent_bytes": 1000}),
            ):
                self.head += 1
                self.journal.append(
                    SessionEvent(
                        sequence=self.head,
                        kind=kind,
                        session_id=session_id,
                        connection_id=connection_id,
                        profile_id=profile_id,
                        protocol="wireguard",
                        **more,
                    )
                )


class _Caller(asyncio.Protocol):
    """One connection of a portal."""

    def __init__(self, agent: _Agent) -> None:
        self._agent, self._data = agent, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._agent.open.add(transport)

    def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002
        self._agent.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._data = rest[length:]
        if self._agent.mode != "ok":
            return
        method, path, _ = first.split()
        status, answer = self._agent.answer(method, path, rest[:length])
        body = b"" if answer is None else json.dumps(answer).encode()
        self._transport.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


def _context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    return context


async def _do(agents: dict[int, _Agent], command: dict[str, Any]) -> object:
    if command["do"] == "become":
        for number in command["numbers"]:
            await agents[number].become(command["mode"])
        return time.monotonic()
    if command["do"] == "asked":
        answer = {number: agent.asked for number, agent in agents.items()}
        for agent in agents.values():
            agent.asked = []
        return answer
    if command["do"] == "live_on":
        for number, sessions in command["sessions"].items():
            agents[int(number)].live_on(sessions)
        return None
    return {
        number: {
            "connections": hashlib.sha256("".join(sorted(agent.connections)).encode()).hexdigest(),
            "unread": len(agent.journal),
        }
        for number, agent in agents.items()
    }


async def _main(file: Path) -> None:
    settings = json.loads(file.read_text())
    agents = {
        number: _Agent(number, address, _context(settings["ca"], certificate, key))
        for number, address, certificate, key in settings["nodes"]
    }
    for agent in agents.values():
        agent.listen()
    commands = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    print("READY", flush=True)
    while line := await commands.readline():
        print(json.dumps(await _do(agents, json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
