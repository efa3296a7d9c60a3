"""What the control machine signs (spec node.md 8; N2, N4, V4 of reliability.md)."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from vpn_control.authority import (
    AUTHORITIES,
    Authority,
    issue,
    make_authority,
    make_environment,
    reason_to_issue,
    serial_number,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PEM, SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.fixture(scope="module", params=["ed25519", "ecdsa"])
def authority(request) -> Authority:
    return make_authority("Example CA", request.param, NOW)


@pytest.fixture
def public_key() -> str:
    return Ed25519PrivateKey.generate().public_key().public_bytes(PEM, SPKI).decode()


def read(certificate: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.encode())


def test_certificate_has_one_use_and_one_name(authority, public_key):
    certificate = read(issue(authority, public_key, "node-1", "server", 730, NOW))

    certificate.verify_directly_issued_by(read(authority.certificate))
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert names.get_values_for_type(x509.DNSName) == ["node-1"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_address_is_named_as_an_address(authority, public_key):
    certificate = read(issue(authority, public_key, "198.51.100.7", "server", 730, NOW))

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["198.51.100.7"]


def test_certificate_begins_in_the_past_for_clocks_that_are_wrong(authority, public_key):
    certificate = read(issue(authority, public_key, "node-1", "server", 730, NOW))

    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)


def test_certificate_ends_with_its_authority_at_the_latest(authority, public_key):
    certificate = read(
        issue(authority, public_key, "node-1", "server", 730, NOW + timedelta(days=25 * 365 - 10))
    )

    assert certificate.not_valid_after_utc == read(authority.certificate).not_valid_after_utc


def test_authority_may_sign_no_other_authority(authority):
    constraints = read(authority.certificate).extensions.get_extension_for_class(x509.BasicConstraints).value

    assert constraints.ca
    assert constraints.path_length == 0


def test_good_certificate_is_kept(authority, public_key):
    certificate = issue(authority, public_key, "node-1", "server", 730, NOW)

    assert reason_to_issue(certificate, public_key, authority.certificate, "node-1", "server", NOW) is None


def test_certificate_is_renewed_when_a_third_of_its_life_is_left(authority, public_key):
    certificate = issue(authority, public_key, "node-1", "server", 300, NOW)

    def reason(days: int) -> str | None:
        now = NOW + timedelta(days=days)
        return reason_to_issue(certificate, public_key, authority.certificate, "node-1", "server", now)

    assert reason(199) is None
    assert reason(201) == "a third of its life is left"


@pytest.mark.parametrize(
    ("name", "use", "reason"),
    [
        ("node-2", "server", "it has another name or use"),
        ("node-1", "client", "it has another name or use"),
    ],
)
def test_certificate_with_another_name_or_use_is_replaced(authority, public_key, name, use, reason):
    certificate = issue(authority, public_key, "node-1", "server", 730, NOW)

    assert reason_to_issue(certificate, public_key, authority.certificate, name, use, NOW) == reason


def test_certificate_of_another_key_is_replaced(authority, public_key):
    other = Ed25519PrivateKey.generate().public_key().public_bytes(PEM, SPKI).decode()
    certificate = issue(authority, other, "node-1", "server", 730, NOW)

    assert "another key" in str(
        reason_to_issue(certificate, public_key, authority.certificate, "node-1", "server", NOW)
    )


@pytest.mark.parametrize(
    "damaged", ["", "no certificate\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_missing_or_damaged_certificate_is_replaced(authority, public_key, damaged):
    assert reason_to_issue(damaged, public_key, authority.certificate, "node-1", "server", NOW)


def test_certificate_of_another_environment_is_replaced(authority, public_key):
    other = make_authority("Example CA", "ed25519", NOW)
    certificate = issue(other, public_key, "node-1", "server", 730, NOW)

    assert "this environment" in str(
        reason_to_issue(certificate, public_key, authority.certificate, "node-1", "server", NOW)
    )


def test_environment_has_every_authority_with_its_key():
    made = make_environment(NOW)

    assert set(made) == {f"{prefix}_{part}" for prefix in AUTHORITIES for part in ("certificate", "key")}
    assert len({made[f"{prefix}_key"] for prefix in AUTHORITIES}) == len(AUTHORITIES)


def test_serial_number_is_that_of_the_certificate(authority):
    assert serial_number(authority.certificate) == read(authority.certificate).serial_number
    assert serial_number(None) is None
    assert serial_number("no certificate") is None
