"""What a topology consists of, and what one running instance of it is called and addressed."""

import json
import re
import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from nspawn.machine import RUNTIME, LabError, give_to_caller, locked, write_atomically

PROJECT = Path(__file__).resolve().parents[3]
RELEASES = ("bookworm", "trixie")

# Rules of the lab: one private range for the bridges; documentation ranges stand in for the Internet.
LAB_IPV4 = IPv4Network("10.77.0.0/16")
LAB_IPV6 = IPv6Network("fd77::/48")
INTERNET_IPV4 = IPv4Network("198.51.100.0/24")
INTERNET_IPV6 = IPv6Network("2001:db8:77::/48")
_NUMBERS = range(1, 16)  # 198.51.100.0/24 has 16 parts of 16 addresses


@dataclass(frozen=True)
class Host:
    """One host of a topology; ``position`` is its place in the file and the last part of its addresses.

    One ``on_the_internet`` has a documentation address too, and knows no way to what is inside tunnels.
    """

    name: str
    groups: tuple[str, ...]
    position: int
    node_number: int | None
    on_the_internet: bool


@dataclass(frozen=True)
class Topology:
    """What ``molecule/<name>/lab.toml`` says."""

    name: str
    hosts: tuple[Host, ...]
    has_virtual_ip: bool
    client_ranges: tuple[str, ...]


@dataclass(frozen=True)
class Instance:
    """One running copy of a topology. ``number`` is unique on the machine and picks its networks."""

    name: str
    topology: Topology
    release: str
    number: int

    @property
    def directory(self) -> Path:
        return PROJECT / ".lab" / self.name

    @property
    def runtime(self) -> Path:
        return RUNTIME / str(self.number)

    @property
    def bridge(self) -> str:
        return f"cwlab{self.number}"

    @property
    def nft_table(self) -> str:
        return f"causeway_lab_{self.number}"

    @property
    def domain(self) -> str:
        return f"{self.name.replace('_', '-')}.example.org"

    @property
    def portal_name(self) -> str:
        return f"vpn.{self.domain}"

    @property
    def ipv4(self) -> IPv4Network:
        return IPv4Network((int(LAB_IPV4[0]) + (self.number << 8), 24))

    @property
    def ipv6(self) -> IPv6Network:
        return IPv6Network((int(LAB_IPV6[0]) + (self.number << 64), 64))

    @property
    def internet_ipv4(self) -> IPv4Network:
        return IPv4Network((int(INTERNET_IPV4[0]) + (self.number << 4), 28))

    @property
    def internet_ipv6(self) -> IPv6Network:
        return IPv6Network((int(INTERNET_IPV6[0]) + (self.number << 64), 64))

    @property
    def virtual_ipv4(self) -> IPv4Address:
        return self.ipv4[10]

    @property
    def virtual_ipv6(self) -> IPv6Address:
        return self.ipv6[0x10]

    def host_ipv4(self, host: Host) -> IPv4Address:
        return self.ipv4[10 + host.position]

    def host_ipv6(self, host: Host) -> IPv6Address:
        """The same digits as in the IPv4 address, so that a person sees the pair."""
        return self.ipv6[int(str(10 + host.position), 16)]

    def internet_addresses(self, host: Host) -> tuple[IPv4Address, IPv6Address]:
        """Where a host on the Internet is; the machine's own stand-in has the first address of each."""
        return self.internet_ipv4[1 + host.position], self.internet_ipv6[1 + host.position]

    def host_fqdn(self, host: Host) -> str:
        return f"{host.name}.{self.domain}"

    def machine_name(self, host: Host) -> str:
        return f"cw{self.number}-{host.name}"

    def bridge_port(self, host: Host) -> str:
        """The machine's end of the host's cable, as systemd-nspawn names it."""
        return f"vb-{self.machine_name(host)}"

    def in_group(self, group: str) -> list[Host]:
        return [host for host in self.topology.hosts if group in host.groups]

    @property
    def portal_addresses(self) -> tuple[IPv4Address, IPv6Address]:
        """Where the portal's name points: the virtual address, or the one portal."""
        if self.topology.has_virtual_ip:
            return self.virtual_ipv4, self.virtual_ipv6
        portal = (self.in_group("portals") or list(self.topology.hosts))[0]
        return self.host_ipv4(portal), self.host_ipv6(portal)

    def host(self, name: str) -> Host:
        for host in self.topology.hosts:
            if host.name == name:
                return host
        names = " ".join(host.name for host in self.topology.hosts)
        raise LabError(f"{self.name} has no host {name!r}; it has: {names}")


def read_topology(name: str) -> Topology:
    """Read ``molecule/<name>/lab.toml``. Raises LabError when it is missing or says something unknown."""
    path = PROJECT / "molecule" / name / "lab.toml"
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = " ".join(sorted(file.parent.name for file in path.parents[1].glob("*/lab.toml")))
        raise LabError(f"there is no topology {name!r}; known: {known}") from None
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"{path.relative_to(PROJECT)}: {error}") from None
    if unknown := content.keys() - {"virtual_ip", "client_ranges", "hosts"}:
        raise LabError(f"{path.relative_to(PROJECT)}: unknown key {min(unknown)!r}")
    hosts = tuple(
        _read_host(host_name, entry, position)
        for position, (host_name, entry) in enumerate(content["hosts"].items(), start=1)
    )
    return Topology(name, hosts, bool(content.get("virtual_ip")), tuple(content.get("client_ranges", ())))


def _read_host(name: str, entry: dict[str, object], position: int) -> Host:
    # An interface name has at most 15 characters, and three of ours come before the host's: "vb-cw15-".
    if not re.fullmatch(r"[a-z][a-z0-9]{0,6}", name):
        raise LabError(f"host name {name!r}: at most seven of a-z and 0-9, a letter first")
    if unknown := entry.keys() - {"groups", "node_number", "internet"}:
        raise LabError(f"host {name}: unknown key {min(unknown)!r}")
    groups, number = entry.get("groups", []), entry.get("node_number")
    if not isinstance(groups, list) or not (number is None or isinstance(number, int)):
        raise LabError(f"host {name}: groups is a list, node_number a number")
    return Host(name, tuple(groups), position, number, bool(entry.get("internet")))


def make_instance(name: str, topology_name: str, release: str | None) -> Instance:
    """Load an instance, or make it known to this checkout and take a free number on this machine.

    An instance keeps its number between runs unless another checkout took it meanwhile.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise LabError(f"instance name {name!r}: a-z, 0-9 and _, a letter first")
    known = _read_state(name)
    for key, wanted in (("topology", topology_name), ("release", release)):
        if wanted and known.get(key, wanted) != wanted:
            raise LabError(
                f"{name} exists with {key} {known[key]}: take it down first, or pick another --name"
            )
    topology = read_topology(topology_name)
    with locked("numbers"):
        number = _take_number(name, known.get("number"))
        instance = Instance(name, topology, str(known.get("release") or release or RELEASES[0]), number)
        instance.directory.mkdir(parents=True, exist_ok=True)
        give_to_caller(instance.directory.parent, instance.directory)
        state = {"topology": topology_name, "release": instance.release, "number": number}
        write_atomically(instance.directory / "instance.json", json.dumps(state) + "\n")
    return instance


def load_instance(name: str) -> Instance | None:
    """Return an instance of this checkout, or None when it was never brought up."""
    known = _read_state(name)
    if not known:
        return None
    topology = read_topology(str(known["topology"]))
    return Instance(name, topology, str(known["release"]), int(str(known["number"])))


def known_instances() -> list[str]:
    return sorted(file.parent.name for file in (PROJECT / ".lab").glob("*/instance.json"))


def owned_numbers(name: str) -> list[int]:
    """Numbers that an instance holds on this machine, known even after ``.lab`` was deleted."""
    return [number for number in _NUMBERS if _owner(number) == {"project": str(PROJECT), "name": name}]


def numbers_elsewhere(name: str) -> dict[int, Path]:
    """Numbers that other checkouts hold for an instance of the same name, each with its checkout."""
    owners = {number: _owner(number) for number in _NUMBERS}
    return {
        number: Path(owner["project"])
        for number, owner in owners.items()
        if owner and owner["name"] == name and owner["project"] != str(PROJECT)
    }


def _take_number(name: str, wanted: object) -> int:
    if held := owned_numbers(name):
        return held[0]
    free = [number for number in _NUMBERS if _owner(number) is None]
    if not free:
        raise LabError(f"all {len(_NUMBERS)} lab networks are taken, see {RUNTIME}/*/owner.json")
    number = wanted if isinstance(wanted, int) and wanted in free else free[0]
    (RUNTIME / str(number)).mkdir(parents=True, exist_ok=True)
    owner = {"project": str(PROJECT), "name": name}
    write_atomically(RUNTIME / str(number) / "owner.json", json.dumps(owner) + "\n")
    return number


def _owner(number: int) -> dict[str, str] | None:
    try:
        owner = json.loads((RUNTIME / str(number) / "owner.json").read_text())
    except (OSError, ValueError):
        return None
    return dict(owner)


def _read_state(name: str) -> dict[str, object]:
    try:
        return dict(json.loads((PROJECT / ".lab" / name / "instance.json").read_text()))
    except (OSError, ValueError):
        return {}
