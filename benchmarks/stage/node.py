"""One real node on this host: ``vpn-node run``, and wireguard-go in a network namespace."""

import base64
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portal_app.agents import Agents
from portal_app.errors import NodeUnreachable
from portal_app.services.nodes import NodeRef
from portal_app.settings import Settings
from tests.agent.conftest import Interface
from tests.portal.certificates import Deployment
from tests.portal.real_agent import OPENVPN_KEYS, loopback_address
from vpn_core.messages import OPENVPN, WIREGUARD, Authority, Connection, WantedSet

AUTHORITY = Authority("b" * 32, 1)
NUMBER = 1
START_SECONDS = 30
NETWORK_KEYS = ("profile_id", "ipv4", "ipv6", "gateway_ipv4", "gateway_ipv6")


@dataclass(frozen=True)
class OpenVpnPlace:
    """Where the agent looks for one OpenVPN process."""

    name: str
    socket: Path


@dataclass(frozen=True)
class RealNode:
    """A running agent with its interface, and a portal's client to call it with."""

    settings: Settings
    agents: Agents
    node: NodeRef
    interface: Interface
    pid: int

    def hand_over(self, connections: Sequence[Connection]) -> dict[str, int]:
        """Make this the node's whole set, over a connection of its own."""
        agents = Agents(self.settings)
        try:
            return agents.put_set(self.node, WantedSet(AUTHORITY, 1, tuple(connections)), seconds=60)
        finally:
            agents.close()


def key_of(number: int) -> str:
    """Return the public key of connection ``number``."""
    return base64.b64encode(hashlib.sha256(b"%d" % number).digest()).decode()


def wireguard_peer(number: int) -> Connection:
    """Return connection ``number``, whose key and addresses follow from the number."""
    high, low = divmod(number + 2, 256)
    return Connection(
        connection_id=f"{number:032x}",
        profile_id="employees",
        protocol=WIREGUARD,
        expires_at=int(time.time()) + 86400,
        generation=1,
        public_key=key_of(number),
        ipv4=f"10.64.{high}.{low}",
        ipv6=f"fd00:64::{number + 2:x}",
    )


def openvpn_client(number: int) -> Connection:
    name = f"{10**6 + number:032x}"
    return Connection(
        connection_id=name,
        profile_id="employees",
        protocol=OPENVPN,
        expires_at=int(time.time()) + 86400,
        generation=1,
        common_name=name,
    )


@contextmanager
def interface() -> Iterator[Interface]:
    """Yield a fresh WireGuard interface with a key and no peers."""
    made = Interface(f"wgb{secrets.token_hex(4)}")
    try:
        made.up()
        yield made
    finally:
        made.close()


def portal_settings(deployment: Deployment, directory: Path, **more: object) -> Settings:
    values: dict[str, object] = {
        "portal_url": "https://vpn.example.org",
        "secret_key_file": deployment.directory / "secret",
        "client_ca_certificate_file": deployment.client_ca.pair.certificate,
        "client_ca_key_file": deployment.client_ca.pair.key,
        "server_ca_certificate_file": deployment.server_ca.pair.certificate,
        "management_ca_certificate_file": deployment.management.pair.certificate,
        "management_certificate_file": deployment.portal.certificate,
        "management_key_file": deployment.portal.key,
        "tls_crypt_directory": deployment.tls_crypt,
        "state_directory": directory,
    }
    return Settings.parse(values | more)


def busy_wg(directory: Path, active: int) -> Path:
    """Return a directory with a ``wg`` in whose dumps this many peers have just sent something."""
    real = shutil.which("wg")
    directory.mkdir()
    program = directory / "wg"
    program.write_text(
        # One process for the agent, which ends it: nobody else holds its pipe.
        f"""#!/bin/bash
[ "$1 $3" = "show dump" ] || exec {real} "$@"
exec awk -v now="$(date +%s)" '
    BEGIN {{ FS = OFS = "\\t" }}
    NR > 1 && NR < {active + 2} {{ $3 = "198.51.100.7:4500"; $5 = now - now % 120; $6 += now; $7 += now }}
    {{ print }}' < <({real} "$@")
"""
    )
    program.chmod(0o755)
    return directory


#: What a plan says of the only node of some benchmarks, as far as its agent reads it.
_ALONE: dict[str, Any] = {
    "name": "node1",
    "number": NUMBER,
    "wireguard": [
        {
            "profile_id": "employees",
            "ipv4": "10.64.0.0/17",
            "ipv6": "fd00:64::/112",
            "gateway_ipv4": "10.64.0.1",
            "gateway_ipv6": "fd00:64::1",
        }
    ],
}


@contextmanager
def running(
    directory: Path, places: Sequence[OpenVpnPlace] = (), programs: Path | None = None
) -> Iterator[RealNode]:
    """Run an agent without any state for an interface without peers; ``programs`` come before others."""
    directory.mkdir(parents=True)
    deployment = Deployment(directory)
    openvpn = [
        {
            "name": place.name,
            "profile_id": "employees",
            "device": f"tun{number}",
            "ipv4": f"10.80.{number}.0/24",
            "ipv6": f"fd00:80:{number:x}::/112",
        }
        for number, place in enumerate(places)
    ]
    share = _ALONE | {"agent_address": loopback_address(), "openvpn": openvpn}
    with started(directory / "agent", deployment, share, places, programs) as node:
        yield node


@contextmanager
def started(
    directory: Path,
    deployment: Deployment,
    share: dict[str, Any],
    places: Sequence[OpenVpnPlace] = (),
    programs: Path | None = None,
) -> Iterator[RealNode]:
    """Run the agent of one node of a plan (``share``), whose OpenVPN processes are at ``places``."""
    directory.mkdir(parents=True)
    portal = portal_settings(deployment, directory)
    agents = Agents(portal)
    node = NodeRef(share["number"], share["name"], share["agent_address"])
    with interface() as made:
        file = _settings(directory, deployment, share, made.name, places)
        with (directory / "log").open("ab") as log:
            code = "import sys; from node_agent.cli import main; sys.exit(main())"
            process = subprocess.Popen(
                [sys.executable, "-c", code, "--settings", file, "run"],
                stdout=log,
                stderr=log,
                env=os.environ | ({"PATH": f"{programs}:{os.environ['PATH']}"} if programs else {}),
            )
        try:
            _wait(agents, node, process, directory / "log")
            yield RealNode(portal, agents, node, made, process.pid)
        finally:
            process.terminate()
            process.wait(START_SECONDS)
            agents.close()


def _wait(agents: Agents, node: NodeRef, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while True:
        try:
            if agents.info(node).wireguard_public_key is not None:
                return
        except NodeUnreachable:
            pass
        if process.poll() is not None or time.monotonic() > ends_at:
            raise SystemExit(log.read_text())
        time.sleep(0.05)


def _settings(
    directory: Path,
    deployment: Deployment,
    share: dict[str, Any],
    name: str,
    places: Sequence[OpenVpnPlace],
) -> Path:
    (directory / "state").mkdir()
    (directory / "run").mkdir()
    pair = deployment.node(share["number"])
    tables: list[tuple[str, dict[str, object]]] = [
        (
            "",
            {
                "node_number": share["number"],
                "listen_address": share["agent_address"],
                "certificate_file": str(pair.certificate),
                "key_file": str(pair.key),
                "ca_file": str(deployment.management.pair.certificate),
                "state_directory": str(directory / "state"),
                "runtime_directory": str(directory / "run"),
            },
        ),
        ("[wireguard]", {"interface": name, "restart_file": str(directory / "run" / "restart-wireguard")}),
    ]
    tables += [
        ("[[wireguard.networks]]", {key: network[key] for key in NETWORK_KEYS})
        for network in share["wireguard"]
    ]
    tables += [
        ("[[openvpn]]", {key: process[key] for key in OPENVPN_KEYS} | {"socket": str(place.socket)})
        for process, place in zip(share["openvpn"], places, strict=True)
    ]
    text = "".join(
        head + "\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for head, values in tables
    )
    file = directory / "settings.toml"
    file.write_text(text)
    return file
