"""``vpn-portal status``: how full the profiles are (spec portal.md, section 7), and each node."""

import argparse
import csv
import json
import sys
from dataclasses import asdict, fields

from portal_app.db import transaction
from portal_app.errors import BadRequest
from portal_app.services import occupancy, statistics
from portal_app.services.occupancy import NodeOccupancy
from portal_app.services.statistics import ProfileReport
from portal_app.settings import Settings
from vpn_core import table

DEFAULT_ALERT = 90
NODE_HEADS = ("profile", "by", "connected", "users", "given out", "of")


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "status",
        help="how full the profiles are",
        description=(
            "Active connections come from the nodes' journals; WireGuard: a handshake within three minutes."
            " With --alert nothing is printed unless a profile is that full, so cron mails only when needed."
        ),
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument("--csv", action="store_true", help="print comma-separated values")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--by-node",
        action="store_true",
        help="who is connected to which node and process instead, as a table or with --json",
    )
    what.add_argument(
        "--alert",
        type=_percentage,
        nargs="?",
        const=DEFAULT_ALERT,
        metavar="N",
        help=f"only profiles of which N %% of the clients or addresses are in use (default {DEFAULT_ALERT})",
    )
    parser.set_defaults(run=run)


def _percentage(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100")
    return int(text)


def run(arguments: argparse.Namespace, _settings: Settings) -> int:
    if arguments.by_node:
        return _run_by_node(arguments)
    with transaction(read_only=True) as db:
        found = statistics.profiles(db)
    if arguments.alert is not None:
        found = [profile for profile in found if profile.fullest >= arguments.alert]
        if not found:
            return 0
    if arguments.json:
        print(json.dumps([asdict(profile) for profile in found], indent=2))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, [f.name for f in fields(ProfileReport)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(profile) for profile in found)
    else:
        heads = ("profile", "active", "of", "WireGuard active", "addresses", "of", "OpenVPN active", "of")
        print("\n".join(table.lines(heads, map(_row, found))))
    return 0


def _run_by_node(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        raise BadRequest("--by-node has no --csv; use --json")
    with transaction(read_only=True) as db:
        found = occupancy.nodes(db)
    if arguments.json:
        print(json.dumps([asdict(node) for node in found], indent=2, ensure_ascii=False))
        return 0
    rows = [(node.node, *row) for node in found for row in node_rows(node)]
    print("\n".join(table.lines(("node", *NODE_HEADS), rows)))
    return 0


def node_rows(node: NodeOccupancy) -> list[tuple[object, ...]]:
    """Return a line of the table, under ``NODE_HEADS``, for each thing that a node offers."""
    shares = [
        (s.profile_id, "WireGuard", s.connected.connections, s.connected.users, s.allocated, s.capacity)
        for s in node.shares
    ]
    processes = [
        (
            p.profile_id,
            f"OpenVPN {p.protocol}/{p.port}",
            p.connected.connections,
            p.connected.users,
            "-",
            p.capacity,
        )
        for p in node.processes
    ]  # fmt: skip
    return [*shares, *processes]


def _row(profile: ProfileReport) -> tuple[object, ...]:
    return (
        profile.profile_id,
        profile.active_connection_count,
        profile.max_connection_count,
        profile.wireguard_active_connection_count,
        f"{profile.wireguard_allocated_ip_count} ({profile.wireguard_percentage_allocated}%)",
        profile.wireguard_max_connection_count,
        profile.openvpn_active_connection_count,
        profile.openvpn_max_connection_count,
    )
