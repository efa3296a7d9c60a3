"""Read a plan file: what ``Plan.to_dict()`` of vpn_core wrote, checked strictly before it is applied."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portal_app.errors import PortalError
from vpn_core.errors import PlanError
from vpn_core.plan import make_plan

STDIN = Path("-")
#: What an OpenVPN server is told and the portal does not use; another release may write it differently.
_SERVER_ONLY = ("device", "pushes")


class PlanRefused(PortalError):
    """The plan cannot be applied; nothing was changed."""


class Renumbers(PlanRefused):
    """The plan would give clients other addresses, and nobody said that it may."""

    exit_status = 3


@dataclass(frozen=True)
class NodeEntry:
    """A node of the plan; ``offers`` maps a profile's id to its WireGuard share and OpenVPN processes."""

    name: str
    number: int
    hostname: str
    agent_address: str
    offers: dict[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]]


@dataclass(frozen=True)
class PlanFile:
    """A checked plan. ``profiles`` holds the columns of each profile in the order of the inventory."""

    data: dict[str, Any]
    max_nodes: int
    profiles: dict[str, dict[str, Any]]
    nodes: tuple[NodeEntry, ...]


def load(path: Path) -> PlanFile:
    """Read and check a plan file, ``-`` for stdin; raises PlanRefused naming the file, the place and the
    fix.
    """
    try:
        data = json.loads(sys.stdin.buffer.read() if path == STDIN else path.read_bytes())
    except OSError as error:
        raise PlanRefused(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanRefused(f"{path}: not JSON: {error}") from error
    try:
        return parse(data)
    except PlanRefused as error:
        raise PlanRefused(f"{path}: {error}") from error


def parse(data: object) -> PlanFile:
    """Check a plan by making it again from its own profiles and nodes: it must come out equal."""
    if not isinstance(data, dict):
        raise PlanRefused("not a plan: no object; write it with the vpn_plan filter")
    if data.get("version") != 1:
        raise PlanRefused(f"version: {data.get('version')!r} is not 1; the plan is of another release")
    try:
        remade = _remake(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanRefused(f"not a plan: {error!r}; write it with the vpn_plan filter") from error
    except PlanError as error:
        raise PlanRefused(str(error)) from error
    for place in sorted(set(data) | set(remade)):
        _compare(place, data.get(place), remade.get(place))
    return PlanFile(
        data=data,
        max_nodes=remade["max_nodes"],
        profiles={
            profile_id: {k: v for k, v in remade["profiles"][profile_id].items() if k != "nodes"}
            for profile_id in data["profiles"]
        },
        nodes=tuple(_node(name, entry) for name, entry in data["nodes"].items()),
    )


def _remake(data: Mapping[str, Any]) -> dict[str, Any]:
    profiles = {
        profile_id: {k: v for k, v in entry.items() if k != "profile_id"}
        for profile_id, entry in data["profiles"].items()
    }
    nodes = {
        name: {key: entry[key] for key in ("number", "hostname", "agent_address")}
        for name, entry in data["nodes"].items()
    }
    settings = {"max_nodes": data["max_nodes"], "wireguard_port": data["wireguard"]["port"]}
    return make_plan(profiles, nodes, settings).to_dict()


def _compare(place: str, given: Any, remade: Any) -> None:
    """Raise PlanRefused where both differ, lists of a node's shares in any order."""
    if place == "nodes":
        given, remade = ({n: _comparable(entry) for n, entry in nodes.items()} for nodes in (given, remade))
    elif place == "openvpn" and isinstance(given, dict) and set(given) == set(remade):
        return  # Ciphers and timers of the servers: Ansible's business.
    elif place == "warnings" and isinstance(given, list):
        return
    if given == remade:
        return
    if isinstance(given, dict) and isinstance(remade, dict):
        for key in sorted(set(given) | set(remade)):
            _compare(f"{place}.{key}", given.get(key), remade.get(key))
    raise PlanRefused(
        f"{place}: {given!r:.80} is not what vpn_plan makes ({remade!r:.80}); write the plan again"
    )


def _comparable(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **entry,
        "wireguard": {share["profile_id"]: share for share in entry["wireguard"]},
        "openvpn": {
            process["name"]: {k: v for k, v in process.items() if k not in _SERVER_ONLY}
            for process in entry["openvpn"]
        },
    }


def _node(name: str, entry: Mapping[str, Any]) -> NodeEntry:
    offers: dict[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]] = {}
    for share in entry["wireguard"]:
        offers[share["profile_id"]] = (dict(share), [])
    for process in entry["openvpn"]:
        offers.setdefault(process["profile_id"], (None, []))[1].append(dict(process))
    return NodeEntry(name, entry["number"], entry["hostname"], entry["agent_address"], offers)
