"""The portal over TLS on a loopback port, and Debian's Chromium, in which its name leads there."""

import ctypes
import os
import queue
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from flask import Flask
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from tests.portal.app_user import HOST
from tests.portal.conftest import *  # noqa: F403 - the portal's fixtures serve here too; ours below replace them

#: Debian's browser; playwright would have to download its own.
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",  # tests run as root
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


_CLONE_NEWNET = 0x40000000


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """A loopback of this test's own, where that can be had (root).

    Chromium drops what it loads when any interface comes or goes, and other tests and labs make some.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        assert libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0


@pytest.fixture
def database() -> str:
    return "sqlite"


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for the portal's name."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


@pytest.fixture
def portal_port(app: Flask, tls_files: tuple[Path, Path]) -> Iterator[int]:
    """The portal over TLS on a port of this host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files)
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def chromium(portal_port: int) -> Iterator[Browser]:
    """A browser that finds the portal's name, and nothing else, on this host."""
    rules = (
        f"--host-resolver-rules=MAP {HOST}:443 127.0.0.1:{portal_port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, rules])
        yield browser
        browser.close()


@pytest.fixture
def scripts() -> bool:
    """Every page must work without scripts; a test may parametrize this."""
    return False


@pytest.fixture
def page(chromium: Browser, scripts: bool) -> Iterator[Page]:
    """A fresh window; no page may break its own policy in it."""
    context = chromium.new_context(ignore_https_errors=True, java_script_enabled=scripts)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    context.close()
    assert [text for text in complaints if "Content Security Policy" in text] == []


@dataclass
class AppListener:
    """Where a desktop app waits for its code: a web server on a loopback port."""

    port: int
    received: "queue.Queue[tuple[str, dict[str, list[str]]]]" = field(default_factory=queue.Queue)

    @property
    def redirect_uri(self) -> str:
        return f"http://127.0.0.1:{self.port}/callback"

    def wait(self) -> tuple[str, dict[str, list[str]]]:
        """Return the method and the values of the next request."""
        return self.received.get(timeout=15)


@pytest.fixture
def app_listener() -> Iterator[AppListener]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET", urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers["Content-Length"])).decode())

        def _answer(self, method: str, values: str) -> None:
            if urlsplit(self.path).path == "/callback":
                listener.received.put((method, parse_qs(values)))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(b"You can close this window.")

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener = AppListener(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield listener
    server.shutdown()
    thread.join()
    server.server_close()
