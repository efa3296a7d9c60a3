"""``vpn-portal verify``: prove the deployment from outside, with a temporary account."""

import argparse
import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

from portal_app.cli import main
from portal_app.errors import PortalError
from portal_app.services.statistics import MAINTENANCE, UP_STATE
from portal_app.settings import OWN_TLS_CA, TRUSTED_TLS_CA, Settings
from portal_app.verification import Check, Verification, temporary_name, verify, verify_node
from portal_app.verification.browser import VerificationError

#: The controller asks every node each five seconds.
SEEN_SECONDS = 20
LOCK = Path("/run/causeway-verify.lock")


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "verify",
        help="prove the service with a real client (root)",
        description=(
            "Makes a temporary account, signs in, approves, and for each profile and protocol connects from a"
            " network namespace, pings the gateway at full MTU, resolves a name where DNS is set, and"
            " disconnects, on nodes that the portal chooses. Where there are several nodes, each of them is"
            " proved for each of its profiles, once, and over each protocol. A node in maintenance is left"
            " out. Leaves nothing. Exit status 0 only if every line passed."
        ),
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        default=next((file for file in (OWN_TLS_CA, TRUSTED_TLS_CA) if file.exists()), None),
        help="certificate to trust instead of the system's (default: the own CA or vpn_portal_ca, if any)",
    )
    parser.add_argument(
        "--node",
        action="append",
        metavar="NAME",
        help="only this node, with everything it serves; may repeat",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave this node out, such as one that is known to be down; may repeat",
    )
    parser.add_argument("--dns-name", help="name to resolve through tunnels (default: the portal's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run, as_root=True)


class Commands:
    """Other commands of this CLI, run in one process, which drops root before it opens the database."""

    def __init__(self, settings_file: Path) -> None:
        self._settings = ("--settings", str(settings_file))
        # It has all modules already: each command in a process of its own would import them again.
        self._worker = ProcessPoolExecutor(1, mp_context=get_context("fork"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._worker.shutdown()

    def run(self, *words: str, stdin: str = "") -> str:
        """Return what a command prints; raises PortalError with what it said when it failed."""
        status, printed, said = self._worker.submit(_run_here, (*self._settings, *words), stdin).result()
        if status != 0:
            raise PortalError(f"vpn-portal {' '.join(words[:2])}: {said.strip()[-300:]}")
        return printed


def _run_here(words: Sequence[str], stdin: str) -> tuple[int, str, str]:
    sys.stdin = StringIO(stdin)
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as said:
        status = main(words)
    return status, printed.getvalue(), said.getvalue()


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    if os.geteuid() != 0:
        raise PortalError("verify needs root: it makes a network namespace")
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PortalError("another verify runs on this host; try again when it has ended") from None
        with Commands(arguments.settings) as commands:
            return _run_locked(arguments, settings, commands)


def _run_locked(arguments: argparse.Namespace, settings: Settings, commands: Commands) -> int:
    name, password = temporary_name(), secrets.token_urlsafe(24)
    _remove_leftover_accounts(commands)
    permissions = _needed_permissions(commands, settings)
    words = [item for permission in permissions for item in ("--permission", permission)]
    commands.run("user", "add", name, "--password-file", "-", *words, stdin=password)
    report = (lambda _check: None) if arguments.json else _print_line
    dns_name = arguments.dns_name or settings.host_name
    try:
        chosen = _chosen_nodes(arguments, commands)
        done = Verification(report)
        done.check("nodes answer", lambda: _wait_until_up(commands, {node["name"] for node in chosen}))
        if not arguments.node:
            verify(done, settings.portal_url, name, password, ca_file=arguments.ca_file, dns_name=dns_name)
        # The only node was the one that the app got.
        for node in chosen if arguments.node or len(chosen) > 1 else ():
            make = partial(_make_configuration, commands, name, node["name"])
            verify_node(done, node, make, dns_name, whole=bool(arguments.node))
    finally:
        commands.run("user", "delete", name)
    not_up = [] if done.passed else _nodes_that_are_not_up(commands)
    if arguments.json:
        checks = [
            {"name": c.name, "passed": c.passed, "seconds": round(c.seconds, 2), "detail": c.detail}
            for c in done.checks
        ]
        print(json.dumps({"passed": done.passed, "checks": checks, "nodes_not_up": not_up}))
    else:
        failed = sum(not check.passed for check in done.checks)
        print(f"{len(done.checks) - failed} passed, {failed} failed")
        for text in not_up:
            print(text)
    return 0 if done.passed else 1


def _chosen_nodes(arguments: argparse.Namespace, commands: Commands) -> list[dict[str, Any]]:
    """Return the plan's entries of the nodes to prove: those that were named, else all that take people
    and were not left out.
    """
    plan = json.loads(commands.run("plan", "show", "--json"))
    visible = {profile_id for profile_id, profile in plan["profiles"].items() if not profile["hidden"]}
    planned = {name: _without_hidden(node, visible) for name, node in plan["nodes"].items()}
    if arguments.node:
        if unknown := sorted(set(arguments.node) - planned.keys()):
            raise PortalError(f"no node {unknown[0]!r}; known are {', '.join(planned)}")
        return [planned[name] for name in dict.fromkeys(arguments.node)]
    return [
        planned[name]
        for name, state in _states(commands).items()
        if state != MAINTENANCE and name not in arguments.without
    ]


def _without_hidden(node: dict[str, Any], visible: set[str]) -> dict[str, Any]:
    """Nobody gets a configuration of a hidden profile, so there is nothing to prove."""
    served = {key: [s for s in node[key] if s["profile_id"] in visible] for key in ("wireguard", "openvpn")}
    return node | served


def _states(commands: Commands) -> dict[str, str]:
    return {n["name"]: n["state"] for n in json.loads(commands.run("node", "list", "--json"))}


def _wait_until_up(commands: Commands, names: set[str]) -> None:
    """Wait for the controller to have seen nodes that were deployed a moment ago."""
    deadline = time.monotonic() + SEEN_SECONDS
    while missing := sorted(name for name in names if _states(commands).get(name) != UP_STATE):
        if time.monotonic() > deadline:
            raise VerificationError(f"{', '.join(missing)}: not up after {SEEN_SECONDS} s")
        time.sleep(1)


def _make_configuration(commands: Commands, user: str, node: str, profile_id: str, protocol: str) -> str:
    try:
        return commands.run("user", "configuration", user, profile_id, protocol, "--node", node)
    except PortalError as error:
        raise VerificationError(str(error)) from error


def _print_line(check: Check) -> None:
    print(f"{'PASS' if check.passed else 'FAIL'}  {check.seconds:5.1f} s  {check.name}", flush=True)
    if check.detail:
        print(f"               {check.detail}", flush=True)


def _remove_leftover_accounts(commands: Commands) -> None:
    """Remove the account of a run that was killed; only one verify runs at a time."""
    for user in json.loads(commands.run("user", "list", "--json")):
        if user["name"].startswith("verify-"):
            commands.run("user", "delete", user["name"])


def _nodes_that_are_not_up(commands: Commands) -> list[str]:
    """Return what a person looks at first when something failed."""
    found = []
    for node in json.loads(commands.run("node", "list", "--json")):
        if node["state"] == MAINTENANCE:
            text = (
                f"takes no connections, it is in maintenance: vpn-portal node maintenance {node['name']} off"
            )
        elif node["state"] != UP_STATE:
            text = f"is {node['state']}: {'; '.join(node['remarks']) or 'see vpn-portal check'}"
        else:
            continue
        found.append(f"node {node['name']} {text}")
    return found


def _needed_permissions(commands: Commands, settings: Settings) -> list[str]:
    """Return permissions that open the portal and every profile that anybody may use."""
    plan = json.loads(commands.run("plan", "show", "--json"))
    lists = [profile["permissions"] for profile in plan["profiles"].values()] + [settings.access_permissions]
    return sorted({needed[0] for needed in lists if needed})
