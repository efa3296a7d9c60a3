"""Real OpenVPN servers and clients for the agent's tests, in network namespaces joined by a veth pair."""

import asyncio
import datetime
import secrets
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vpn_core.openvpn import tls_crypt_key

PEM = serialization.Encoding.PEM
SERVER_ADDRESS, CLIENT_ADDRESS = "10.98.7.1", "10.98.7.2"


class Ca:
    """A VPN CA with Ed25519 keys (spec node.md, section 8)."""

    def __init__(self, name: str) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self.name, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, None)
        )
        self.pem = certificate.public_bytes(PEM).decode()

    def _builder(self, subject: x509.Name, key: Ed25519PrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def sign(self, common_name: str, profile_id: str, usage: x509.ObjectIdentifier) -> tuple[str, str]:
        """Return certificate and key."""
        key = Ed25519PrivateKey.generate()
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, profile_id),
            ]
        )
        usages = dict.fromkeys(
            (
                "content_commitment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        certificate = (
            self._builder(subject, key)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_encipherment=True, **usages), critical=True
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, None)
        )
        private = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        return certificate.public_bytes(PEM).decode(), private


class World:
    """Two namespaces: server processes in one, clients in the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server_ca, self.client_ca = Ca("server CA"), Ca("client CA")
        self.secret = secrets.token_hex(32)
        name = secrets.token_hex(3)
        self.server_ns, self.client_ns = f"ovs-{name}", f"ovc-{name}"
        self._processes: list[subprocess.Popen[bytes]] = []
        here, there = f"vs{name}", f"vc{name}"
        for words in (
            f"netns add {self.server_ns}",
            f"netns add {self.client_ns}",
            f"link add {here} netns {self.server_ns} type veth peer name {there} netns {self.client_ns}",
            f"-n {self.server_ns} address add {SERVER_ADDRESS}/30 dev {here}",
            f"-n {self.client_ns} address add {CLIENT_ADDRESS}/30 dev {there}",
            f"-n {self.server_ns} link set {here} up",
            f"-n {self.client_ns} link set {there} up",
            f"-n {self.server_ns} link set lo up",
        ):
            subprocess.run(["ip", *words.split()], check=True)

    def _run(self, namespace: str, name: str, configuration: str) -> subprocess.Popen[bytes]:
        path = self.directory / f"{name}.conf"
        path.write_text(configuration)
        words = ["openvpn", "--cd", str(self.directory), "--config", str(path)]
        with (self.directory / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *words], stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return process

    def socket(self, name: str) -> Path:
        return self.directory / f"{name}.sock"

    def serve(self, name: str, profile_id: str, port: int = 1194) -> subprocess.Popen[bytes]:
        """Start a server process with the directives of spec node.md 7.2."""
        certificate, key = self.server_ca.sign(
            "node1.example.org", profile_id, ExtendedKeyUsageOID.SERVER_AUTH
        )
        return self._run(
            self.server_ns,
            name,
            f"""dev-type tun
topology subnet
persist-tun
remote-cert-tls client
dh none
tls-version-min 1.3
data-ciphers AES-256-GCM:CHACHA20-POLY1305
server 10.80.1.0 255.255.255.128
server-ipv6 fd00:80:1::/112
max-clients 124
keepalive 10 60
script-security 2
dev tun{port % 1000}
port {port}
proto udp
management {self.socket(name)} unix
management-client-auth
auth-user-pass-optional
verify-client-cert require
verb 3
<ca>
{self.client_ca.pem}</ca>
<cert>
{certificate}</cert>
<key>
{key}</key>
<tls-crypt>
{tls_crypt_key(self.secret, profile_id)}</tls-crypt>
explicit-exit-notify 1
push "explicit-exit-notify 1"
""",
        )

    def connect(
        self, common_name: str, profile_id: str, port: int = 1194, *, organizational_unit: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a client; it keeps trying as apps do."""
        certificate, key = self.client_ca.sign(
            common_name, organizational_unit or profile_id, ExtendedKeyUsageOID.CLIENT_AUTH
        )
        return self._run(
            self.client_ns,
            f"client-{common_name[-4:]}",
            f"""client
dev tun
nobind
remote {SERVER_ADDRESS} {port} udp
remote-cert-tls server
tls-version-min 1.3
data-ciphers AES-256-GCM:CHACHA20-POLY1305
connect-retry 1 2
server-poll-timeout 5
verb 3
<ca>
{self.server_ca.pem}</ca>
<cert>
{certificate}</cert>
<key>
{key}</key>
<tls-crypt>
{tls_crypt_key(self.secret, profile_id)}</tls-crypt>
""",
        )

    async def pings(self, address: str = "10.80.1.1", seconds: float = 1.0) -> bool:
        """Tell whether a ping through the tunnel is answered."""
        words = ["ip", "netns", "exec", self.client_ns, "ping", "-c1", f"-W{seconds}", address]
        process = await asyncio.create_subprocess_exec(
            *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return await process.wait() == 0

    def output(self, name: str) -> str:
        path = self.directory / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    @staticmethod
    def stop(process: subprocess.Popen[bytes], *, hard: bool = False) -> None:
        if process.poll() is None:
            process.kill() if hard else process.terminate()
            process.wait()

    def close(self) -> None:
        for process in self._processes:
            self.stop(process, hard=True)
        for namespace in (self.server_ns, self.client_ns):
            subprocess.run(["ip", "netns", "delete", namespace], check=True)
