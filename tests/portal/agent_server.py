"""A small TLS server with the agent's contract, and ways to misbehave that a good agent does not have."""

import json
import ssl
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.portal.certificates import Deployment, Pair
from vpn_core.errors import MessageError
from vpn_core.messages import (
    Admit,
    Connection,
    Cut,
    Gap,
    NodeInfo,
    Translation,
    Translations,
    Usage,
    WantedSet,
)
from vpn_core.plan import AGENT_PORT

WIREGUARD_KEY = "3kQ0tq0mNqT3o7WcYf1YkYc0bK6q0oVQm8H6r7mX0Es="


class AgentServer:
    """Answers like an agent. ``mode``: ok, silent, drip, drip_body, half_open, refuse, garbage, huge,
    redirect.
    """

    def __init__(
        self, deployment: Deployment, number: int, address: str, *, certificate: Pair | None = None
    ) -> None:
        self.number, self.address, self.mode = number, address, "ok"
        self.connections: dict[str, Connection] = {}
        self.active: set[str] = set()
        self.used: dict[str, Usage] = {}
        self.maintenance = False
        self.cuts: dict[str, int] = {}
        self.calls: list[tuple[str, str]] = []
        #: What is in its log of NAT, by address and port; None: it keeps none. ``is_older``: it knows no log.
        self.translations: dict[tuple[str, int], list[Translation]] | None = defaultdict(list)
        self.is_older = False
        self.nat_log_begins = 0
        self.nat_log_gaps: tuple[Gap, ...] = ()
        self.accepted = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        pair = certificate or deployment.node(number)
        context.load_cert_chain(pair.certificate, pair.key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(deployment.management.pair.certificate)
        self._server = _Server((address, AGENT_PORT), _Handler)
        self._server.agent, self._server.context = self, context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def info(self) -> dict[str, Any]:
        return NodeInfo(
            v="1.0", node_number=self.number, instance_id="0" * 32, boot_id="0" * 32, node_uptime=1000,
            now=int(time.time()), maintenance_mode=self.maintenance, cpu_count=2,
            load_average=(0.0, 0.0, 0.0), rel_load_average=(0, 0, 0), profiles={},
            wireguard_public_key=WIREGUARD_KEY, w_peer_count=0, o_client_count=0,
            connection_count=len(self.connections), deployment_id=None, epoch=0, generation=0,
            journal_id="0" * 32, journal_head=0,
        ).to_dict()  # fmt: skip

    def admit(self, connection_id: str, body: Any) -> tuple[int, Any]:
        try:
            admit = Admit.parse(body)
        except MessageError as error:
            return 400, {"error": str(error)}
        with self.lock:
            if self.cuts.get(connection_id, -1) > admit.connection.generation:
                return 409, {"error": "cut by a later generation"}
            self.connections[connection_id] = admit.connection
        return 204, None

    def cut(self, connection_id: str, body: Any) -> tuple[int, Any]:
        cut = Cut.parse(body)
        with self.lock:
            known = self.connections.pop(connection_id, None)
            self.cuts[connection_id] = cut.generation
        protocol = known.protocol if known else "wireguard"
        return 200, Usage(connection_id, protocol, False, 0, 0).to_dict()

    def set_maintenance(self, body: Any) -> tuple[int, Any]:
        self.maintenance = body["on"]
        return 204, None

    def put_set(self, body: Any) -> tuple[int, Any]:
        wanted = {c.connection_id: c for c in WantedSet.parse(body).connections}
        with self.lock:
            had, self.connections = self.connections.keys(), wanted
        return 200, {"added": len(wanted.keys() - had), "removed": len(had - wanted.keys())}

    def usage(self, only: list[str] | None = None) -> dict[str, Any]:
        """What is connected: the ids in ``active``, while they are admitted; ``used`` says more of some."""
        with self.lock:
            found = [
                self.used.get(i) or Usage(i, c.protocol, i in self.active, 0, 0)
                for i, c in self.connections.items()
                if only is None or i in only
            ]
        return {"usage": [usage.to_dict() for usage in found]}

    def translated(self, query: str) -> tuple[int, Any]:
        if self.is_older:
            return 404, {"error": "Not Found"}
        asked = {name: value for name, (value,) in parse_qs(query).items()}
        first, last = int(asked["first"]), int(asked["last"])
        found = (self.translations or {}).get((asked["address"], int(asked["port"])), [])
        within = [t for t in found if t.began_at <= last and (t.ended_at is None or t.ended_at >= first)]
        gaps = tuple(gap for gap in self.nat_log_gaps if gap.began_at <= last and gap.ended_at >= first)
        kept = self.translations is not None
        return 200, Translations(kept, tuple(within), self.nat_log_begins, gaps).to_dict()

    @property
    def peers(self) -> set[str]:
        """The connections that would be usable now."""
        with self.lock:
            return set(self.connections)


class _Server(ThreadingHTTPServer):
    agent: AgentServer
    context: ssl.SSLContext
    daemon_threads = True
    request_queue_size = 64

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.agent.accepted += 1
        try:
            request.settimeout(10)
            with self.context.wrap_socket(request, server_side=True) as secured:
                self.RequestHandlerClass(secured, client_address, self)  # type: ignore[arg-type]
        except (OSError, ValueError):
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        agent = self.server.agent
        path, _, only = self.path.partition("?connections=")
        ids = only.split(",") if only else None
        if path.startswith("/n/translations?"):
            self._serve("GET", lambda: agent.translated(path.partition("?")[2]))
            return
        self._serve("GET", lambda: (200, agent.usage(ids) if path == "/n/usage" else agent.info()))

    def do_PUT(self) -> None:
        agent = self.server.agent
        if self.path == "/n/maintenance":
            self._serve("PUT", lambda: agent.set_maintenance(self._body()))
        elif self.path == "/n/connections":
            self._serve("PUT", lambda: agent.put_set(self._body()))
        else:
            self._serve("PUT", lambda: agent.admit(self._id, self._body()))

    def do_DELETE(self) -> None:
        self._serve("DELETE", lambda: self.server.agent.cut(self._id, self._body()))

    @property
    def _id(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, method: str, answer: Any) -> None:
        agent = self.server.agent
        with agent.lock:
            agent.calls.append((method, self.path))
        if agent.mode == "silent":
            agent.stopping.wait(10)
            self.close_connection = True
            return
        if agent.mode == "drip":
            self._drip()
            return
        status, body = answer()
        if agent.mode == "half_open":
            # It was done, and nobody hears of it.
            agent.stopping.wait(10)
            self.close_connection = True
            return
        if agent.mode == "refuse":
            status, body = 422, {"error": "not served here"}
        data = b"" if body is None else json.dumps(body).encode()
        data = {"garbage": b"<html>", "huge": b"[" + b"1," * 200_000 + b"1]"}.get(agent.mode, data)
        self.send_response(
            302 if agent.mode == "redirect" else 200 if agent.mode in ("garbage", "huge") else status
        )
        if agent.mode == "redirect":
            self.send_header("Location", "/n/info")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if agent.mode == "drip_body":
            self.wfile.flush()
            self._drip(data)
            return
        self.wfile.write(data)
        self.wfile.flush()

    def _drip(self, data: bytes = b"HTTP/1.1 204 No Content\r\nX-Slow: " + b"x" * 1000) -> None:
        self.close_connection = True
        for byte in data:
            if self.server.agent.stopping.wait(0.1):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
