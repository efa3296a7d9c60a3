"""The client CA: signs OpenVPN client certificates in process, at connect time (spec node.md, section 8)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from portal_app.errors import SettingsError
from portal_app.settings import Settings

#: For nodes whose clock is slow (reliability.md R61); the CAs begin as long before they are made.
SET_BACK = timedelta(hours=1)


@dataclass(frozen=True)
class ClientCertificate:
    """PEM texts; the key exists only here and in the answer (reliability.md S9)."""

    certificate: str
    private_key: str


class Signer:
    """Holds the client CA's key for the life of the process."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(
                settings.client_ca_certificate_file.read_bytes()
            )
            key = serialization.load_pem_private_key(settings.client_ca_key_file.read_bytes(), password=None)
            self.server_ca = settings.server_ca_certificate_file.read_text().strip()
        except OSError as error:
            raise SettingsError(f"{error.filename}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            files = f"{settings.client_ca_certificate_file} or {settings.client_ca_key_file}"
            raise SettingsError(f"{files} is no PEM certificate or key") from error
        if key.public_key() != self._certificate.public_key():
            raise SettingsError(
                f"{settings.client_ca_key_file} is not the key of {settings.client_ca_certificate_file}"
            )
        self._key = cast(CertificateIssuerPrivateKeyTypes, key)

    @property
    def not_after(self) -> datetime:
        """No certificate and no authorization lasts longer than the CA."""
        return self._certificate.not_valid_after_utc

    def issue(
        self, connection_id: str, profile_id: str, *, expires_at: datetime, now: datetime
    ) -> ClientCertificate:
        """Return a certificate for one connection: its id as common name, its profile as organizational
        unit.
        """
        private_key = Ed25519PrivateKey.generate()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, profile_id),
                x509.NameAttribute(NameOID.COMMON_NAME, connection_id),
            ]
        )
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._certificate.subject)
            .public_key(private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - SET_BACK, self._certificate.not_valid_before_utc).astimezone(UTC))
            .not_valid_after(min(expires_at, self.not_after).astimezone(UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(private_key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        signed_with_digest = (
            None if isinstance(self._key, Ed25519PrivateKey | Ed448PrivateKey) else hashes.SHA256()
        )
        certificate = builder.sign(self._key, signed_with_digest)
        return ClientCertificate(
            certificate.public_bytes(serialization.Encoding.PEM).decode().strip(),
            private_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            .decode()
            .strip(),
        )
