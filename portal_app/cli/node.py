"""``vpn-portal node``: how the nodes are, and what an operator tells them."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from portal_app.agents import Agents
from portal_app.cli import status
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import NodeUnreachable, PortalError
from portal_app.models import Node
from portal_app.services import audit, identity, maintenance, occupancy, reconciliation, statistics
from portal_app.services.maintenance import Held, Occupants
from portal_app.services.occupancy import NodeOccupancy
from portal_app.services.statistics import NodeReport
from portal_app.settings import Settings
from vpn_core import table

#: Exit status when people are still connected and the operator did not ask for a cut.
STILL_OCCUPIED = 4
_ASK_AGAIN_SECONDS = 2.0
_MOST_NAMES = 10


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("node", help="how the nodes are; maintenance, drain, reconcile, enroll")
    commands = parser.add_subparsers(dest="node_command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="list the nodes as the controller last saw them")
    listing.set_defaults(run=run_list)

    show = commands.add_parser("show", help="everything about one node: state, load, what it serves")
    show.add_argument("name")
    show.set_defaults(run=run_show)

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

    switch = commands.add_parser(
        "maintenance",
        help="no new connections on a node, or again",
        description="Open tunnels stay. The node remembers it over restarts; a drain sets it, too.",
    )
    switch.add_argument("name")
    switch.add_argument("state", choices=("on", "off"))
    switch.add_argument("--notice", metavar="TEXT", help="what users connected there read in the portal")
    switch.set_defaults(run=run_maintenance)

    drain = commands.add_parser(
        "drain",
        help="take a node out of service: no new connections, wait, cut",
        description=(
            "Sets maintenance, then waits until fewer than N users are connected or the time is up. With"
            " --cut those who are left are cut then; the portal tells them when that will be, and their apps"
            " get another node at their next connect. Downloaded configurations, and tunnels that are open"
            " with them, stay unless --downloads ends them as well. Exit status 4: people are still"
            " connected. Ctrl-C ends the waiting; maintenance stays on."
        ),
    )
    drain.add_argument("name")
    drain.add_argument(
        "--below", type=int, default=1, metavar="N", help="fewer users than this are few enough (default: 1)"
    )
    drain.add_argument(
        "--within",
        type=_duration,
        default=timedelta(0),
        metavar="TIME",
        help="wait no longer than this: 90, 90s, 15m, 2h (default: 0, do not wait)",
    )
    drain.add_argument("--cut", action="store_true", help="cut those who are left when the time is up")
    drain.add_argument(
        "--downloads",
        action="store_true",
        help="with --cut: end downloaded configurations for this node too; their owners need new ones",
    )
    drain.add_argument("--notice", metavar="TEXT", help="what users connected there read in the portal")
    drain.set_defaults(run=run_drain)

    enroll = commands.add_parser(
        "enroll",
        help="accept a machine as a node (the roles do this)",
        description="A node that was installed anew is another machine; whoever deployed it says so here.",
    )
    enroll.add_argument(
        "machines",
        nargs="+",
        metavar="NAME=INSTANCE",
        type=_machine,
        help="instance: the agent's instance-id",
    )
    enroll.set_defaults(run=run_enroll)

    for command in (listing, show, again, switch, drain, enroll):
        command.add_argument("--json", action="store_true", help="print JSON")


def _duration(text: str) -> timedelta:
    """Return a time span; a number alone is seconds.

    >>> _duration("15m"), _duration("90")
    (datetime.timedelta(seconds=900), datetime.timedelta(seconds=90))
    """
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span; write 90, 90s, 15m or 2h")
    return timedelta(seconds=int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]])


def _machine(text: str) -> tuple[str, str]:
    name, _, instance = text.partition("=")
    if not name or not instance:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=INSTANCE")
    return name, instance


def _print(arguments: argparse.Namespace, data: object, lines: Callable[[], object]) -> None:
    if arguments.json:
        print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
    else:
        print(lines())


def run_list(arguments: argparse.Namespace, _settings: Settings) -> int:
    with transaction(read_only=True) as db:
        found = statistics.nodes(db, now=utc_now())
    _print(arguments, [asdict(node) for node in found], lambda: _nodes_table(found))
    return 0


def _nodes_table(found: list[NodeReport]) -> str:
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
    return "\n".join(table.lines(heads, rows))


def run_show(arguments: argparse.Namespace, _settings: Settings) -> int:
    node = _node(arguments.name)
    with transaction(read_only=True) as db:
        report = statistics.node(db, node.number, now=utc_now())
        if report is None:
            raise PortalError(f"node {node.name!r} was removed this moment")
        used = next(o for o in occupancy.nodes(db) if o.number == node.number)
        held = maintenance.held_downloads(db, node.number)
    data = asdict(report) | {key: asdict(used)[key] for key in ("shares", "processes")}
    data["downloads"] = asdict(held)
    _print(arguments, data, lambda: _sheet(report, used, held))
    return 0


def _sheet(node: NodeReport, used: NodeOccupancy, held: Held) -> str:
    def moment(at: Any) -> str:
        return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"

    facts = [
        ("state", node.state),
        ("number", node.number),
        ("host name", node.hostname),
        ("agent", f"{node.agent_address}, version {node.version or 'unknown'}"),
        ("software", ", ".join(f"{name} {text}" for name, text in node.software.items()) or "unknown"),
        ("last answer", moment(node.answered_at)),
        ("in step", moment(node.reconciled_at)),
        ("up for", _span(node.uptime_seconds)),
        (
            "load",
            "unknown"
            if node.load_percent is None
            else f"{node.load_percent} %: work for {node.wanted_cpus:.1f} CPU, it has {node.cpu_count}",
        ),
        ("certificate", _certificate(node)),
        ("connections", f"{node.connections}, {node.active} active"),
        ("downloads", f"{held.connections}" + (f", of {', '.join(held.users)}" if held.users else "")),
        *(("remark", text) for text in node.remarks),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [node.name, *(f"  {name.ljust(width)}  {value}" for name, value in facts), ""]
    return "\n".join(lines + list(table.lines(status.NODE_HEADS, status.node_rows(used))))


def _certificate(node: NodeReport) -> str:
    if node.certificate_ends is None:
        return "unknown"
    return f"serial {node.certificate_serial}, until {node.certificate_ends:%Y-%m-%d}"


def _span(seconds: int | None) -> str:
    if seconds is None:
        return "unknown"
    days, rest = divmod(seconds, 86400)
    return f"{days} d {rest // 3600} h" if days else f"{rest // 3600} h {rest % 3600 // 60} min"


def run_reconcile(arguments: argparse.Namespace, settings: Settings) -> int:
    node = _node(arguments.name)
    answer = reconciliation.by_operator(
        Agents(settings), node, confirmed=arguments.confirm, actor=audit.CLI, now=utc_now
    )
    data = {"node": node.name, "added": answer.get("added", 0), "removed": answer.get("removed", 0)}
    _print(arguments, data, lambda: "{node}: {added} added, {removed} removed".format_map(data))
    return 0


def run_maintenance(arguments: argparse.Namespace, settings: Settings) -> int:
    node, on = _node(arguments.name), arguments.state == "on"
    if arguments.notice and not on:
        raise PortalError("--notice: only with maintenance on; off removes what users read")
    maintenance.switch(Agents(settings), node, on=on, actor=audit.CLI, now=utc_now(), notice=arguments.notice)
    data = {"node": node.name, "maintenance": arguments.state}
    _print(arguments, data, lambda: "{node}: maintenance {maintenance}".format_map(data))
    return 0


def run_drain(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.below < 1:
        raise PortalError(f"--below {arguments.below}: at least 1, which waits until nobody is connected")
    if arguments.downloads and not arguments.cut:
        raise PortalError("--downloads: only with --cut")
    node, agents, now = _node(arguments.name), Agents(settings), utc_now()
    cut_at = now + arguments.within if arguments.cut else None
    maintenance.switch(
        agents,
        node,
        on=True,
        actor=audit.CLI,
        now=now,
        notice=arguments.notice,
        cut_at=cut_at,
        ends_downloads=arguments.downloads,
    )
    _say(f"{node.name}: takes no new connections")
    left = _wait_until_few(agents, node, arguments.below, arguments.within.total_seconds())
    cut = 0
    if arguments.cut:
        cut = maintenance.cut(agents, node, downloads=arguments.downloads, actor=audit.CLI, now=utc_now())
        # Downloads stay unless --downloads says otherwise, and so do their tunnels.
        left = _ask(agents, node)
    few = len(left.users) < arguments.below
    data = {
        "node": node.name,
        "users": list(left.users),
        "cut": cut,
        "downloads": {"connections": left.downloads, "users": list(left.holders)},
    }
    _print(arguments, data, lambda: _came_of_it(node.name, left, cut if arguments.cut else None, few))
    return 0 if few else STILL_OCCUPIED


def _came_of_it(name: str, left: Occupants, cut: int | None, few: bool) -> str:
    """Return what a drain did and who is left, and where these are too many the ways out."""
    if cut is None:
        said, way = f"in maintenance, {_said(left)}", "--cut"
    else:
        said, way = f"in maintenance, {_counted(cut, 'connection')} ended", "--cut --downloads"
        if left.users:
            said += f"; {_still_connected(left)}"
    if few:
        return f"{name}: {said}"
    return (
        f"{name}: {said}; to end their connections, repeat with {way}; to wait, with --within 2h;"
        f" or let it serve again: vpn-portal node maintenance {name} off"
    )


def _still_connected(left: Occupants) -> str:
    if set(left.users) <= set(left.holders):
        return (
            f"{_counted(left.downloads, 'downloaded configuration')} still connected ({_names(left.users)})"
        )
    return _said(left)


def _ask(agents: Agents, node: Node) -> Occupants:
    try:
        return maintenance.occupants(agents, node)
    except NodeUnreachable as error:
        raise PortalError(f"{error}; it is in maintenance, who is connected is unknown") from error


def _wait_until_few(agents: Agents, node: Node, below: int, seconds: float) -> Occupants:
    """Ask the node until fewer than ``below`` users are connected or the time is up."""
    ends_at, said = time.monotonic() + seconds, None
    while True:
        found = _ask(agents, node)
        if found != said and len(found.users) >= below:
            _say(f"{node.name}: {_said(found)}")
        said, left = found, ends_at - time.monotonic()
        if len(found.users) < below or left <= 0:
            return found
        time.sleep(min(_ASK_AGAIN_SECONDS, left))


def _said(found: Occupants) -> str:
    """Return who is connected, in words."""
    if not found.users:
        return "nobody is connected"
    count = f"{len(found.users)} user{'s are' if len(found.users) > 1 else ' is'} connected"
    return f"{count}: {_names(found.users)}"


def _names(users: Sequence[str]) -> str:
    """Return the first of them, and how many more there are."""
    more = f" and {len(users) - _MOST_NAMES} more" if len(users) > _MOST_NAMES else ""
    return f"{', '.join(users[:_MOST_NAMES])}{more}"


def _counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> _counted(1, "connection"), _counted(0, "connection")
    ('1 connection', '0 connections')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(text: str) -> None:
    """Progress goes to stderr, so that stdout has the result alone."""
    print(text, file=sys.stderr, flush=True)


def run_enroll(arguments: argparse.Namespace, _settings: Settings) -> int:
    names = [name for name, _ in arguments.machines]
    if len(set(names)) < len(names):
        raise PortalError("a node is named twice")
    news = identity.enroll(dict(arguments.machines), utc_now())
    _print(
        arguments,
        {"enrolled": news},
        lambda: "\n".join(f"{name}: enrolled" for name in news) or "no changes",
    )
    return 0


def _node(name: str) -> Node:
    with transaction(read_only=True) as db:
        found = {node.name: node for node in db.scalars(select(Node))}
    if name not in found:
        raise PortalError(f"no node {name!r}; known are {', '.join(sorted(found)) or 'none'}")
    return found[name]
