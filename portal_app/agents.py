"""The client of the agent API: the only module that calls a node (ARCHITECTURE.md, "The agent API").

One deadline covers a whole call, from the name lookup to the last byte: each wait on the socket gets the
time that is left, so a peer that sends one byte a second is given up as punctually as a silent one
(reliability.md R96). What an agent answers is untrusted: sizes are bounded and shapes checked.
"""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol, TypeVar

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from portal_app.errors import NodeRefused, NodeUnreachable, SettingsError
from portal_app.settings import Settings
from vpn_core.errors import MessageError
from vpn_core.messages import Admit, Cut, Events, NodeInfo, Usage, WantedSet
from vpn_core.node import agent_name
from vpn_core.plan import AGENT_PORT

logger = logging.getLogger(__name__)
R = TypeVar("R")

#: For calls that somebody waits for, and for those of the controller that carry a node's whole set.
CALL_SECONDS = 1.5
LONG_CALL_SECONDS = 10.0
#: Waiting for all cuts of one act.
TOGETHER_SECONDS = 1.5
LONGEST_ANSWER = 256 * 1024
LONGEST_LIST = 64 * 1024 * 1024
CONNECTIONS_PER_NODE = 8
PARALLEL_CALLS = 32
NAME_SECONDS = 60.0


class NodeAddress(Protocol):
    """Where an agent is: ``models.Node`` has these, and so has ``services.connections.Ended.node``."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def agent_address(self) -> str: ...


_deadline = threading.local()


def _remaining() -> float:
    left = getattr(_deadline, "at", time.monotonic() + CALL_SECONDS) - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline of the call")
    return float(left)


@contextmanager
def _deadline_in(seconds: float) -> Any:
    _deadline.at = time.monotonic() + seconds
    try:
        yield
    finally:
        del _deadline.at


class _DeadlineSocket(ssl.SSLSocket):
    """Every wait ends with the deadline of the call that the thread is in."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        self.settimeout(_remaining())
        return super().read(len, buffer)

    def send(self, data: Any, flags: int = 0) -> int:
        self.settimeout(_remaining())
        return super().send(data, flags)

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(_remaining())
        super().do_handshake(block)


def _socket_class(withdrawn: Collection[str]) -> type[ssl.SSLSocket]:
    """Return a socket that takes no agent whose certificate was withdrawn: nobody is behind it (N5)."""
    serials = {int(serial, 16) for serial in withdrawn}

    class NoneWithdrawn(_DeadlineSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            serial = int(str((self.getpeercert() or {}).get("serialNumber", "0")), 16)
            if serial in serials:
                raise ssl.SSLCertVerificationError(f"{serial:x} is withdrawn")

    return NoneWithdrawn


class _Names:
    """Addresses of agents. A lookup is bounded, and the last known address serves while the resolver is
    dead (R77).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="names")

    def addresses(self, host: str, port: int) -> list[Any]:
        looked_up_at, known = self._known.get((host, port), (0.0, []))
        if known and time.monotonic() - looked_up_at < NAME_SECONDS:
            return known
        try:
            found = self._pool.submit(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM).result(
                min(1.0, _remaining())
            )
        except (OSError, FutureTimeoutError) as error:
            if known:
                return known
            raise OSError(f"{host}: no address found") from error
        self._known[host, port] = (time.monotonic(), found)
        return found


_names = _Names()


class _Connection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        last: OSError | None = None
        found = _names.addresses(self.host, self.port)
        for tried, (family, kind, protocol, _name, address) in enumerate(found):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(_remaining() / (len(found) - tried))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(address)
            except OSError as error:
                connection.close()
                last = error
                continue
            return connection
        raise last or OSError("no address")


class _Pool(HTTPSConnectionPool):
    ConnectionCls = _Connection


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


class Agents:
    """Calls to every node's agent over kept-alive connections with mutual TLS.

    A call raises NodeUnreachable when there was no usable answer in time and NodeRefused when the agent
    said no.
    """

    def __init__(self, settings: Settings) -> None:
        self._context = _context(settings)
        self._pools: dict[tuple[int, str], _Pool] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="agents")

    def info(self, node: NodeAddress, *, seconds: float = CALL_SECONDS) -> NodeInfo:
        info = _parsed(node, NodeInfo.parse, self._call(node, "GET", "/n/info", seconds=seconds))
        if info.node_number != node.number:
            raise NodeUnreachable(f"{node.name}: answers as node {info.node_number}, not {node.number}")
        return info

    def admit(self, node: NodeAddress, admit: Admit, *, seconds: float = CALL_SECONDS) -> None:
        """Make one connection usable; when this returns, it is."""
        path = f"/n/connections/{admit.connection.connection_id}"
        self._call(node, "PUT", path, admit.to_dict(), seconds=seconds)

    def cut(self, node: NodeAddress, connection_id: str, cut: Cut, *, seconds: float = CALL_SECONDS) -> Usage:
        """End one connection now, also when it is in use; returns its last counters."""
        path = f"/n/connections/{connection_id}"
        return _parsed(node, Usage.parse, self._call(node, "DELETE", path, cut.to_dict(), seconds=seconds))

    def put_set(
        self, node: NodeAddress, wanted: WantedSet, *, seconds: float = LONG_CALL_SECONDS
    ) -> dict[str, int]:
        """Hand over everything the node should have; returns how many the agent removed and added."""
        answer = self._call(node, "PUT", "/n/connections", wanted.to_dict(), seconds=seconds)
        if not isinstance(answer, dict) or not all(isinstance(v, int) for v in answer.values()):
            raise NodeUnreachable(f"{node.name}: unexpected answer to a wanted set")
        return answer

    def usage(self, node: NodeAddress, *, seconds: float = LONG_CALL_SECONDS) -> list[Usage]:
        answer = self._call(node, "GET", "/n/usage", seconds=seconds, longest=LONGEST_LIST)
        if not isinstance(answer, dict) or not isinstance(answer.get("usage"), list):
            raise NodeUnreachable(f"{node.name}: unexpected answer to /n/usage")
        return [_parsed(node, Usage.parse, item) for item in answer["usage"]]

    def events(
        self, node: NodeAddress, after: int, journal: str | None, *, seconds: float = LONG_CALL_SECONDS
    ) -> Events:
        """Read the journal behind sequence ``after``; acknowledges all up to it when ``journal`` is the
        agent's.
        """
        path = f"/n/events?after={after}" + (f"&journal={journal}" if journal else "")
        answer = self._call(node, "GET", path, seconds=seconds, longest=LONGEST_LIST)
        return _parsed(node, Events.parse, answer)

    def set_maintenance(self, node: NodeAddress, on: bool, *, seconds: float = CALL_SECONDS) -> None:
        self._call(node, "PUT", "/n/maintenance", {"on": on}, seconds=seconds)

    def start(self, call: Callable[[], R]) -> "Future[R]":
        """Run ``call`` in this client's threads; the caller may wait or not."""
        return self._threads.submit(call)

    def together(
        self, calls: Iterable[Callable[[], R]], *, seconds: float = TOGETHER_SECONDS
    ) -> list[R | Exception]:
        """Run calls in parallel; what has not ended after ``seconds`` counts as NodeUnreachable and goes on
        unheard.
        """
        ends_at = time.monotonic() + seconds
        futures = [self._threads.submit(call) for call in calls]
        results: list[R | Exception] = []
        for future in futures:
            try:
                results.append(future.result(max(0.0, ends_at - time.monotonic())))
            except FutureTimeoutError:
                results.append(NodeUnreachable("no answer in time"))
            except Exception as error:
                results.append(error)
        return results

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()

    def _pool(self, node: NodeAddress) -> _Pool:
        key = (node.number, node.agent_address)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = _Pool(
                    node.agent_address,
                    AGENT_PORT,
                    maxsize=CONNECTIONS_PER_NODE,
                    ssl_context=self._context,
                    cert_reqs="CERT_REQUIRED",
                    # Who it is, wherever it is reached: the name in its certificate.
                    server_hostname=agent_name(node.number),
                )
            return self._pools[key]

    def _call(
        self,
        node: NodeAddress,
        method: str,
        path: str,
        body: object = None,
        *,
        seconds: float,
        longest: int = LONGEST_ANSWER,
    ) -> Any:
        sent = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            with _deadline_in(seconds):
                answer = self._ask_again(node, method, path, sent, longest)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NodeUnreachable(f"{node.name}: {_reason(error)}") from error
        return _read(node, answer)

    def _ask_again(self, node: NodeAddress, method: str, path: str, sent: bytes, longest: int) -> _Answer:
        """Ask, and once more when a kept-alive connection turns out to be closed: each call may be
        repeated.
        """
        try:
            return self._ask(node, method, path, sent, longest)
        except urllib3.exceptions.ProtocolError:
            return self._ask(node, method, path, sent, longest)

    def _ask(self, node: NodeAddress, method: str, path: str, sent: bytes, longest: int) -> _Answer:
        response = self._pool(node).urlopen(
            method,
            path,
            body=sent,
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json",
                # A node whose clock is wrong lets connections expire by the portal's (R61).
                "Date": formatdate(usegmt=True),
            },
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
            timeout=_remaining(),
        )
        try:
            data = response.read(longest + 1)
            if len(data) > longest:
                raise urllib3.exceptions.HTTPError(f"answer longer than {longest} bytes")
            whole = _Answer(response.status, data)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return whole


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = _socket_class(settings.withdrawn)
    files = (
        settings.management_ca_certificate_file,
        settings.management_certificate_file,
        settings.management_key_file,
    )
    try:
        context.load_verify_locations(files[0])
        context.load_cert_chain(files[1], files[2])
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(map(str, files))
        raise SettingsError(f"management certificates ({names}) cannot be used: {error}") from error
    return context


def _reason(error: Exception) -> str:
    """Say in a few words why there is no answer."""
    inner: BaseException = error
    while isinstance(inner, urllib3.exceptions.HTTPError):
        deeper = (
            inner.args[-1] if inner.args and isinstance(inner.args[-1], BaseException) else inner.__cause__
        )
        if deeper is None or deeper is inner:
            break
        inner = deeper
    if isinstance(inner, TimeoutError | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"not its certificate: {getattr(inner, 'verify_message', '') or inner.args[0]}"
    if isinstance(inner, ConnectionResetError | ssl.SSLError | urllib3.exceptions.ProtocolError):
        # In TLS 1.3 a refused client certificate looks like a cut connection.
        return f"connection cut ({type(inner).__name__}); is this portal's management certificate valid?"
    return f"{type(inner).__name__}: {inner}"[:200]


def _read(node: NodeAddress, answer: _Answer) -> Any:
    try:
        data = json.loads(answer.body) if answer.body else None
    except ValueError as error:
        raise NodeUnreachable(f"{node.name}: {answer.status} and not JSON") from error
    if 200 <= answer.status < 300:
        return data
    text = data.get("error") if isinstance(data, dict) else None
    message = f"{node.name}: {answer.status} {str(text or '')[:200]!r}"
    if 400 <= answer.status < 500:
        raise NodeRefused(message, answer.status)
    raise NodeUnreachable(message)


def _parsed(node: NodeAddress, parse: Callable[[object], R], data: object) -> R:
    try:
        return parse(data)
    except MessageError as error:
        raise NodeUnreachable(f"{node.name}: {error}") from error
