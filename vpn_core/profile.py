"""Parse and check one entry of ``vpn_profiles``."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from vpn_core import fields
from vpn_core.errors import PlanError
from vpn_core.ranges import Network, bits_for

#: A profile's id is a file name, part of a unit's name and a certificate's OU (RFC 5280: 64 at most).
PROFILE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,59}")

#: Stand for the gateway of the client's own range, which the node answers itself (spec api-v3.md 7.6).
GATEWAY_DNS = ("@GW4@", "@GW6@")


@dataclass(frozen=True)
class WireGuardRange:
    ipv4: IPv4Network
    ipv6: IPv6Network
    keepalive: bool


@dataclass(frozen=True)
class OpenVpnRange:
    """Ports are what the node listens on; the exposed ones, if any, are what clients are told instead."""

    ipv4: IPv4Network
    ipv6: IPv6Network
    udp_ports: tuple[int, ...]
    tcp_ports: tuple[int, ...]
    exposed_udp_ports: tuple[int, ...]
    exposed_tcp_ports: tuple[int, ...]
    block_lan: bool

    @property
    def processes(self) -> list[tuple[str, int]]:
        """Protocol and port of each process in the order of their numbers: UDP first."""
        return [("udp", p) for p in self.udp_ports] + [("tcp", p) for p in self.tcp_ports]


@dataclass(frozen=True)
class Profile:
    """What a user chooses.

    ``permissions``: None lets everyone in, an empty tuple nobody, else one of them is needed. ``nodes``:
    the inventory names of those that serve it, None for all.
    """

    profile_id: str
    display_name: str
    priority: int
    hidden: bool
    permissions: tuple[str, ...] | None
    default_gateway: bool
    routes: tuple[Network, ...]
    excluded_routes: tuple[Network, ...]
    dns_servers: tuple[str, ...]
    dns_search_domains: tuple[str, ...]
    preferred_protocol: str
    wireguard: WireGuardRange | None
    openvpn: OpenVpnRange | None
    nodes: tuple[str, ...] | None

    @classmethod
    def parse(cls, profile_id: str, entry: Mapping[str, Any]) -> "Profile":
        """Return one checked profile; raises PlanError naming variable, value and fix."""
        where = f"vpn_profiles.{profile_id}"
        # YAML reads 010 as 8 and no as false: only a key that is a text is sure to be what was meant.
        profile_id = fields.typed("a key of vpn_profiles", profile_id, str)
        if not PROFILE_ID.fullmatch(profile_id):
            raise PlanError(
                f"vpn_profiles: {profile_id!r:.80} is no profile id; use 1 to 60 letters, digits,"
                " '.' and '-', a letter or digit first"
            )
        entry = fields.mapping(where, entry)
        fields.refuse_unknown_keys(where, entry, [k for k in cls.__dataclass_fields__ if k != "profile_id"])
        if "display_name" not in entry:
            raise PlanError(f"{where}: 'display_name' is missing; it is what users see, such as Employees")
        # What a plan holds is checked like an inventory, and there an absent block is null.
        block, permissions, nodes = (entry.get(key) for key in ("wireguard", "permissions", "nodes"))
        wireguard = None if block is None else _wireguard(f"{where}.wireguard", block)
        block = entry.get("openvpn")
        openvpn = None if block is None else _openvpn(f"{where}.openvpn", block)
        profile = cls(
            profile_id=profile_id,
            display_name=fields.text(f"{where}.display_name", entry["display_name"], longest=64),
            priority=fields.number(f"{where}.priority", entry.get("priority", 0), -1_000_000, 1_000_000),
            hidden=fields.typed(f"{where}.hidden", entry.get("hidden", False), bool),
            permissions=None
            if permissions is None
            else tuple(fields.texts(f"{where}.permissions", permissions)),
            default_gateway=fields.typed(
                f"{where}.default_gateway", entry.get("default_gateway", True), bool
            ),
            routes=_networks(f"{where}.routes", entry.get("routes", [])),
            excluded_routes=_networks(f"{where}.excluded_routes", entry.get("excluded_routes", [])),
            dns_servers=_dns_servers(f"{where}.dns_servers", entry.get("dns_servers", [])),
            dns_search_domains=tuple(
                fields.domain(f"{where}.dns_search_domains", d)
                for d in fields.texts(f"{where}.dns_search_domains", entry.get("dns_search_domains", []))
            ),
            preferred_protocol=_preferred(where, entry.get("preferred_protocol"), wireguard, openvpn),
            wireguard=wireguard,
            openvpn=openvpn,
            nodes=None if nodes is None else tuple(fields.texts(f"{where}.nodes", nodes)),
        )
        _check_routes(where, profile)
        return profile

    @property
    def ranges(self) -> list[tuple[str, Network]]:
        """Every range of this profile with the variable that holds it."""
        found: list[tuple[str, Network]] = []
        for protocol, block in (("wireguard", self.wireguard), ("openvpn", self.openvpn)):
            if block is not None:
                found += [
                    (f"vpn_profiles.{self.profile_id}.{protocol}.ipv{n.version}", n)
                    for n in (block.ipv4, block.ipv6)
                ]
        return found


def _networks(where: str, value: Any) -> tuple[Network, ...]:
    return tuple(fields.network(f"{where}[{i}]", item) for i, item in enumerate(fields.items(where, value)))


def _range_pair(where: str, entry: Mapping[str, Any]) -> tuple[IPv4Network, IPv6Network]:
    for family in ("ipv4", "ipv6"):
        if family not in entry:
            example = "10.64.0.0/16" if family == "ipv4" else "fd00:64::/96"
            raise PlanError(f"{where}: '{family}' is missing; tunnels carry both, write {family}: {example}")
    return (
        IPv4Network(fields.client_range(f"{where}.ipv4", entry["ipv4"], 4)),
        IPv6Network(fields.client_range(f"{where}.ipv6", entry["ipv6"], 6)),
    )


def _wireguard(where: str, entry: Any) -> WireGuardRange:
    entry = fields.mapping(where, entry)
    fields.refuse_unknown_keys(where, entry, WireGuardRange.__dataclass_fields__)
    ipv4, ipv6 = _range_pair(where, entry)
    if ipv6.max_prefixlen - ipv6.prefixlen < ipv4.max_prefixlen - ipv4.prefixlen:
        raise PlanError(
            f"{where}.ipv6: {ipv6} holds fewer addresses than {ipv4}; use a /{96 + ipv4.prefixlen} or wider"
        )
    return WireGuardRange(ipv4, ipv6, fields.typed(f"{where}.keepalive", entry.get("keepalive", False), bool))


def _ports(where: str, value: Any) -> tuple[int, ...]:
    found = tuple(
        fields.number(f"{where}[{i}]", p, 1, 65535) for i, p in enumerate(fields.items(where, value))
    )
    if len(set(found)) != len(found):
        raise PlanError(f"{where}: {list(found)} names a port twice; each process needs its own")
    return found


def _openvpn(where: str, entry: Any) -> OpenVpnRange:
    entry = fields.mapping(where, entry)
    fields.refuse_unknown_keys(where, entry, OpenVpnRange.__dataclass_fields__)
    ipv4, ipv6 = _range_pair(where, entry)
    udp, tcp, exposed_udp, exposed_tcp = (
        _ports(f"{where}.{key}", entry.get(key, default))
        for key, default in (
            ("udp_ports", [1194]),
            ("tcp_ports", [1194]),
            ("exposed_udp_ports", []),
            ("exposed_tcp_ports", []),
        )
    )
    processes = len(udp) + len(tcp)
    if processes < 1 or processes > 64 or processes != 1 << bits_for(processes):
        raise PlanError(
            f"{where}: {len(udp)} udp_ports and {len(tcp)} tcp_ports make {processes} processes;"
            " add or remove ports until they are 1, 2, 4, 8, 16, 32 or 64"
        )
    for kind, ports, exposed in (("udp", udp, exposed_udp), ("tcp", tcp, exposed_tcp)):
        if exposed and not ports:
            raise PlanError(
                f"{where}.exposed_{kind}_ports: {list(exposed)} without {kind}_ports;"
                " name the ports that the node listens on"
            )
    block_lan = fields.typed(f"{where}.block_lan", entry.get("block_lan", False), bool)
    return OpenVpnRange(ipv4, ipv6, udp, tcp, exposed_udp, exposed_tcp, block_lan)


def _dns_servers(where: str, value: Any) -> tuple[str, ...]:
    found = [
        server if server in GATEWAY_DNS else str(fields.address(f"{where}[{i}]", server))
        for i, server in enumerate(fields.texts(where, value))
    ]
    if len(set(found)) != len(found):
        raise PlanError(f"{where}: {found} names a server twice; remove one")
    return tuple(found)


def _preferred(where: str, value: Any, wireguard: WireGuardRange | None, openvpn: OpenVpnRange | None) -> str:
    has = [name for name, block in (("wireguard", wireguard), ("openvpn", openvpn)) if block is not None]
    if not has:
        raise PlanError(f"{where}: no protocol; add 'wireguard' or 'openvpn' with an ipv4 and an ipv6 range")
    if value is None:
        return has[0]
    if value not in has:
        raise PlanError(
            f"{where}.preferred_protocol: {value!r:.80} is not offered here; use {' or '.join(has)}"
        )
    return str(value)


def _check_routes(where: str, profile: Profile) -> None:
    if profile.default_gateway:
        if profile.routes:
            raise PlanError(
                f"{where}.routes: {profile.routes[0]} has no effect with default_gateway: true;"
                " set that to false or remove the routes"
            )
        return
    if not profile.routes:
        raise PlanError(
            f"{where}.routes: [] with default_gateway: false leads nowhere; name what it leads to"
        )
    for route in profile.routes:
        if route.prefixlen == 0:
            raise PlanError(f"{where}.routes: {route} is everything; set default_gateway: true instead")
    if profile.dns_servers and not profile.dns_search_domains:
        raise PlanError(
            f"{where}.dns_servers: {profile.dns_servers[0]} is not used by a split tunnel without"
            " dns_search_domains; name the domains or remove the servers"
        )
    for server in profile.dns_servers:
        if server in GATEWAY_DNS:
            continue
        if not contains(profile.routes, server):
            raise PlanError(
                f"{where}.dns_servers: {server} lies outside of this split tunnel's routes;"
                f" add {ip_network(server)} to routes"
            )
        if contains(profile.excluded_routes, server):
            raise PlanError(
                f"{where}.dns_servers: {server} lies in excluded_routes, so no question reaches it;"
                " exclude less or use another server"
            )


def contains(networks: Iterable[Network], address: str) -> bool:
    """Tell whether ``address`` lies in one of ``networks``.

    >>> contains([IPv4Network("10.0.0.0/25"), IPv4Network("10.0.0.128/25")], "10.0.0.130")
    True
    """
    found = ip_address(address)
    # A network contains no address of the other family; the types do not say so.
    return any(found in network for network in networks if network.version == found.version)
