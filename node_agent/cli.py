"""``vpn-node``: run the agent, and ask the running one.

What the service unit gives it (role node_agent):

- ``ExecStart=/usr/local/bin/vpn-node run``, ``Type=notify``, ``WatchdogSec=10``, ``Restart=always``,
  ``RestartSec=1``, after the WireGuard interface's unit but without requiring it.
- ``User=causeway-node``, ``AmbientCapabilities=CAP_NET_ADMIN`` and nothing else in the bounding set. Where
  the kernel has no WireGuard, ``wireguard-go`` runs as the same user, and ``/run/wireguard`` belongs to it.
- ``StateDirectory=causeway-node`` (0700), ``RuntimeDirectory=causeway-node`` (0750, kept over restarts by
  ``RuntimeDirectoryPreserve=yes``, since the path unit watches ``restart-wireguard`` in it); reads
  ``/etc/causeway/node``; a group that may open the sockets in ``/run/openvpn-server`` (connecting needs write
  permission on the socket, which OpenVPN makes 0777: the directory's mode is what guards it).
- Address families AF_INET, AF_INET6, AF_UNIX, AF_NETLINK (``wg``). It calls nobody and runs only ``wg``.
"""

import argparse
import http.client
import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from node_agent.errors import AgentError
from node_agent.settings import DEFAULT_FILE, Settings


class _LocalConnection(http.client.HTTPConnection):
    """HTTP over the agent's local socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(settings: Settings, method: str, path: str, body: object = None) -> Any:
    """Return the running agent's answer; raises AgentError with the way out."""
    connection = _LocalConnection(settings.local_socket)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        data = response.read()
    except PermissionError:
        raise AgentError(f"{settings.local_socket}: no permission; run this as root") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentError("the agent is not running; see `systemctl status vpn-node-agent`") from None
    except OSError as error:
        raise AgentError(f"{settings.local_socket}: {error}") from None
    finally:
        connection.close()
    answer = json.loads(data) if data else None
    if response.status >= 400:
        raise AgentError(str(answer["error"]) if isinstance(answer, dict) else f"HTTP {response.status}")
    return answer


def _run(settings: Settings, _: argparse.Namespace) -> None:
    from node_agent.service import run  # the other commands do without aiohttp

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    run(settings)


def _log_nat(settings: Settings, _: argparse.Namespace) -> None:
    from node_agent.nat_log import record

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    record(settings)


def _status(settings: Settings, arguments: argparse.Namespace) -> None:
    info = _ask(settings, "GET", "/status")
    if arguments.json:
        print(json.dumps(info, indent=2))
        return
    print(
        f"node {info['node_number']}, version {info['v']}"
        + (", in maintenance" if info["maintenance_mode"] else "")
    )
    print(
        f"{info['connection_count']} connections; active: {info['w_peer_count']} WireGuard,"
        f" {info['o_client_count']} OpenVPN"
    )
    print(f"deployment {info['deployment_id'] or 'none yet'}, generation {info['generation']}")
    if info["held"]:
        print(f"held: {info['held']} (`vpn-node accept` lets it through)")
    for problem in info["problems"]:
        print(f"problem: {problem}")


def _accept(settings: Settings, _: argparse.Namespace) -> None:
    print(_ask(settings, "POST", "/accept")["result"])


def _maintenance(settings: Settings, arguments: argparse.Namespace) -> None:
    _ask(settings, "PUT", "/maintenance", {"on": arguments.state == "on"})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpn-node", description="The node agent of Causeway.")
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE, help="default: %(default)s")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="run the agent (systemd does)")
    command.set_defaults(act=_run)
    command = commands.add_parser("log-nat", help="write the log of NAT (systemd does)")
    command.set_defaults(act=_log_nat)
    command = commands.add_parser("status", help="show how the running agent is")
    command.add_argument("--json", action="store_true", help="all of it, as JSON")
    command.set_defaults(act=_status)
    command = commands.add_parser("accept", help="let through what the agent holds back")
    command.set_defaults(act=_accept)
    command = commands.add_parser("maintenance", help="take this node out of the selection, or back")
    command.add_argument("state", choices=("on", "off"))
    command.set_defaults(act=_maintenance)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.act(Settings.load(arguments.settings), arguments)
    except (AgentError, OSError) as error:
        print(f"vpn-node: {error}", file=sys.stderr)
        return 1
    return 0
