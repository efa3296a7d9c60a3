"""What a portal needs, looked at one by one: for ``vpn-portal check`` and the page of the system.

Repairs nothing.
"""

import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import func, select, table
from sqlalchemy.orm import Session

from portal_app import clock, db, migrations
from portal_app.certificates import Certificate
from portal_app.db import transaction
from portal_app.errors import N_, PortalError
from portal_app.models import Deployment
from portal_app.settings import Settings
from portal_app.statements import Statement, run
from portal_app.texts import Percent, Size, Text, counted, text

#: The database and its log live there; SQLite needs room to write at all.
LEAST_FREE_PERCENT = 10


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remark`` says what was found, and for a failure what to do."""

    passed: bool
    subject: Text | str
    remark: Text | str


def secrets(settings: Settings, *, now: datetime) -> Iterator[Finding]:
    """Secrets are for the portal's user alone; certificates are not secret but have to be there."""
    for path in secret_files(settings):
        yield _file(path, secret=True)
    for path in (
        settings.client_ca_certificate_file,
        settings.server_ca_certificate_file,
        settings.management_ca_certificate_file,
        settings.management_certificate_file,
    ):
        yield _file(path, secret=False)
    yield _own_certificate(settings.management_certificate_file, now)


def secret_files(settings: Settings) -> list[Path]:
    keys = [settings.secret_key_file, settings.client_ca_key_file, settings.management_key_file]
    keys += sorted(settings.tls_crypt_directory.glob("*.key"))
    return keys + ([settings.database_url_file] if settings.database_url_file is not None else [])


def _own_certificate(path: Path, now: datetime) -> Finding:
    """Say which certificate this portal shows to nodes, and fail long before it ends (R68)."""
    subject = text(N_("management certificate"))
    certificate = certificate_in(path)
    if certificate is None:
        return Finding(False, subject, text(N_("cannot be read; run the playbook again")))
    return lasting(subject, certificate, now)


def certificate_in(path: Path) -> Certificate | None:
    """Return what is known of the first certificate in a PEM file; None when there is none."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return Certificate(found.serial_number, found.not_valid_before_utc, found.not_valid_after_utc)


def lasting(subject: Text | str, certificate: Certificate, now: datetime) -> Finding:
    if certificate.warning(now) is not None:
        ends = text(N_("ends on %(day)s; run site.yml, which renews it"), day=certificate.not_after.date())
        return Finding(False, subject, ends)
    serial, days = f"{certificate.serial_number:x}", certificate.days_left(now)
    said = counted(
        "serial %(serial)s, %(num)s day left", "serial %(serial)s, %(num)s days left", days, serial=serial
    )
    return Finding(True, subject, said)


def _file(path: Path, *, secret: bool) -> Finding:
    try:
        size = len(path.read_bytes())
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(
            False, str(path), text(N_("%(reason)s; run the playbook again"), reason=error.strerror)
        )
    if size == 0:
        return Finding(False, str(path), text(N_("empty; run the playbook again")))
    if secret and mode & 0o027:
        said = text(N_("mode %(mode)s lets others in; make it 0640 or 0600"), mode=f"{mode:04o}")
        return Finding(False, str(path), said)
    return Finding(True, str(path), text(N_("mode %(mode)s"), mode=f"{mode:04o}"))


#: What a finding about the plan is about.
PLAN = text(N_("plan"))


def database() -> Iterator[Finding]:
    """Whether it answers, has the tables of this release, and knows a plan."""
    kind = db.engine().dialect.name
    subject = text(N_("database (%(kind)s)"), kind=kind)
    try:
        revision = migrations.current(db.engine())
    except PortalError as error:
        yield Finding(False, subject, str(error))
        return
    if revision != migrations.head():
        yield Finding(False, subject, _other_release(revision))
        return
    yield Finding(True, subject, text(N_("at %(revision)s"), revision=revision))
    with transaction(read_only=True) as session:
        plan = session.scalar(select(Deployment.plan_applied_at))
    if plan is None:
        yield Finding(False, PLAN, text(N_("none was applied; run vpn-portal plan apply")))
    else:
        yield Finding(True, PLAN, text(N_("applied %(at)s"), at=plan))


def _other_release(revision: str | None) -> Text:
    values: dict[str, Any] = {"revision": revision or "nothing", "head": migrations.head()}
    if migrations.is_ahead(revision):
        return Text(N_("at %(revision)s, needs %(head)s; install the later release"), values)
    return Text(N_("at %(revision)s, needs %(head)s; run vpn-portal migrate"), values)


def disk(directory: Path) -> Finding:
    """Whether the directory that the portal writes into has room."""
    subject = text(N_("disk"))
    try:
        usage = shutil.disk_usage(directory)
    except OSError as error:
        return Finding(False, subject, f"{directory}: {error.strerror}")
    percent = 100 * usage.free // usage.total if usage.total else 0
    values: dict[str, Any] = {
        "directory": str(directory),
        "percent": Percent(percent),
        "free": Size(usage.free),
    }
    if percent < LEAST_FREE_PERCENT:
        return Finding(
            False,
            subject,
            Text(N_("%(directory)s: only %(percent)s free (%(free)s); make room on this host"), values),
        )
    return Finding(True, subject, Text(N_("%(directory)s: %(percent)s free (%(free)s)"), values))


def clocks(infos: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Compare this host's clock with the database's and the nodes' (R20, R61).

    ``infos`` is what each node said last; their clocks were compared with the time that counts.
    """
    subject = text(N_("clock"))
    if (behind := clock.behind()) is not None and abs(behind) > clock.SKEW:
        said = text(
            N_(
                "%(apart)s away from the database's clock, which counts instead; set up time"
                " synchronisation on this host"
            ),
            apart=timedelta(seconds=round(abs(behind).total_seconds())),
        )
        return Finding(False, subject, said)
    skews = {name: info.get("clock_skew_seconds") or 0 for name, info in infos.items()}
    wrong = sorted(name for name, skew in skews.items() if abs(skew) > clock.SKEW.total_seconds())
    if wrong and len(wrong) * 2 > len(skews):
        said = text(
            N_("most nodes differ (%(nodes)s); it may be the clock here, or the database's, that is wrong"),
            nodes=", ".join(wrong[:5]),
        )
        return Finding(False, subject, said)
    if wrong:
        return Finding(
            False,
            subject,
            text(N_("these nodes differ: %(nodes)s; look at their clocks"), nodes=", ".join(wrong[:5])),
        )
    return Finding(True, subject, text(N_("the same as that of the database and the nodes")))


@dataclass(frozen=True)
class Replication:
    """The standby servers of the database: whether a commit waits for one, and how many are connected."""

    waits: bool
    standbys: int


_REPLICATION = Statement(
    select(
        (func.current_setting("synchronous_standby_names") != "").label("waits"),
        select(func.count()).select_from(table("pg_stat_replication")).scalar_subquery().label("standbys"),
    )
)


def replication(session: Session) -> Replication | None:
    """Return None where there is nothing to know: SQLite, or PostgreSQL without any standby."""
    if session.get_bind().dialect.name == "sqlite":
        return None
    (found,) = run(session, _REPLICATION)
    return Replication(found.waits, found.standbys) if found.waits or found.standbys else None
