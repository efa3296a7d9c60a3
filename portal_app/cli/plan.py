"""``vpn-portal plan``: put the resolved inventory into the database, and show it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import select

from portal_app import db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.errors import PortalError
from portal_app.models import Deployment
from portal_app.services import connections, leaving, plan, plan_file
from portal_app.settings import Settings

DEFAULT_FILE = Path("/etc/causeway/portal/plan.json")


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("plan", help="apply or show the resolved inventory")
    commands = parser.add_subparsers(dest="plan_command", required=True)
    apply = commands.add_parser(
        "apply",
        help="put a plan into the database",
        description=(
            "Makes profiles, nodes and offers equal to the plan, in one transaction. Connections that the"
            " plan has no room for are ended: their profile, node or protocol is gone, or their range moved."
            " Exit status 3: refused, since clients would get other addresses."
        ),
    )
    apply.add_argument(
        "file", type=Path, nargs="?", default=DEFAULT_FILE, help=f"- is stdin; default: {DEFAULT_FILE}"
    )
    apply.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    apply.add_argument("--json", action="store_true", help="print one JSON object")
    apply.add_argument(
        "--renumber", action="store_true", help="allow changes that give clients other addresses"
    )
    apply.set_defaults(run=run_apply)
    show = commands.add_parser("show", help="print the plan that was applied last")
    show.add_argument("--json", action="store_true", help="print the plan as it was applied")
    show.set_defaults(run=run_show)


def run_apply(arguments: argparse.Namespace, settings: Settings) -> int:
    wanted = plan_file.load(arguments.file)
    if arguments.dry_run:
        outcome = plan.apply(wanted, now=utc_now(), dry_run=True, renumber=arguments.renumber)
    else:
        outcome = _apply(wanted, settings, renumber=arguments.renumber)
    if arguments.json:
        print(
            json.dumps(
                {
                    "changed": outcome.changed,
                    "changes": outcome.changes,
                    "cut": len(outcome.ended),
                    "cuts": [asdict(cut) for cut in outcome.cuts],
                },
                ensure_ascii=False,
            )
        )
        return 0
    if not outcome.changed:
        print("no changes")
        return 0
    print("would change:" if arguments.dry_run else "changed:")
    for change in outcome.changes:
        print(f"  {change}")
    return 0


def _apply(wanted: plan_file.PlanFile, settings: Settings, *, renumber: bool) -> plan.Outcome:
    """Apply a plan, and take leave of nodes that go with it; returns all that both have ended."""
    agents = Agents(settings)
    foreseen = None
    if going := plan.going(wanted):
        # A plan that is refused ends nobody.
        foreseen = plan.apply(wanted, now=utc_now(), dry_run=True, renumber=renumber)
        for node in going:
            leaving.take_leave(agents, node, log_origins=settings.log_origins, now=utc_now)
    outcome = plan.apply(wanted, now=utc_now(), renumber=renumber)
    if outcome.ended:
        connections.tell(list(outcome.ended), agents=agents)
    return foreseen or outcome


def run_show(arguments: argparse.Namespace, _settings: Settings) -> int:
    with db.transaction(read_only=True) as session:
        deployment = session.scalars(select(Deployment)).one_or_none()
    if deployment is None or deployment.plan is None:
        raise PortalError("no plan was applied yet; run vpn-portal plan apply")
    if arguments.json:
        print(json.dumps(deployment.plan, indent=2, ensure_ascii=False))
        return 0
    applied = deployment.plan_applied_at
    print(f"applied {applied:%Y-%m-%d %H:%M:%S} UTC" if applied else "never applied")
    for profile_id, profile in deployment.plan["profiles"].items():
        print(f"profile {profile_id}: {profile['display_name']}, on {', '.join(profile['nodes'])}")
    for node in deployment.plan["nodes"].values():
        print(
            f"node {node['name']}: number {node['number']}, {node['hostname']}, agent {node['agent_address']}"
        )
        for share in node["wireguard"]:
            ranges = f"{share['ipv4']} {share['ipv6']}"
            print(f"  {share['profile_id']}: WireGuard {ranges}, {share['capacity']} addresses")
        for process in node["openvpn"]:
            where = f"{process['protocol']}/{process['port']} {process['ipv4']} {process['ipv6']}"
            print(f"  {process['profile_id']}: OpenVPN {where}, {process['max_clients']} clients")
    return 0
