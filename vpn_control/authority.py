"""The certificate authorities of an environment and what they sign (spec node.md, section 8).

Keys of hosts are born on the hosts; only their public keys come here. What a certificate says (name, use) is
decided here and never taken from a host, so a stolen host cannot ask for another's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 25 * 365
#: Clocks of hosts and clients may be wrong by a little.
BACKDATED = timedelta(hours=1)

#: The authorities by the prefix of their variables in the vault. Browsers do not take Ed25519, hence ECDSA.
AUTHORITIES = {
    "vault_server_ca": ("Causeway server CA", "ed25519"),
    "vault_client_ca": ("Causeway client CA", "ed25519"),
    "vault_management_ca": ("Causeway management CA", "ed25519"),
    "vault_portal_tls_ca": ("Causeway portal CA", "ecdsa"),
}

_USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class Authority:
    """A CA's certificate and key in PEM."""

    certificate: str
    key: str


def make_authority(name: str, key_type: str, now: datetime) -> Authority:
    """Return a new CA that may sign certificates only, none of them a CA."""
    key: Ed25519PrivateKey | EllipticCurvePrivateKey
    key = Ed25519PrivateKey.generate() if key_type == "ed25519" else generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256() if key_type == "ecdsa" else None)
    return Authority(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def issue(authority: Authority, public_key: str, name: str, use: str, days: int, now: datetime) -> str:
    """Return a certificate in PEM for a host's public key: ``name`` is its CN and its only SAN.

    ``use`` is server or client. It ends with its authority at the latest. Raises ValueError for what is no
    public key.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    key = serialization.load_pem_private_key(authority.key.encode(), None)
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise ValueError("the authority's key is neither Ed25519 nor ECDSA")
    subject_key = serialization.load_pem_public_key(public_key.encode())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer.subject)
        .public_key(subject_key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + timedelta(days=days), issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USES[use]]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject_key), critical=False)  # type: ignore[arg-type]
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def reason_to_issue(
    certificate: str | None, public_key: str, authority: str, name: str, use: str, now: datetime
) -> str | None:
    """Tell why a host's certificate must be made anew, or None when it is good for two thirds of its life.

    All PEM; ``certificate`` is None when the host has none.
    """
    if not certificate:
        return "there is none"
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        issuer = x509.load_pem_x509_certificate(authority.encode())
        found.verify_directly_issued_by(issuer)
    except Exception:  # whatever is wrong with it, a new one mends it
        return "it is not from this environment's CA"
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    wanted_key = serialization.load_pem_public_key(public_key.encode()).public_bytes(encoding, form)
    if found.public_key().public_bytes(encoding, form) != wanted_key:
        return "it belongs to another key"
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if list(names) != [_general_name(name)] or list(uses) != [_USES[use]]:
        return "it has another name or use"
    life = found.not_valid_after_utc - found.not_valid_before_utc
    if found.not_valid_after_utc - now < life / 3:
        return "a third of its life is left"
    return None


def serial_number(certificate: str | None) -> int | None:
    """Return the serial number of a certificate in PEM; None for what is none."""
    try:
        return x509.load_pem_x509_certificate((certificate or "").encode()).serial_number
    except ValueError:
        return None


def make_environment(now: datetime | None = None) -> Mapping[str, str]:
    """Return the variables of the authorities for a new environment's vault."""
    found = {}
    for prefix, (name, key_type) in AUTHORITIES.items():
        authority = make_authority(name, key_type, now or datetime.now(UTC))
        found[f"{prefix}_certificate"] = authority.certificate
        found[f"{prefix}_key"] = authority.key
    return found


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
