"""TLS for portals only: strangers end in the handshake (reliability R66, N1, N5).

TLS 1.3, a client certificate of the management CA, made for clients (EKU clientAuth), with a portal's name,
not withdrawn. No session tickets: a resumed session would skip these checks.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
MOST_HANDSHAKES = 128
REFUSAL_LOG_SECONDS = 60.0
#: DER of the object identifier of extKeyUsage, 2.5.29.37. OpenSSL refuses a certificate whose extension lacks
#: clientAuth, but takes one without the extension.
_EXTENDED_KEY_USAGE = bytes.fromhex("0603551d25")


def check_peer(certificate: dict[str, Any], der: bytes, names: Collection[str], withdrawn: set[int]) -> None:
    """Raise SSLCertVerificationError unless a verified certificate is a portal's."""
    found = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    found |= {v for part in certificate.get("subject", ()) for k, v in part if k == "commonName"}
    if not found & set(names):
        raise ssl.SSLCertVerificationError(f"certificate of {sorted(found)!r:.100}, not of a portal")
    if _EXTENDED_KEY_USAGE not in der:
        raise ssl.SSLCertVerificationError("certificate is not made for clients")
    if int(certificate["serialNumber"], 16) in withdrawn:
        raise ssl.SSLCertVerificationError(f"certificate {certificate['serialNumber']} is withdrawn")


def _object_class(names: Collection[str], withdrawn: set[int]) -> type[ssl.SSLObject]:
    class PortalsOnly(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check_peer(self.getpeercert() or {}, self.getpeercert(binary_form=True) or b"", names, withdrawn)

    return PortalsOnly


class Certificates:
    """The server's context, made anew when one of its files changes."""

    def __init__(
        self,
        certificate_file: Path,
        key_file: Path,
        ca_file: Path,
        portal: Collection[str],
        withdrawn: Collection[str] = (),
    ) -> None:
        self._files = (certificate_file, key_file, ca_file)
        self._object_class = _object_class(tuple(portal), {int(serial, 16) for serial in withdrawn})
        self._stamps: list[tuple[int, int]] = []
        self.problem = ""
        self._context = self._load()
        self._stamps = self._stat()

    def _stat(self) -> list[tuple[int, int]]:
        return [(s.st_mtime_ns, s.st_ino) for s in (path.stat() for path in self._files)]

    def _load(self) -> ssl.SSLContext:
        certificate_file, key_file, ca_file = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0
        context.load_cert_chain(certificate_file, key_file)
        context.load_verify_locations(ca_file)
        context.sslobject_class = self._object_class
        return context

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection; files that cannot be used leave the old one in place."""
        try:
            stamps = self._stat()
            if stamps != self._stamps:
                self._context = self._load()
                self._stamps = stamps
                log.info("event=certificates_loaded")
            self.problem = ""
        except OSError as error:
            if not self.problem:
                log.error("event=certificates_unusable reason=%r", str(error))
            self.problem = f"certificate files cannot be used, the old ones serve on: {error}"
        return self._context


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket; ``::`` takes IPv4 too, and means IPv4 on a host without IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if address != "::":
            raise
        address, listener = "0.0.0.0", socket.socket(socket.AF_INET, socket.SOCK_STREAM)  # noqa: S104
    if address == "::":
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Door:
    """Accepts connections, shakes hands with portals and hands them to a protocol."""

    def __init__(
        self,
        listener: socket.socket,
        certificates: Certificates,
        protocol: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self._listener = listener
        self._certificates = certificates
        self._protocol = protocol
        self._shaking = asyncio.Semaphore(MOST_HANDSHAKES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[str, tuple[float, int]] = {}

    async def serve(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._shaking.acquire()
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of file descriptors, for example: the portals come again.
                log.error("event=accept_failed reason=%r", error.strerror)
                self._shaking.release()
                await asyncio.sleep(1)
                continue
            except BaseException:
                self._shaking.release()
                raise
            # An IPv4 caller of the IPv6 socket, as people write its address.
            source = str(address[0]).removeprefix("::ffff:")
            task = asyncio.create_task(self._shake(connection, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake(self, connection: socket.socket, source: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._certificates.context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=1.0,
            )
        except OSError as error:
            # An error of our own has its text alone, which str() would show as a tuple.
            self._log_refusal(source, str(error.args[0] if len(error.args) == 1 else error))
            with contextlib.suppress(OSError):
                connection.close()
        finally:
            self._shaking.release()

    def _log_refusal(self, source: str, reason: str) -> None:
        """Write one line a minute and source, with the number of refusals that were not written."""
        now = time.monotonic()
        logged_at, unlogged = self._refused.get(source, (float("-inf"), 0))
        if now - logged_at < REFUSAL_LOG_SECONDS:
            self._refused[source] = (logged_at, unlogged + 1)
            return
        if len(self._refused) >= 1000:
            self._refused.clear()
        self._refused[source] = (now, 0)
        log.warning("event=refused source=%s reason=%r earlier=%d", source, reason, unlogged)
