"""Certificates of one made-up deployment: management CA, portal, nodes, client CA, server CA."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vpn_control.authority import BACKDATED

LIFE = timedelta(days=3650)


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


class Authority:
    """A CA that writes its files into ``directory``."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self._key = Ed25519PrivateKey.generate()
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._subject, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, None)
        )
        self.pair = _write(directory, name, certificate, self._key)

    def issue(self, name: str, *, server: bool) -> Pair:
        """Issue a certificate for ``name`` that is good for one side only."""
        key = Ed25519PrivateKey.generate()
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, None)
        )
        side = "server" if server else "client"
        return _write(self.directory, f"{self.name}-{name}-{side}", certificate, key)

    def _builder(self, subject: x509.Name, key: Ed25519PrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFE)
        )


def _write(directory: Path, name: str, certificate: x509.Certificate, key: Ed25519PrivateKey) -> Pair:
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return pair


class Deployment:
    """Every file that a portal's settings name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.management = Authority(directory, "management-ca")
        self.stranger = Authority(directory, "stranger-ca")
        self.client_ca = Authority(directory, "client-ca")
        self.server_ca = Authority(directory, "server-ca")
        self.portal = self.management.issue("portal", server=False)
        self._nodes: dict[int, Pair] = {}
        (directory / "secret").write_bytes(b"a secret of the tests, 32 bytes.")
        self.tls_crypt = directory / "tls-crypt"
        self.tls_crypt.mkdir()
        for profile_id in ("employees", "lab", "legacy"):
            (self.tls_crypt / f"{profile_id}.key").write_text(
                "-----BEGIN OpenVPN Static key V1-----\n00ff\n-----END OpenVPN Static key V1-----\n"
            )

    def node(self, number: int) -> Pair:
        if number not in self._nodes:
            self._nodes[number] = self.management.issue(f"node-{number}", server=True)
        return self._nodes[number]
