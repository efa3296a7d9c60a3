"""Every certificate that a deployment depends on, and how long it lasts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from portal_app.certificates import Certificate
from portal_app.errors import N_
from portal_app.services import checks
from portal_app.settings import Settings
from portal_app.texts import Text, text

#: An authority is replaced with everything that it signed: that takes planning (spec portal.md, section 5.3).
AUTHORITY_WARNING = timedelta(days=365)
URGENT = timedelta(days=7)


@dataclass(frozen=True)
class CertificateReport:
    """``level``: good, warn or bad. ``node`` is the number of the node that shows it."""

    subject: Text
    not_after: datetime | None
    days_left: int
    level: str
    remedy: Text | None
    node: int | None = None

    @property
    def warning(self) -> str | None:
        """Return that it ends, or is not there, and the way out; None while it is good."""
        if self.remedy is None:
            return None
        ends = "" if self.not_after is None else f"ends on {self.not_after:%Y-%m-%d}. "
        return f"{ends}{self.remedy}"


def of_portal(settings: Settings, web: x509.Certificate | None, *, now: datetime) -> list[CertificateReport]:
    """Return the authorities and this portal's own; ``web`` is what its web server shows."""
    known = [
        _authority(subject, checks.certificate_in(path), now)
        for subject, path in (
            (N_("Client CA"), settings.client_ca_certificate_file),
            (N_("Server CA"), settings.server_ca_certificate_file),
            (N_("Management CA"), settings.management_ca_certificate_file),
        )
    ]
    return known + shown_here(settings, web, now=now)


def shown_here(settings: Settings, web: x509.Certificate | None, *, now: datetime) -> list[CertificateReport]:
    """Return what this portal shows to nodes, and what its web server shows to users if that is known."""
    own = checks.certificate_in(settings.management_certificate_file)
    to_nodes = _renewed(text(N_("This portal, shown to nodes")), own, now)
    return [to_nodes] if web is None else [to_nodes, of_web(web, now=now)]


def of_web(web: x509.Certificate, *, now: datetime) -> CertificateReport:
    """Return that of a web server: given to it, fetched by ACME, or of the environment's own CA."""
    certificate = Certificate(web.serial_number, web.not_valid_before_utc, web.not_valid_after_utc)
    good = certificate.warning(now) is None
    remedy = text(N_("Look at its renewal on this host; when it ends, nobody reaches the portal."))
    return CertificateReport(
        text(N_("This portal, shown to users")),
        certificate.not_after,
        certificate.days_left(now),
        "good" if good else _level(certificate, now),
        None if good else remedy,
    )


def of_node(number: int, name: str, info: Mapping[str, Any], *, now: datetime) -> CertificateReport | None:
    """Return that of a node's agent, None while it has not been seen."""
    shown = info.get("certificate")
    if not shown:
        return None
    return _renewed(text(N_("Node %(node)s"), node=name), Certificate.from_dict(shown), now, node=number)


def _renewed(
    subject: Text, certificate: Certificate | None, now: datetime, node: int | None = None
) -> CertificateReport:
    """One of those that each run of the playbooks renews in time."""
    if certificate is None:
        return _unreadable(subject)
    level = "good" if certificate.warning(now) is None else _level(certificate, now)
    remedy = None if level == "good" else text(N_("Run site.yml, which renews it."))
    return CertificateReport(subject, certificate.not_after, certificate.days_left(now), level, remedy, node)


def _authority(name: str, certificate: Certificate | None, now: datetime) -> CertificateReport:
    if certificate is None:
        return _unreadable(text(name))
    good = certificate.not_after - now >= AUTHORITY_WARNING
    remedy = text(N_("Plan its replacement: nothing that it signed lasts longer than it does."))
    return CertificateReport(
        text(name),
        certificate.not_after,
        certificate.days_left(now),
        "good" if good else _level(certificate, now),
        None if good else remedy,
    )


def _level(certificate: Certificate, now: datetime) -> str:
    return "bad" if certificate.not_after - now < URGENT else "warn"


def _unreadable(subject: Text) -> CertificateReport:
    return CertificateReport(subject, None, 0, "bad", text(N_("Its file cannot be read. Run site.yml.")))
