"""``vpn-portal deployment``: who this deployment is, and how it takes over after a restore."""

import argparse
import json

from sqlalchemy import select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import PortalError
from portal_app.models import Deployment, NodeStatus
from portal_app.services import audit, peers
from portal_app.settings import Settings


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "deployment", help="show the deployment's id; begin a new epoch; name the portals"
    )
    commands = parser.add_subparsers(dest="deployment_command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="print id and epoch, which every node obeys")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=run_show)
    new = commands.add_parser(
        "new-epoch",
        help="let the nodes take this database as the truth, after a restore",
        description=(
            "A restored database is older than what the nodes remember. With a new epoch they take it as the"
            " truth; one that would remove more than half of a node's connections still waits for"
            " 'vpn-portal node reconcile NAME --confirm'."
        ),
    )
    new.set_defaults(run=run_new_epoch)
    portals = commands.add_parser(
        "portals",
        help="forget the portals that are not named, such as one that was taken away",
        description="One that runs all the same is known again within a minute. Safe to repeat.",
    )
    portals.add_argument("names", nargs="+", metavar="NAME", help="host name of a portal that stays")
    portals.set_defaults(run=run_portals)


def run_show(arguments: argparse.Namespace, _settings: Settings) -> int:
    with transaction(read_only=True) as db:
        deployment = db.scalars(select(Deployment)).one_or_none()
    if deployment is None:
        raise PortalError("no plan was applied yet; run vpn-portal plan apply")
    if arguments.json:
        print(json.dumps({"deployment_id": deployment.deployment_id, "epoch": deployment.epoch}))
    else:
        print(f"deployment {deployment.deployment_id}, epoch {deployment.epoch}")
    return 0


def run_new_epoch(_arguments: argparse.Namespace, _settings: Settings) -> int:
    with transaction() as db:
        deployment = db.scalars(select(Deployment).with_for_update()).one_or_none()
        if deployment is None:
            raise PortalError("no plan was applied yet; run vpn-portal plan apply")
        # The nodes may know epochs that this database has forgotten.
        known = [
            info["epoch"]
            for info in db.scalars(select(NodeStatus.info).where(NodeStatus.info.is_not(None)))
            if info and info["deployment_id"] == deployment.deployment_id
        ]
        before, deployment.epoch = deployment.epoch, max([deployment.epoch, *known]) + 1
        audit.record(
            db, "deployment.new_epoch", actor=audit.CLI, now=utc_now(), before=before, epoch=deployment.epoch
        )
        print(f"epoch {before} → {deployment.epoch}; the nodes follow within seconds")
    return 0


def run_portals(arguments: argparse.Namespace, _settings: Settings) -> int:
    forgotten = peers.forget_others(arguments.names, utc_now())
    print(f"forgot {', '.join(forgotten)}" if forgotten else "no changes: no other portal is silent")
    return 0
