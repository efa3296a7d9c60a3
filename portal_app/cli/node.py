"""``vpn-portal node``: how the nodes are, and what an operator tells them."""

import argparse
import json
from dataclasses import asdict

from sqlalchemy import select, update

from portal_app.agents import Agents
from portal_app.cli import table
from portal_app.clock import utc_now
from portal_app.controller.watch import reconcile
from portal_app.db import transaction
from portal_app.errors import PortalError
from portal_app.models import Node, NodeStatus
from portal_app.services import audit, statistics
from portal_app.settings import Settings


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("node", help="list the nodes, reconcile one, set maintenance")
    commands = parser.add_subparsers(dest="node_command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the nodes as the controller last saw them")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    listing.set_defaults(run=run_list)

    again = commands.add_parser(
        "reconcile",
        help="hand a node everything it should have, now",
        description=(
            "With --confirm the node obeys even if it was told by another deployment before, if this database"
            " is older, or if more than half of its connections go; and a reinstalled machine is accepted"
            " under the node's number."
        ),
    )
    again.add_argument("name")
    again.add_argument("--confirm", action="store_true", help="let through what the node holds back")
    again.set_defaults(run=run_reconcile)

    maintenance = commands.add_parser("maintenance", help="no new connections on a node, or again")
    maintenance.add_argument("name")
    maintenance.add_argument("state", choices=("on", "off"))
    maintenance.set_defaults(run=run_maintenance)


def run_list(arguments: argparse.Namespace, _settings: Settings) -> int:
    with transaction(read_only=True) as db:
        found = statistics.nodes(db, now=utc_now())
    if arguments.json:
        print(json.dumps([asdict(node) for node in found], indent=2, ensure_ascii=False, default=str))
        return 0
    heads = ("node", "number", "state", "connections", "active", "load", "version", "seen", "remarks")
    rows = [
        (
            node.name,
            node.number,
            node.state,
            node.connections,
            node.active,
            "-" if node.load_percent is None else f"{node.load_percent}%",
            node.version or "-",
            f"{node.answered_at:%Y-%m-%d %H:%M:%S}" if node.answered_at else "never",
            "; ".join(node.remarks),
        )
        for node in found
    ]
    print("\n".join(table.lines(heads, rows)))
    return 0


def run_reconcile(arguments: argparse.Namespace, settings: Settings) -> int:
    node, agents = _node(arguments.name), Agents(settings)
    info = agents.info(node)
    with transaction(read_only=True) as db:
        known = db.scalar(select(NodeStatus.instance_id).where(NodeStatus.node_number == node.number))
    if known is not None and known != info.instance_id and not arguments.confirm:
        raise PortalError(
            f"{node.name}: another machine answers (instance {info.instance_id[:8]}, known is {known[:8]});"
            " if it was reinstalled, repeat with --confirm"
        )
    answer = reconcile(agents, node, now=utc_now, reason="operator", confirmed=arguments.confirm)
    with transaction() as db:
        db.execute(
            update(NodeStatus)
            .where(NodeStatus.node_number == node.number)
            .values(instance_id=info.instance_id)
        )
        audit.record(
            db, "node.reconcile", actor="cli", object=node.name, now=utc_now(), confirmed=arguments.confirm
        )
    print(f"{node.name}: {answer.get('added', 0)} added, {answer.get('removed', 0)} removed")
    return 0


def run_maintenance(arguments: argparse.Namespace, settings: Settings) -> int:
    node, on = _node(arguments.name), arguments.state == "on"
    Agents(settings).set_maintenance(node, on)
    with transaction() as db:
        # Not only at the controller's next round: no connect may choose it after this returns (R63).
        db.execute(
            update(NodeStatus).where(NodeStatus.node_number == node.number).values(maintenance_mode=on)
        )
        audit.record(
            db, "node.maintenance", actor="cli", object=node.name, now=utc_now(), state=arguments.state
        )
    print(f"{node.name}: maintenance {arguments.state}")
    return 0


def _node(name: str) -> Node:
    with transaction(read_only=True) as db:
        found = {node.name: node for node in db.scalars(select(Node))}
    if name not in found:
        raise PortalError(f"no node {name!r}; known are {', '.join(sorted(found)) or 'none'}")
    return found[name]
