"""``vpn-portal check``: what this portal needs, looked at one by one."""

import argparse
from collections.abc import Collection, Iterator
from datetime import timedelta

from sqlalchemy import select

from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import SettingsError
from portal_app.models import Deployment, Node
from portal_app.services import authorities, checks, peers, statistics
from portal_app.services.checks import Finding
from portal_app.settings import Settings
from vpn_core import table


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "check",
        help="look at settings, secrets, database, nodes and the other portals",
        description="Repairs nothing. Exit status 0 only if every line passed.",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help="only compare settings, keys, authorities, release with the other portals, or with those named",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    findings = list(_everything(settings) if arguments.peers is None else _peers(settings, arguments.peers))
    rows = [("PASS" if f.passed else "FAIL", str(f.subject), str(f.remark)) for f in findings]
    print("\n".join(table.lines(("", "what", "found"), rows)))
    return 0 if all(finding.passed for finding in findings) else 1


def _everything(settings: Settings) -> Iterator[Finding]:
    # The settings were read on the way here.
    yield Finding(True, "settings", settings.portal_url)
    yield from checks.secrets(settings, now=utc_now())
    yield _web_certificate(settings)
    database = list(checks.database())
    yield from database
    if all(finding.passed for finding in database):
        with transaction(read_only=True) as session:
            infos = {seen.node.name: seen.info for seen in statistics.seen(session) if seen.status}
        yield checks.clocks(infos)
        yield from _nodes(settings)
        yield from _peers(settings)


def _web_certificate(settings: Settings) -> Finding:
    """Say how long users are shown a good certificate, and fail long before it ends (R67)."""
    subject = "web certificate"
    shown = peers.web_certificate(settings.host_name)
    if shown is None:
        return Finding(False, subject, "nginx on this host shows none; systemctl status nginx")
    report = authorities.of_web(shown, now=utc_now())
    return Finding(report.warning is None, subject, report.warning or f"{report.days_left} days left")


def _peers(settings: Settings, names: Collection[str] = ()) -> Iterator[Finding]:
    """Compare what this portal has now with what the controllers of the others wrote down.

    With ``names`` only those of them count.
    """
    name, now = peers.host_name(), utc_now()
    peers.introduce(name, peers.digests(settings), now)
    for other in peers.compare(name):
        if names and other.name not in names:
            continue
        problem = other.problem(now)
        yield Finding(
            problem is None,
            f"portal {other.name}",
            problem or f"has the same, {_ago(now - other.seen_at)} ago",
        )


def _ago(age: timedelta) -> str:
    return f"{max(0, int(age.total_seconds()))} s"


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
            yield checks.lasting(f"certificate of {node.name}", certificate, utc_now())
    agents.close()
