"""A summary as text for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from vpn_control import capacity, effects
from vpn_control.capacity import Share
from vpn_control.effects import Connected, counted
from vpn_control.summary import CHANGED, FIRST, REFUSED, UNCHANGED, UNKNOWN, HostSummary, Summary
from vpn_core import table

#: More of them are counted, not listed; the JSON has all.
_MOST_FILES, _MOST_ROWS = 8, 60
_CAPACITY = "Capacity (WireGuard: addresses given out; OpenVPN: clients connected)"
_THIRD_PERSON = {
    "start": "starts",
    "stop": "stops",
    "restart": "restarts",
    "reload": "reloads",
    "enable": "starts at boot",
    "disable": "no longer starts at boot",
}


def lines(summary: Summary) -> Iterator[str]:
    """Yield the report for a terminal."""
    if summary.refused:
        yield from _section("A deployment would stop", summary.refused)
    if summary.nothing_changes:
        yield "Nothing changes."
        yield ""
    else:
        changes = summary.changes
        yield from _section(
            "Profiles and nodes",
            [f"{UNKNOWN}: {summary.unknown}"] if changes is None else changes or ["nothing changes"],
        )
        yield from _section("Hosts", _host_lines(summary.hosts))
        yield from _section("Who is cut", _cut_lines(summary))
    yield from _section(_CAPACITY, _capacity_lines(summary))
    if summary.warnings:
        yield from _section("Warnings", summary.warnings)


def _section(title: str, body: Iterable[str]) -> Iterator[str]:
    yield title
    yield from (f"  {line}" for line in body)
    yield ""


def _host_lines(hosts: Sequence[HostSummary]) -> Iterator[str]:
    if unchanged := [host.name for host in hosts if host.state == UNCHANGED]:
        yield f"{', '.join(unchanged)}: nothing changes"
    for host in hosts:
        if host.state == UNKNOWN:
            yield f"{host.name}: {UNKNOWN}, {host.message}"
        elif host.state == REFUSED:
            yield f"{host.name}: {REFUSED}, as said above"
        elif host.state == FIRST:
            packages = f"{counted(len(host.packages), 'package')}, " if host.packages else ""
            what = f"{packages}{counted(len(host.files), 'file')}, {counted(len(host.services), 'service')}"
            yield f"{host.name}: {FIRST} as {' and '.join(host.roles)}: {what}"
        elif host.state == CHANGED:
            yield f"{host.name}:"
            yield from (f"  {line}" for line in _changed_host_lines(host))


def _changed_host_lines(host: HostSummary) -> Iterator[str]:
    if host.release:
        yield f"release {host.release}"
    if host.packages:
        yield f"packages: {' '.join(host.packages)}"
    paths = [path if change == "changed" else f"{path} ({change})" for path, change in host.files.items()]
    paths = [path for path in paths if "/causeway/current" not in path]
    for path in paths[:_MOST_FILES]:
        yield f"file {path}"
    if len(paths) > _MOST_FILES:
        yield f"and {counted(len(paths) - _MOST_FILES, 'more file')}"
    for service in host.services:
        yield f"{service.title} {_THIRD_PERSON[service.verb]}: {service.notice}"
    yield from host.tasks


def _cut_lines(summary: Summary) -> Iterator[str]:
    """Tell who has to connect again, and who is only interrupted."""
    if summary.ending is None:
        yield f"{UNKNOWN} whom the plan ends: {summary.unknown}"
    for end in summary.ending or ():
        who = Connected(end.connections, end.users)
        yield f"{end.profile} on {end.node}: {who} end and connect anew, {end.because}"
    yield from summary.who
    interrupted = [
        (host.name, service)
        for host in summary.hosts
        for service in host.services
        if effects.carries_tunnels(service.unit) and service.verb in ("restart", "stop")
        if service.connected is None or service.connected.connections
    ]
    for name, service in interrupted:
        who_uses = service.connected if service.connected else f"{UNKNOWN} who"
        yield f"{service.title} on {name} {_THIRD_PERSON[service.verb]}: {who_uses}"
    unknown = [host.name for host in summary.hosts if host.state in (UNKNOWN, REFUSED)]
    if unknown:
        yield f"{UNKNOWN} on {', '.join(unknown)}"
    elif summary.ending == () and not summary.who and not interrupted:
        yield "nobody"


def _capacity_lines(summary: Summary) -> Iterator[str]:
    shares: Sequence[Share] = summary.capacity
    if len(shares) > _MOST_ROWS:
        yield f"{counted(len(shares), 'share')} on all nodes; profile by profile:"
        shares = capacity.summed(shares)
    heads = ("profile", "node", "by", "in use", "of", "full")
    rows = [
        (
            share.profile, share.node, share.by, UNKNOWN if share.used is None else share.used, share.most,
            "" if share.percent is None else f"{share.percent} %",
        )
        for share in shares
    ]  # fmt: skip
    yield from table.lines(heads, rows)
    if summary.capacity_unknown:
        yield f"in use is {UNKNOWN}: {summary.capacity_unknown}"
