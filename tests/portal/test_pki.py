"""The client CA's certificates, as OpenSSL judges them: what OpenVPN asks (spec node.md, section 8)."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from portal_app.services.pki import Signer
from portal_app.settings import Settings
from tests.portal.certificates import Deployment

pytestmark = pytest.mark.parametrize("database", ["sqlite"])


def issue(settings: Settings, now: datetime) -> str:
    return Signer(settings).issue("c" * 32, "legacy", expires_at=now + timedelta(days=1), now=now).certificate


def is_good(certificate: str, deployment: Deployment, at: datetime) -> bool:
    """Tell whether a server whose clock says ``at`` lets the client in."""
    words = ["openssl", "verify", "-purpose", "sslclient", "-attime", str(int(at.timestamp())), "-CAfile"]
    judged = subprocess.run(
        [*words, str(deployment.client_ca.pair.certificate)],
        input=certificate,
        capture_output=True,
        text=True,
        check=False,
    )
    return judged.returncode == 0


def test_fresh_certificate_is_good_where_the_clock_is_wrong(
    settings: Settings, deployment: Deployment
) -> None:
    """R61: 10 minutes slow or ahead, with the slowness of connecting."""
    now = datetime.now(UTC)
    certificate = issue(settings, now)

    for wrong in (timedelta(minutes=-15), timedelta(), timedelta(minutes=15)):
        assert is_good(certificate, deployment, now + wrong), wrong
    assert not is_good(certificate, deployment, now + timedelta(days=1, seconds=1))


def test_certificate_begins_no_earlier_than_its_ca(settings: Settings, deployment: Deployment) -> None:
    begin = x509.load_pem_x509_certificate(
        deployment.client_ca.pair.certificate.read_bytes()
    ).not_valid_before_utc

    certificate = x509.load_pem_x509_certificate(issue(settings, begin + timedelta(minutes=1)).encode())

    assert certificate.not_valid_before_utc == begin
