"""``vpn-portal check``: what this portal needs, looked at one by one."""

import argparse
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from sqlalchemy import select

from portal_app import db, migrations
from portal_app.agents import Agents
from portal_app.certificates import Certificate
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import PortalError, SettingsError
from portal_app.models import Deployment, Node
from portal_app.services import peers
from portal_app.settings import Settings
from vpn_core import table


@dataclass(frozen=True)
class Finding:
    """One line of the table; ``remark`` says what was found, and for a failure what to do."""

    passed: bool
    subject: str
    remark: str


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "check",
        help="look at settings, secrets, database, nodes and the other portals",
        description="Repairs nothing. Exit status 0 only if every line passed.",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="only compare this portal with the others: settings, keys, authorities, release",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    findings = list(_peers(settings) if arguments.peers else _everything(settings))
    rows = [("PASS" if f.passed else "FAIL", f.subject, f.remark) for f in findings]
    print("\n".join(table.lines(("", "what", "found"), rows)))
    return 0 if all(finding.passed for finding in findings) else 1


def _everything(settings: Settings) -> Iterator[Finding]:
    # The settings were read on the way here.
    yield Finding(True, "settings", settings.portal_url)
    yield from _secrets(settings)
    database = list(_database())
    yield from database
    if all(finding.passed for finding in database):
        yield from _nodes(settings)
        yield from _peers(settings)


def _peers(settings: Settings) -> Iterator[Finding]:
    """Compare what this portal has now with what the controllers of the others wrote down."""
    name, now = peers.host_name(), utc_now()
    peers.introduce(name, peers.digests(settings), now)
    for other in peers.compare(name):
        problem = other.problem(now)
        yield Finding(
            problem is None,
            f"portal {other.name}",
            problem or f"has the same, {_ago(now - other.seen_at)} ago",
        )


def _ago(age: timedelta) -> str:
    return f"{max(0, int(age.total_seconds()))} s"


def _secrets(settings: Settings) -> Iterator[Finding]:
    """Secrets are for the portal's user alone; certificates are not secret but have to be there."""
    for path in (settings.secret_key_file, settings.client_ca_key_file, settings.management_key_file):
        yield _file(path, secret=True)
    for path in sorted(settings.tls_crypt_directory.glob("*.key")):
        yield _file(path, secret=True)
    if settings.database_url_file is not None:
        yield _file(settings.database_url_file, secret=True)
    for path in (
        settings.client_ca_certificate_file,
        settings.server_ca_certificate_file,
        settings.management_ca_certificate_file,
        settings.management_certificate_file,
    ):
        yield _file(path, secret=False)
    yield _own_certificate(settings.management_certificate_file)


def _own_certificate(path: Path) -> Finding:
    """Say which certificate this portal shows to nodes, and fail long before it ends (R68)."""
    subject = "management certificate"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return Finding(False, subject, "cannot be read; run the playbook again")
    return _lasting(
        subject,
        Certificate(
            certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc
        ),
    )


def _lasting(subject: str, certificate: Certificate) -> Finding:
    now = utc_now()
    warning = certificate.warning(now)
    said = f"serial {certificate.serial_number:x}, {certificate.days_left(now)} days left"
    return Finding(warning is None, subject, warning or said)


def _file(path: Path, *, secret: bool) -> Finding:
    try:
        size = len(path.read_bytes())
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(False, str(path), f"{error.strerror}; run the playbook again")
    if size == 0:
        return Finding(False, str(path), "empty; run the playbook again")
    if secret and mode & 0o027:
        return Finding(False, str(path), f"mode {mode:04o} lets others in; make it 0640 or 0600")
    return Finding(True, str(path), f"mode {mode:04o}")


def _database() -> Iterator[Finding]:
    kind = db.engine().dialect.name
    try:
        revision = migrations.current(db.engine())
    except PortalError as error:
        yield Finding(False, f"database ({kind})", str(error))
        return
    if revision != migrations.head():
        todo = "install the later release" if migrations.is_ahead(revision) else "run vpn-portal migrate"
        yield Finding(
            False, f"database ({kind})", f"at {revision or 'nothing'}, needs {migrations.head()}; {todo}"
        )
        return
    yield Finding(True, f"database ({kind})", f"at {revision}")
    with transaction(read_only=True) as session:
        plan = session.scalar(select(Deployment.plan_applied_at))
    if plan is None:
        yield Finding(False, "plan", "none was applied; run vpn-portal plan apply")
    else:
        yield Finding(True, "plan", f"applied {plan:%Y-%m-%d %H:%M:%S} UTC")


def _nodes(settings: Settings) -> Iterator[Finding]:
    with transaction(read_only=True) as session:
        found = list(session.scalars(select(Node).order_by(Node.number)))
        deployment_id = session.scalar(select(Deployment.deployment_id))
    try:
        agents = Agents(settings)
    except (SettingsError, OSError) as error:
        yield Finding(False, "nodes", str(error))
        return
    answers = agents.together([lambda node=node: agents.info(node) for node in found], seconds=5)  # type: ignore[misc]
    for node, answer in zip(found, answers, strict=True):
        subject = f"node {node.name}"
        if isinstance(answer, Exception):
            yield Finding(False, subject, str(answer))
        elif answer.held:
            yield Finding(False, subject, f"held: {answer.held}")
        elif answer.deployment_id not in (None, deployment_id):
            yield Finding(False, subject, "obeys another deployment; vpn-portal node reconcile --confirm")
        else:
            found_out = f"version {answer.v}, {answer.connection_count} connections"
            yield Finding(True, subject, found_out + (", in maintenance" if answer.maintenance_mode else ""))
        if certificate := agents.certificate(node.number):
            yield _lasting(f"certificate of {node.name}", certificate)
    agents.close()
