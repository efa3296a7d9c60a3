"""Shared by the agent's tests: certificates, a WireGuard interface in a namespace, a running agent."""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import inspect
import os
import secrets
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from node_agent.agent import Agent
from node_agent.clock import Clock
from node_agent.service import Service
from node_agent.settings import Settings
from vpn_core.messages import Authority, Connection

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
AUTHORITY = Authority("a" * 32, 1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until ``condition()`` is true, and return it; it may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


class CertificateAuthority:
    """A certification authority and what it signs, as PEM files in a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(subject, subject, self.key, 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file = directory / f"{name}.crt"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: Any, days: float, started_days_ago: float = 1
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=started_days_ago))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def sign(
        self, name: str, usage: x509.ObjectIdentifier | None, *, days: float = 10, file: str = ""
    ) -> tuple[Path, Path]:
        """Return certificate and key file of ``name``."""
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, self.certificate.subject, key, days, started_days_ago=20)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        base = self.directory / f"{self.name}-{file or name}"
        files = base.with_suffix(".crt"), base.with_suffix(".key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


@pytest.fixture(scope="session")
def management(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    authority = CertificateAuthority(tmp_path_factory.mktemp("pki"), "management")
    authority.sign("node-1", SERVER)
    authority.sign("portal", CLIENT)
    return authority


def portal_context(
    management: CertificateAuthority, certificate: tuple[Path, Path] | None = None
) -> ssl.SSLContext:
    """Return what a portal dials with."""
    context = ssl.create_default_context(cafile=management.file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    base = management.directory / "management-portal"
    files = certificate or (base.with_suffix(".crt"), base.with_suffix(".key"))
    context.load_cert_chain(*files)
    return context


@pytest.fixture
def settings(tmp_path: Path, management: CertificateAuthority) -> Settings:
    """Settings of node 1 with one WireGuard profile, on an interface that does not exist yet."""
    base = management.directory / "management-node-1"
    state, runtime = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    runtime.mkdir()
    return Settings.parse(
        {
            "node_number": 1,
            "listen_address": "127.0.0.1",
            "listen_port": 0,
            "certificate_file": str(base.with_suffix(".crt")),
            "key_file": str(base.with_suffix(".key")),
            "ca_file": str(management.file),
            "state_directory": str(state),
            "runtime_directory": str(runtime),
            "wireguard": {
                "interface": f"wgt{secrets.token_hex(4)}",
                "restart_file": str(runtime / "restart-wireguard"),
                "networks": [
                    {
                        "profile_id": "employees",
                        "ipv4": "10.64.0.0/17",
                        "ipv6": "fd00:64::/112",
                        "gateway_ipv4": "10.64.0.1",
                        "gateway_ipv6": "fd00:64::1",
                    }
                ],
            },
        },
        "test",
    )


def public_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def peer(number: int, generation: int | None = None, **changed: Any) -> Connection:
    """Return WireGuard connection ``number`` of profile employees; its address follows from the number."""
    high, low = divmod(number + 2, 256)
    values: dict[str, Any] = {
        "connection_id": f"{number:032x}",
        "profile_id": "employees",
        "protocol": "wireguard",
        "expires_at": int(time.time()) + 3600,
        "generation": number if generation is None else generation,
        "public_key": base64.b64encode(hashlib.sha256(b"%d" % number).digest()).decode(),
        "ipv4": f"10.64.{high}.{low}",
        "ipv6": f"fd00:64::{number + 2:x}",
    }
    return Connection(**(values | changed))


class Interface:
    """A WireGuard interface of wireguard-go in a network namespace of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace = f"ns-{name}"
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)

    def up(self) -> None:
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "wireguard-go", "-f", self.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while self.wg("show", self.name, check=False).returncode:
            assert time.monotonic() < deadline, "wireguard-go did not come up"
            time.sleep(0.02)
        key = subprocess.run(["wg", "genkey"], check=True, capture_output=True).stdout
        subprocess.run(["wg", "set", self.name, "private-key", "/dev/stdin"], input=key, check=True)

    def down(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            # Killed hard, wireguard-go leaves its socket behind; the unit's next start replaces it.
            Path(f"/run/wireguard/{self.name}.sock").unlink(missing_ok=True)

    def _pid(self) -> int:
        """Return wireguard-go itself: `ip netns exec` becomes it."""
        assert self.process is not None
        return self.process.pid

    def pause(self) -> None:
        os.kill(self._pid(), signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid(), signal.SIGCONT)

    def wg(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["wg", *words], check=check, capture_output=True, text=True)

    def peers(self) -> dict[str, str]:
        """Return allowed IPs by public key."""
        lines = self.wg("show", self.name, "allowed-ips").stdout.splitlines()
        return {key: ips for key, _, ips in (line.partition("\t") for line in lines)}

    def close(self) -> None:
        self.down()
        subprocess.run(["ip", "netns", "delete", self.namespace], check=True)


@pytest.fixture
def interface(settings: Settings) -> Iterator[Interface]:
    assert settings.wireguard is not None
    made = Interface(settings.wireguard.interface)
    try:
        made.up()
        yield made
    finally:
        made.close()


@dataclass
class Running:
    """An agent that serves, and a portal's connection to it."""

    service: Service
    agent: Agent
    portal: aiohttp.ClientSession
    url: str

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
        """Return status and JSON of the answer."""
        if body is not None:
            options["json"] = body
        async with self.portal.request(
            method, self.url + path, server_hostname="node-1", **options
        ) as answer:
            text = await answer.read()
            return answer.status, (await answer.json()) if text else None

    async def admit(self, connection: Connection, authority: Authority = AUTHORITY) -> int:
        body = {"authority": authority.to_dict(), "connection": connection.to_dict()}
        return (await self.call("PUT", f"/n/connections/{connection.connection_id}", body))[0]

    async def cut(self, connection_id: str, generation: int, authority: Authority = AUTHORITY) -> Any:
        body = {"authority": authority.to_dict(), "generation": generation}
        return (await self.call("DELETE", f"/n/connections/{connection_id}", body))[1]

    async def replace(
        self, generation: int, *connections: Connection, authority: Authority = AUTHORITY, **more: Any
    ) -> tuple[int, Any]:
        body = {
            "authority": authority.to_dict(),
            "generation": generation,
            "connections": [c.to_dict() for c in connections],
        }
        return await self.call("PUT", "/n/connections", body | more)

    async def info(self) -> dict[str, Any]:
        status, found = await self.call("GET", "/n/info")
        assert status == 200
        assert isinstance(found, dict)
        return found


@contextlib.asynccontextmanager
async def running(
    settings: Settings, management: CertificateAuthority, clock: Clock | None = None
) -> AsyncIterator[Running]:
    """Run an agent in this event loop, with a portal beside it."""
    agent = Agent(settings, clock=clock)
    service = Service(settings, agent)
    task = asyncio.create_task(service.run())
    connector = aiohttp.TCPConnector(ssl=portal_context(management), force_close=False)
    try:
        async with aiohttp.ClientSession(connector=connector) as portal:
            url = f"https://127.0.0.1:{service.port}"
            yield Running(service, agent, portal, url)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def without_wireguard(settings: Settings) -> Settings:
    return replace(settings, wireguard=None)
