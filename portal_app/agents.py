"""The client of the agent API: the only module that calls a node (ARCHITECTURE.md, "The agent API").

One deadline covers a whole call, from the name lookup to the last byte: each wait on the socket gets the
time that is left, so a peer that sends one byte a second is given up as punctually as a silent one
(reliability.md R96). What an agent answers is untrusted: sizes are bounded and shapes checked.
"""

import functools
import json
import logging
import re
import socket
import ssl
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from portal_app.certificates import Certificate
from portal_app.clock import utc_now
from portal_app.errors import NodeBusy, NodeRefused, NodeUnreachable, SettingsError
from portal_app.settings import Settings
from portal_app.turns import Turns
from vpn_core.errors import MessageError
from vpn_core.messages import Admit, Cut, Events, NodeInfo, Translations, Usage, WantedSet
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
#: Of one process at one node. When hundreds of people come back together, more would only hold up each other,
#: until a node that is well seems not to answer (reliability.md R33).
ADMISSIONS_AT_ONCE = 6
PARALLEL_CALLS = 32
NAME_SECONDS = 60.0
LONGEST_HEAD = 16 * 1024
MOST_AT_ONCE = 256 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: .*)?")
_LENGTH = re.compile(rb"[0-9]{1,12}")
_PLAIN_PATH = re.compile(r"[a-z0-9/]+")


class NodeAddress(Protocol):
    """Where an agent is: ``models.Node`` has these, and so has ``services.connections.Ended.node``."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def agent_address(self) -> str: ...


def _left(ends_at: float) -> float:
    """Return the seconds until a deadline; raises TimeoutError when there are none."""
    left = ends_at - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline of the call")
    return left


class _Names:
    """Addresses of agents, the one that worked last first. A lookup is bounded, and the last known addresses
    serve while the resolver is dead (R77).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}
        self._worked: dict[tuple[str, int], Any] = {}
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="names")

    def addresses(self, host: str, port: int, ends_at: float) -> list[Any]:
        worked = self._worked.get((host, port))
        return sorted(self._look_up(host, port, ends_at), key=lambda found: found[4] != worked)

    def keep(self, host: str, port: int, address: Any) -> None:
        """Let ``address`` come first: one that nothing answers at costs its part of the time only once."""
        self._worked[host, port] = address

    def _look_up(self, host: str, port: int, ends_at: float) -> list[Any]:
        looked_up_at, known = self._known.get((host, port), (0.0, []))
        if known and time.monotonic() - looked_up_at < NAME_SECONDS:
            return known
        try:
            found = self._pool.submit(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM).result(
                min(1.0, _left(ends_at))
            )
        except (OSError, FutureTimeoutError) as error:
            if known:
                return known
            raise OSError(f"{host}: no address found") from error
        self._known[host, port] = (time.monotonic(), found)
        return found


_names = _Names()


def _dial(host: str, ends_at: float) -> socket.socket:
    """Connect to the first address of ``host`` that takes it, each with its part of the time."""
    last: OSError | None = None
    found = _names.addresses(host, AGENT_PORT, ends_at)
    for tried, (family, kind, protocol, _name, address) in enumerate(found):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(ends_at) / (len(found) - tried))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
        except OSError as error:
            connection.close()
            last = error
            continue
        _names.keep(host, AGENT_PORT, address)
        return connection
    raise last or OSError("no address")


class _NoAgentError(Exception):
    """What is there is not taken for the node's agent, or does not answer as agents do."""


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    keeps_open: bool


class _Link:
    """One TLS connection to an agent; a call is one request and one answer, one after the other.

    HTTP of agents only: an answer has a Content-Length or no body, and is never compressed; a redirect is an
    answer like any other.
    """

    def __init__(self, node: NodeAddress, context: ssl.SSLContext, ends_at: float) -> None:
        plain = _dial(node.agent_address, ends_at)
        try:
            # Who it is, wherever it is reached: the name in its certificate.
            name = agent_name(node.number)
            self._tls = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        try:
            self._tls.settimeout(_left(ends_at))
            self._tls.do_handshake()
        except BaseException:
            self.close()
            raise

    def certificate(self) -> Certificate:
        said: Any = self._tls.getpeercert()
        moments = (
            datetime.fromtimestamp(ssl.cert_time_to_seconds(said[key]), UTC)
            for key in ("notBefore", "notAfter")
        )
        return Certificate(int(said["serialNumber"], 16), *moments)

    def ask(self, request: bytes, longest: int, ends_at: float) -> _Answer:
        self._send(request, ends_at)
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > LONGEST_HEAD:
                raise _NoAgentError(f"head longer than {LONGEST_HEAD} bytes")
            data += self._receive(LONGEST_HEAD, ends_at)
        status, length, keeps_open = _read_head(bytes(data[:end]))
        if length > longest:
            raise _NoAgentError(f"answer longer than {longest} bytes")
        del data[: end + 4]
        while len(data) < length:
            data += self._receive(min(length - len(data), MOST_AT_ONCE), ends_at)
        # What nobody asked for would be taken for the next answer.
        return _Answer(status, bytes(data[:length]), keeps_open and len(data) == length)

    def close(self) -> None:
        self._tls.close()

    def _send(self, request: bytes, ends_at: float) -> None:
        sent = 0
        while sent < len(request):
            self._tls.settimeout(_left(ends_at))
            sent += self._tls.send(request[sent : sent + MOST_AT_ONCE])

    def _receive(self, most: int, ends_at: float) -> bytes:
        self._tls.settimeout(_left(ends_at))
        received = self._tls.recv(most)
        if not received:
            raise ConnectionResetError("closed by the agent")
        return received


@functools.lru_cache(maxsize=2)
def _http_date(at: int) -> str:
    return formatdate(at, usegmt=True)


def _request(node: NodeAddress, method: str, path: str, sent: bytes, boot_id: str | None) -> bytes:
    head = (
        f"{method} {path if _PLAIN_PATH.fullmatch(path) else quote(path, safe='/?=&,')} HTTP/1.1\r\n"
        f"Host: {agent_name(node.number)}\r\n"
        "Accept: application/json\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(sent)}\r\n"
        # A node whose clock is wrong lets connections expire by the portal's (R61).
        f"Date: {_http_date(int(utc_now().timestamp()))}\r\n"
        + (f'If-Match: "{boot_id}"\r\n' if boot_id else "")
        + "\r\n"
    )
    return head.encode() + sent


def _read_head(head: bytes) -> tuple[int, int, bool]:
    """Return status, length of the body, and whether the connection stays open."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(first)
    if found is None:
        raise _NoAgentError("no HTTP answer")
    length, keeps_open = 0, True
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if name == b"content-length":
            if not _LENGTH.fullmatch(value):
                raise _NoAgentError("no length of the body")
            length = int(value)
        elif name == b"transfer-encoding":
            raise _NoAgentError("no length of the body")
        elif name == b"connection":
            keeps_open = value.lower() != b"close"
    return int(found[1]), length, keeps_open


def _close_all(idle: dict[tuple[int, str], list[_Link]]) -> None:
    for link in [link for links in idle.values() for link in links]:
        link.close()
    idle.clear()


class Admissions:
    """Who may ask which node now to admit somebody."""

    def __init__(self, at_once: int = ADMISSIONS_AT_ONCE) -> None:
        self._at_once = at_once
        self._turns: dict[int, Turns] = {}
        self._silences: Counter[int] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, node: NodeAddress, latest: float) -> Iterator[None]:
        """Wait for a turn at a node; raises NodeBusy when there is none in time, NodeUnreachable when the
        node did not answer others meanwhile.
        """
        with self._lock:
            turns = self._turns.setdefault(node.number, Turns(self._at_once))
            silences = self._silences[node.number]
        if not turns.take(max(0.0, latest - time.monotonic())):
            raise NodeBusy(f"{node.name}: too many at once")
        try:
            if self._silences[node.number] != silences:
                raise NodeUnreachable(f"{node.name}: did not answer others just now")
            yield
        finally:
            turns.give_back()

    def waiting(self, node_number: int) -> int:
        """Return how many wait for a turn."""
        turns = self._turns.get(node_number)
        return turns.waiting() if turns else 0

    def note_silence(self, node: NodeAddress) -> None:
        with self._lock:
            self._silences[node.number] += 1


class Agents:
    """Calls to every node's agent over kept-alive connections with mutual TLS.

    A call raises NodeUnreachable when there was no usable answer in time and NodeRefused when the agent
    said no.
    """

    def __init__(self, settings: Settings) -> None:
        self._context = _context(settings)
        self._withdrawn = {int(serial, 16) for serial in settings.withdrawn}
        self._idle: dict[tuple[int, str], list[_Link]] = {}
        # A command makes one for its few calls and lets go of it.
        weakref.finalize(self, _close_all, self._idle)
        self._certificates: dict[int, Certificate] = {}
        self._admissions = Admissions()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="agents")

    def certificate(self, node_number: int) -> Certificate | None:
        """Return the certificate that a node's agent showed last; None when it was not reached yet."""
        return self._certificates.get(node_number)

    def info(self, node: NodeAddress, *, seconds: float = CALL_SECONDS) -> NodeInfo:
        info = _parsed(node, NodeInfo.parse, self._call(node, "GET", "/n/info", seconds=seconds))
        if info.node_number != node.number:
            raise NodeUnreachable(f"{node.name}: answers as node {info.node_number}, not {node.number}")
        return info

    def admit(
        self,
        node: NodeAddress,
        admit: Admit,
        *,
        boot_id: str | None = None,
        seconds: float = CALL_SECONDS,
        ends_at: float | None = None,
    ) -> None:
        """Make one connection usable; when this returns, it is.

        With ``boot_id`` only that run of the machine obeys; another one refuses with 412 (R60).

        The node has ``seconds`` for it, once it is this call's turn, and all is over at ``ends_at``
        (monotonic; without it the wait for the turn is as long again). Raises NodeBusy when that leaves the
        node too little time, or none.
        """
        path = f"/n/connections/{admit.connection.connection_id}"
        latest = time.monotonic() + 2 * seconds if ends_at is None else ends_at
        with self._admissions.turn(node, latest):
            given = min(seconds, latest - time.monotonic())
            try:
                self._call(node, "PUT", path, admit.to_dict(), seconds=given, boot_id=boot_id)
            except NodeUnreachable as error:
                if given < seconds:
                    raise NodeBusy(str(error)) from error
                self._admissions.note_silence(node)
                raise

    def cut(self, node: NodeAddress, connection_id: str, cut: Cut, *, seconds: float = CALL_SECONDS) -> Usage:
        """End one connection now, also when it is in use; returns its last counters."""
        path = f"/n/connections/{connection_id}"
        return _parsed(node, Usage.parse, self._call(node, "DELETE", path, cut.to_dict(), seconds=seconds))

    def put_set(
        self,
        node: NodeAddress,
        wanted: WantedSet,
        *,
        boot_id: str | None = None,
        seconds: float = LONG_CALL_SECONDS,
    ) -> dict[str, int]:
        """Hand over everything the node should have; returns how many the agent removed and added.
        ``boot_id`` as for ``admit``.
        """
        body = wanted.to_dict()
        answer = self._call(node, "PUT", "/n/connections", body, seconds=seconds, boot_id=boot_id)
        if not isinstance(answer, dict) or not all(isinstance(v, int) for v in answer.values()):
            raise NodeUnreachable(f"{node.name}: unexpected answer to a wanted set")
        return answer

    def usage(
        self,
        node: NodeAddress,
        *,
        only: Collection[str] | None = None,
        seconds: float = LONG_CALL_SECONDS,
    ) -> list[Usage]:
        """Return what every connection of a node has used, or those with the ids in ``only``, a page of them
        at most.
        """
        path = "/n/usage" if only is None else f"/n/usage?connections={','.join(only)}"
        answer = self._call(node, "GET", path, seconds=seconds, longest=LONGEST_LIST)
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

    def translations(
        self,
        node: NodeAddress,
        address: str,
        port: int,
        first: int,
        last: int,
        *,
        seconds: float = CALL_SECONDS,
    ) -> Translations:
        """Return whose packets left a node from an address and port, between two times (seconds since 1970).
        A node of an earlier release keeps no such log.
        """
        path = f"/n/translations?address={address}&port={port}&first={first}&last={last}"
        try:
            answer = self._call(node, "GET", path, seconds=seconds, longest=LONGEST_LIST)
        except NodeRefused as error:
            if error.agent_status == 404:
                return Translations(is_kept=False, translations=())
            raise
        return _parsed(node, Translations.parse, answer)

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
        self.hang_up()

    def hang_up(self) -> None:
        """Close what is kept open; the next calls dial again."""
        with self._lock:
            _close_all(self._idle)

    def _call(
        self,
        node: NodeAddress,
        method: str,
        path: str,
        body: object = None,
        *,
        seconds: float,
        longest: int = LONGEST_ANSWER,
        boot_id: str | None = None,
    ) -> Any:
        ends_at = time.monotonic() + seconds
        sent = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        try:
            answer = self._ask(node, method, path, sent, boot_id, longest, ends_at)
        except (OSError, _NoAgentError) as error:
            raise NodeUnreachable(f"{node.name}: {_reason(error)}") from error
        return _read(node, answer)

    def _ask(
        self,
        node: NodeAddress,
        method: str,
        path: str,
        sent: bytes,
        boot_id: str | None,
        longest: int,
        ends_at: float,
    ) -> _Answer:
        """Ask, and once more when a kept connection turns out to be closed: each call may be repeated."""
        request = _request(node, method, path, sent, boot_id)
        kept = self._kept(node)
        if kept is not None:
            with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return self._ask_over(kept, node, request, longest, ends_at)
        return self._ask_over(self._dial(node, ends_at), node, request, longest, ends_at)

    def _ask_over(
        self, link: _Link, node: NodeAddress, request: bytes, longest: int, ends_at: float
    ) -> _Answer:
        try:
            answer = link.ask(request, longest, ends_at)
        except BaseException:
            link.close()
            raise
        if answer.keeps_open:
            self._keep(node, link)
        else:
            link.close()
        return answer

    def _dial(self, node: NodeAddress, ends_at: float) -> _Link:
        link = _Link(node, self._context, ends_at)
        certificate = self._certificates[node.number] = link.certificate()
        if certificate.serial_number in self._withdrawn:
            link.close()
            raise _NoAgentError(f"not its certificate: {certificate.serial_number:x} is withdrawn")
        return link

    def _kept(self, node: NodeAddress) -> _Link | None:
        with self._lock:
            links = self._idle.get((node.number, node.agent_address))
            return links.pop() if links else None

    def _keep(self, node: NodeAddress, link: _Link) -> None:
        with self._lock:
            links = self._idle.setdefault((node.number, node.agent_address), [])
            if len(links) < CONNECTIONS_PER_NODE:
                links.append(link)
                return
        link.close()


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
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
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, _NoAgentError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"not its certificate: {error.verify_message}"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLError):
        # In TLS 1.3 a refused client certificate looks like a cut connection.
        return f"connection cut ({type(error).__name__}); is this portal's management certificate valid?"
    return f"{type(error).__name__}: {error}"[:200]


def _read(node: NodeAddress, answer: _Answer) -> Any:
    try:
        data = json.loads(answer.body) if answer.body else None
    except (ValueError, RecursionError) as error:
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
