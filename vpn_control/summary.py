"""What a deployment would do, for people: made from what a run in check mode has recorded.

The record is what ``playbooks/callback_plugins/causeway_summary.py`` writes: ``plan`` (None if the inventory
was refused), ``portals``, and per host what was handed over: ``files``, ``units``, ``packages``, ``portal``,
``tasks``, and ``failed`` or ``unreachable``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vpn_control import capacity, effects
from vpn_control.capacity import Share
from vpn_control.effects import Connected

UNKNOWN = "unknown"
UNCHANGED, CHANGED, FIRST, REFUSED = "unchanged", "changed", "first deployment", "refused"


@dataclass(frozen=True)
class Service:
    """A unit that would be started, stopped, restarted or reloaded, and why.

    ``connected`` is who uses it now, None where that is unknown or the unit carries no tunnels.
    """

    unit: str
    title: str
    verb: str
    because: tuple[str, ...]
    notice: str
    connected: Connected | None


@dataclass(frozen=True)
class HostSummary:
    """What would happen on one host; ``message`` says why that is unknown or refused."""

    name: str
    roles: tuple[str, ...]
    state: str
    message: str = ""
    release: str | None = None
    packages: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    services: tuple[Service, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """Connections that the plan has no room for any more."""

    profile: str
    node: str
    connections: int
    users: int
    because: str


@dataclass(frozen=True)
class Summary:
    """All of it. ``changes`` and ``ending`` are None where no portal could tell; ``unknown`` says why."""

    refused: tuple[str, ...]
    changes: tuple[str, ...] | None
    unknown: str
    hosts: tuple[HostSummary, ...]
    ending: tuple[Ending, ...] | None
    who: tuple[str, ...]
    capacity: tuple[Share, ...]
    capacity_unknown: str
    warnings: tuple[str, ...]

    @property
    def nothing_changes(self) -> bool:
        return self.changes == () and all(host.state == UNCHANGED for host in self.hosts)


@dataclass(frozen=True)
class _Answer:
    """What a portal said when it was asked; ``unknown`` says why it did not."""

    value: Any = None
    unknown: str = ""


def make(record: Mapping[str, Any]) -> Summary:
    """Return the summary of a record that has a plan."""
    plan, found = record["plan"], record["hosts"]
    said, occupied = _ask(record, "plan"), _ask(record, "occupancy")
    occupancy = occupied.value
    hosts = tuple(
        _host(name, record, found.get(name, {}), occupancy)
        for name in dict.fromkeys([*record["portals"], *plan["nodes"]])
        if name in found
    )
    changes: tuple[str, ...] | None = None
    ending: tuple[Ending, ...] | None = None
    who: tuple[str, ...] = ()
    if said.value is not None:
        who = tuple(line for line in said.value["changes"] if line.startswith("cut "))
        changes = tuple(line for line in said.value["changes"] if line not in who)
        ending = tuple(
            Ending(cut["profile_id"], cut["node"], cut["connections"], cut["users"], cut["because"])
            for cut in said.value.get("cuts", ())
        )
    shares = tuple(capacity.shares(plan, occupancy))
    return Summary(
        refused=tuple(text for host in found.values() for text in host.get("failed", ())),
        changes=changes,
        unknown=said.unknown,
        hosts=hosts,
        ending=ending,
        who=who,
        capacity=shares,
        capacity_unknown=occupied.unknown,
        warnings=tuple(capacity.warnings(plan, shares)),
    )


def _ask(record: Mapping[str, Any], question: str) -> _Answer:
    """Return what the first portal that could tell has said."""
    unknown = "no portal was asked"
    for name in record["portals"]:
        host = record["hosts"].get(name, {})
        if "unreachable" in host:
            unknown = f"{name} cannot be reached"
        elif _is_first(host):
            # Nothing runs there: all of the plan is new, and nobody is connected.
            return _Answer(_before_the_first(record["plan"])[question])
        elif "portal" in host:
            answer = host["portal"][question]
            try:
                return _Answer(json.loads(answer["stdout"]))
            except ValueError:
                unknown = _why_not(name, question, answer)
    return _Answer(unknown=unknown)


def _before_the_first(plan: Mapping[str, Any]) -> dict[str, Any]:
    changes = [f"profile {profile_id}: added" for profile_id in plan["profiles"]]
    changes += [f"node {name}: added as number {node['number']}" for name, node in plan["nodes"].items()]
    return {"plan": {"changes": changes, "cuts": []}, "occupancy": []}


def _why_not(name: str, question: str, answer: Mapping[str, Any]) -> str:
    lines = answer["stderr"].strip().splitlines()
    if question == "occupancy" and "unrecognized arguments" in answer["stderr"]:
        return f"the release that runs on {name} cannot tell"
    return f"{name}: {lines[-1]}" if lines else f"the portal on {name} does not run"


def _is_first(host: Mapping[str, Any]) -> bool:
    return _release(host) == "made"


def _release(host: Mapping[str, Any]) -> str | None:
    return next((c for path, c in host.get("files", {}).items() if path.endswith("/causeway/current")), None)


def _host(
    name: str,
    record: Mapping[str, Any],
    found: Mapping[str, Any],
    occupancy: Sequence[Mapping[str, Any]] | None,
) -> HostSummary:
    roles = tuple(
        role
        for role, names in (("portal", record["portals"]), ("node", record["plan"]["nodes"]))
        if name in names
    )
    if "unreachable" in found:
        return HostSummary(name, roles, UNKNOWN, f"cannot be reached: {_in_short(found['unreachable'])}")
    if "failed" in found:
        return HostSummary(name, roles, REFUSED, " ".join(found["failed"]))
    services = tuple(_service(name, unit, did, occupancy) for unit, did in found.get("units", {}).items())
    files, packages = found.get("files", {}), tuple(found.get("packages", ()))
    said = bool(files or packages or services)
    tasks = () if said else tuple(task for task in found.get("tasks", ()) if task not in _SAID_ELSEWHERE)
    state = FIRST if _is_first(found) else CHANGED if said or tasks else UNCHANGED
    return HostSummary(
        name, roles, state, release=_release(found), packages=packages, files=files, services=services,
        tasks=tasks,
    )  # fmt: skip


#: Tasks that count as a change on the host that they ask, or on the control machine.
_SAID_ELSEWHERE = frozenset(
    {
        "Ask the portal that runs what it makes of the plan",
        "app_venv : Collect our wheel and the locked ones on the control machine",
    }
)


def _in_short(message: str) -> str:
    """Return what ssh itself said, without what Ansible says around it."""
    return message.rpartition(" ssh: ")[2]


def _service(
    host: str, unit: str, did: Mapping[str, Any], occupancy: Sequence[Mapping[str, Any]] | None
) -> Service:
    connected = _connected(host, unit, occupancy)
    return Service(
        unit, effects.title(unit), did["verb"], tuple(did["because"]),
        effects.notice(unit, did["verb"], connected), connected,
    )  # fmt: skip


def _connected(host: str, unit: str, occupancy: Sequence[Mapping[str, Any]] | None) -> Connected | None:
    if occupancy is None or not effects.carries_tunnels(unit):
        return None
    node = next((node for node in occupancy if node["node"] == host), None)
    if node is None:
        return Connected(0, 0)
    process = effects.process_of(unit)
    if process is None:
        return Connected(**node["wireguard"])
    counts = next((p["connected"] for p in node["processes"] if p["name"] == process), None)
    return Connected(**counts) if counts else Connected(0, 0)
