"""Cross-check and resolve the whole inventory into one plan: ranges, gateways and ports of every node.

The plan is made once, by the filter plugin; Ansible renders server configurations from it and
``vpn-portal plan apply`` puts the portal's share into the database. An operator computes no prefix by hand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import Any

from vpn_core import fields, openvpn, wireguard
from vpn_core.errors import PlanError
from vpn_core.node import MOST_NODES, Node, agent_name
from vpn_core.profile import GATEWAY_DNS, OpenVpnRange, Profile, contains
from vpn_core.ranges import (
    OPENVPN_IPV6_PREFIX,
    SMALLEST_IPV4_PREFIX,
    WIDEST_OPENVPN_PREFIX,
    bits_for,
    gateway,
    node_range,
    openvpn_max_clients,
    openvpn_process_ranges,
    wireguard_capacity,
)

DEFAULT_MAX_NODES = 16
AGENT_PORT = 41194


@dataclass(frozen=True)
class Settings:
    """What the whole deployment shares: ``vpn_max_nodes``, ``vpn_wireguard_port``.

    The plan is made as if ``leaving_node`` were not in the inventory; "" is none.
    """

    max_nodes: int = DEFAULT_MAX_NODES
    wireguard_port: int = 51820
    leaving_node: str = ""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "Settings":
        entry = fields.mapping("settings of vpn_plan", entry)
        fields.refuse_unknown_keys("settings of vpn_plan", entry, cls.__dataclass_fields__)
        return cls(
            max_nodes=fields.number("vpn_max_nodes", entry.get("max_nodes", cls.max_nodes), 1, MOST_NODES),
            wireguard_port=fields.number(
                "vpn_wireguard_port", entry.get("wireguard_port", cls.wireguard_port), 1, 65535
            ),
            leaving_node=fields.typed("leaving_node", entry.get("leaving_node", ""), str),
        )


@dataclass(frozen=True)
class WireGuardShare:
    """A profile's WireGuard part on one node; ``capacity`` is in clients."""

    profile_id: str
    ipv4: str
    ipv6: str
    gateway_ipv4: str
    gateway_ipv6: str
    capacity: int


@dataclass(frozen=True)
class OpenVpnProcess:
    """One OpenVPN server process: ``openvpn-server@<name>`` on device ``device``."""

    name: str
    profile_id: str
    number: int
    device: str
    protocol: str
    port: int
    ipv4: str
    ipv4_address: str
    ipv4_netmask: str
    ipv6: str
    gateway_ipv4: str
    gateway_ipv6: str
    max_clients: int
    pushes: tuple[str, ...]


@dataclass(frozen=True)
class NodePlan:
    """Everything one node serves."""

    name: str
    number: int
    hostname: str
    agent_address: str
    agent_name: str
    wireguard: tuple[WireGuardShare, ...]
    openvpn: tuple[OpenVpnProcess, ...]


@dataclass(frozen=True)
class Plan:
    """The resolved inventory."""

    settings: Settings
    profiles: tuple[Profile, ...]
    nodes: tuple[NodePlan, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types, as ARCHITECTURE.md lists them under "The plan"."""
        return {
            "version": 1,
            "max_nodes": self.settings.max_nodes,
            "agent_port": AGENT_PORT,
            "wireguard": {
                "interface": wireguard.INTERFACE,
                "port": self.settings.wireguard_port,
                "mtu": wireguard.MTU,
                "keepalive_seconds": wireguard.KEEPALIVE_SECONDS,
            },
            "openvpn": {
                "tls_version_min": openvpn.TLS_VERSION_MIN,
                "data_ciphers": openvpn.DATA_CIPHERS,
                "tun_mtu": openvpn.TUN_MTU,
                "renegotiate_seconds": openvpn.RENEGOTIATE_SECONDS,
                "keepalive": list(openvpn.KEEPALIVE),
            },
            "profiles": {p.profile_id: _profile_dict(p, self.nodes) for p in self.profiles},
            "nodes": {n.name: _plain(asdict(n)) for n in self.nodes},
            "warnings": list(self.warnings),
        }


def make_plan(
    profiles: Mapping[str, Any], nodes: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> Plan:
    """Return the plan of ``vpn_profiles`` and every host's ``vpn_node``, keyed by inventory name.

    Raises PlanError for the first thing that cannot run; it names the variable, the value and the fix.
    """
    parsed_settings = Settings.parse({} if settings is None else settings)
    if not fields.mapping("vpn_profiles", profiles):
        raise PlanError("vpn_profiles: no profile; name at least one, docs/install.md has an example")
    if not fields.mapping("vpn_nodes", nodes):
        example = "{number: 1, hostname: node1.example.org}"
        raise PlanError(f"group 'nodes' is empty; put a host into it, with vpn_node: {example}")
    parsed_nodes = sorted(
        (Node.parse(name, entry, max_nodes=parsed_settings.max_nodes) for name, entry in nodes.items()),
        key=lambda n: n.number,
    )
    parsed_profiles = [Profile.parse(profile_id, entry) for profile_id, entry in profiles.items()]
    _check_names(parsed_profiles, parsed_nodes)
    if parsed_settings.leaving_node:
        parsed_nodes = [node for node in parsed_nodes if node.name != parsed_settings.leaving_node]
        parsed_profiles = list(_without_node(parsed_profiles, parsed_nodes, parsed_settings.leaving_node))
    _check_sizes(parsed_profiles, parsed_settings)
    _check_overlap(parsed_profiles, parsed_nodes)
    plan = Plan(
        settings=parsed_settings,
        profiles=tuple(parsed_profiles),
        nodes=tuple(_node_plan(node, parsed_profiles, parsed_settings) for node in parsed_nodes),
        warnings=tuple(_warnings(parsed_profiles)),
    )
    for node, node_plan in zip(parsed_nodes, plan.nodes, strict=True):
        served = [profile for profile in parsed_profiles if _serves(profile, node.name)]
        _check_ports(node, served, node_plan, parsed_settings)
        _check_exposed_ports(node, served)
    return plan


def _check_names(profiles: list[Profile], nodes: list[Node]) -> None:
    for key in ("number", "hostname", "agent_address"):
        seen: dict[Any, str] = {}
        for node in nodes:
            value = getattr(node, key)
            if value in seen:
                raise PlanError(
                    f"vpn_node.{key}: {value} is that of {seen[value]} and of {node.name}; give each its own"
                )
            seen[value] = node.name
    known = {node.name for node in nodes}
    for profile in profiles:
        where = f"vpn_profiles.{profile.profile_id}.nodes"
        for name in profile.nodes or ():
            if name not in known:
                hosts = ", ".join(sorted(known))
                raise PlanError(f"{where}: unknown node {name!r}; hosts in group 'nodes' are {hosts}")
        if profile.nodes == ():
            raise PlanError(f"{where}: [] is no node; leave the key out for all, or write hidden: true")


def _without_node(profiles: list[Profile], left: list[Node], leaving: str) -> Iterator[Profile]:
    """Yield the profiles as they are when a node has left; raise PlanError where nobody would serve one."""
    if not left:
        raise PlanError(f"{leaving} is the only node; add another one first")
    for profile in profiles:
        if profile.nodes is None:
            yield profile
            continue
        nodes = tuple(name for name in profile.nodes if name != leaving)
        if not nodes:
            raise PlanError(
                f"vpn_profiles.{profile.profile_id}.nodes: {leaving} is the only one that serves it;"
                " name another node there, or take the profile out"
            )
        yield replace(profile, nodes=nodes)


def _check_sizes(profiles: list[Profile], settings: Settings) -> None:
    """Check each range at its largest cut, so that a later node cannot fail where an earlier one did not."""
    node_bits = bits_for(settings.max_nodes)
    cut = f"vpn_max_nodes={settings.max_nodes}"
    for profile in profiles:
        where = f"vpn_profiles.{profile.profile_id}"
        if profile.wireguard is not None:
            narrowest = SMALLEST_IPV4_PREFIX - node_bits
            if profile.wireguard.ipv4.prefixlen > narrowest:
                raise PlanError(
                    f"{where}.wireguard.ipv4: {profile.wireguard.ipv4} is too small for {cut};"
                    f" use a /{narrowest} or wider, or lower vpn_max_nodes before the first deployment"
                )
        if profile.openvpn is not None:
            processes = len(profile.openvpn.processes)
            bits = node_bits + bits_for(processes)
            each = f"{cut} with {processes} ports each"
            for network, longest in (
                (profile.openvpn.ipv4, SMALLEST_IPV4_PREFIX),
                (profile.openvpn.ipv6, OPENVPN_IPV6_PREFIX),
            ):
                if network.prefixlen > longest - bits:
                    raise PlanError(
                        f"{where}.openvpn.ipv{network.version}: {network} is too small for {each};"
                        f" use a /{longest - bits} or wider, or fewer ports"
                    )
            if profile.openvpn.ipv4.prefixlen + bits < WIDEST_OPENVPN_PREFIX:
                largest = WIDEST_OPENVPN_PREFIX - bits
                raise PlanError(
                    f"{where}.openvpn.ipv4: {profile.openvpn.ipv4} is too large for {each}: a process takes"
                    f" a /{WIDEST_OPENVPN_PREFIX} at most; use a /{largest} or more ports"
                )


def _check_overlap(profiles: list[Profile], nodes: list[Node]) -> None:
    ranges = [item for profile in profiles for item in profile.ranges]
    # Networks are nested or apart, so whatever lies inside a wide one follows it at once in this order.
    ordered = sorted(ranges, key=lambda r: (r[1].version, int(r[1].network_address), r[1].prefixlen))
    for (where, network), (other_where, other) in pairwise(ordered):
        if network.version == other.version and network.overlaps(other):
            raise PlanError(
                f"{other_where}: {other} overlaps {where} ({network});"
                " give each profile and protocol its own range"
            )
    for node in nodes:
        for key, address in _literal_addresses(node):
            for where, network in ranges:
                if contains([network], address):
                    raise PlanError(
                        f"vpn_node.{key} of {node.name}: {address} lies in {where} ({network});"
                        " clients get these addresses, move the range"
                    )


def _literal_addresses(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the variables of a node that hold an address and no name."""
    for key in ("hostname", "agent_address"):
        value = getattr(node, key)
        try:
            yield key, str(ip_address(value))
        except ValueError:
            continue


def _check_ports(node: Node, profiles: list[Profile], plan: NodePlan, settings: Settings) -> None:
    taken: dict[tuple[str, int], str] = {("tcp", 22): "SSH", ("tcp", AGENT_PORT): "the node agent"}
    if node.is_portal:
        taken |= {("tcp", 80): "the portal", ("tcp", 443): "the portal"}
    if any(server in GATEWAY_DNS for profile in profiles for server in profile.dns_servers):
        taken |= {("udp", 53): "DNS on the gateway", ("tcp", 53): "DNS on the gateway"}
    wanted = [("WireGuard (vpn_wireguard_port)", "udp", settings.wireguard_port)] if plan.wireguard else []
    for process in plan.openvpn:
        where = f"vpn_profiles.{process.profile_id}.openvpn.{process.protocol}_ports"
        wanted.append((where, process.protocol, process.port))
    for where, protocol, port in wanted:
        holder = taken.setdefault((protocol, port), where)
        if holder != where:
            raise PlanError(f"{where}: {port} on {node.name} is taken by {holder}; use another port")


def _check_exposed_ports(node: Node, profiles: list[Profile]) -> None:
    """Check that no port that clients are told leads to two profiles of one node."""
    taken: dict[tuple[str, int], str] = {}
    for profile in profiles:
        if profile.openvpn is None:
            continue
        for kind, ports, exposed in (
            ("udp", profile.openvpn.udp_ports, profile.openvpn.exposed_udp_ports),
            ("tcp", profile.openvpn.tcp_ports, profile.openvpn.exposed_tcp_ports),
        ):
            key = f"exposed_{kind}_ports" if exposed else f"{kind}_ports"
            where = f"vpn_profiles.{profile.profile_id}.openvpn.{key}"
            for port in exposed or ports:
                holder = taken.setdefault((kind, port), where)
                if holder != where:
                    raise PlanError(f"{where}: {port} of {node.name} leads to {holder} too; use another port")


def _warnings(profiles: list[Profile]) -> Iterator[str]:
    for profile in profiles:
        where = f"vpn_profiles.{profile.profile_id}"
        if profile.default_gateway and not profile.dns_servers:
            yield f"{where}: default_gateway without dns_servers; clients keep asking their own resolver"
        for server in profile.dns_servers:
            if server not in GATEWAY_DNS and contains(profile.excluded_routes, server):
                yield f"{where}: DNS server {server} lies in excluded_routes; clients ask it past the tunnel"


def _serves(profile: Profile, node_name: str) -> bool:
    return profile.nodes is None or node_name in profile.nodes


def _node_plan(node: Node, profiles: list[Profile], settings: Settings) -> NodePlan:
    shares: list[WireGuardShare] = []
    processes: list[OpenVpnProcess] = []
    for profile in profiles:
        if not _serves(profile, node.name):
            continue
        if profile.wireguard is not None:
            ipv4 = IPv4Network(node_range(profile.wireguard.ipv4, node.number, settings.max_nodes))
            ipv6 = IPv6Network(node_range(profile.wireguard.ipv6, node.number, settings.max_nodes))
            shares.append(
                WireGuardShare(
                    profile.profile_id,
                    str(ipv4),
                    str(ipv6),
                    gateway(ipv4),
                    gateway(ipv6),
                    wireguard_capacity(ipv4),
                )
            )
        if profile.openvpn is not None:
            processes += _processes(node, profile, profile.openvpn, settings, first_device=len(processes))
    return NodePlan(
        name=node.name,
        number=node.number,
        hostname=node.hostname,
        agent_address=node.agent_address,
        agent_name=agent_name(node.number),
        wireguard=tuple(shares),
        openvpn=tuple(processes),
    )


def _processes(
    node: Node, profile: Profile, block: OpenVpnRange, settings: Settings, *, first_device: int
) -> Iterator[OpenVpnProcess]:
    ranges = openvpn_process_ranges(
        IPv4Network(node_range(block.ipv4, node.number, settings.max_nodes)),
        IPv6Network(node_range(block.ipv6, node.number, settings.max_nodes)),
        len(block.processes),
    )
    for number, ((protocol, port), (ipv4, ipv6)) in enumerate(zip(block.processes, ranges, strict=True)):
        yield OpenVpnProcess(
            name=f"{profile.profile_id}-{number}",
            profile_id=profile.profile_id,
            number=number,
            device=f"tun{first_device + number}",
            protocol=protocol,
            port=port,
            ipv4=str(ipv4),
            ipv4_address=str(ipv4.network_address),
            ipv4_netmask=str(ipv4.netmask),
            ipv6=str(ipv6),
            gateway_ipv4=gateway(ipv4),
            gateway_ipv6=gateway(ipv6),
            max_clients=openvpn_max_clients(ipv4),
            pushes=tuple(_pushes(node, profile, protocol, gateway(ipv4), gateway(ipv6))),
        )


def _pushes(
    node: Node, profile: Profile, protocol: str, gateway_ipv4: str, gateway_ipv6: str
) -> Iterator[str]:
    """Yield what a process pushes to its clients, in the order of spec node.md 7.2."""
    if profile.default_gateway:
        block_lan = profile.openvpn is not None and profile.openvpn.block_lan
        yield "redirect-gateway def1 ipv6" + (" block-local" if block_lan else "")
        yield "route 0.0.0.0 0.0.0.0"
    yield from (_route(route) for route in profile.routes)
    yield from (_route(route, past_tunnel=True) for route in profile.excluded_routes)
    # A split tunnel whose routes hold the node itself would carry its own packets.
    for address in dict.fromkeys(address for _, address in _literal_addresses(node)):
        if contains(profile.routes, address) and not contains(profile.excluded_routes, address):
            yield _route(ip_network(address), past_tunnel=True)
    if profile.default_gateway or profile.dns_search_domains:
        gateways = dict(zip(GATEWAY_DNS, (gateway_ipv4, gateway_ipv6), strict=True))
        for server in profile.dns_servers:
            yield f"dhcp-option DNS {gateways.get(server, server)}"
    if profile.default_gateway and profile.dns_servers:
        yield "block-outside-dns"
    for domain in profile.dns_search_domains:
        yield f"dhcp-option DOMAIN-SEARCH {domain}"
    if protocol == "udp":
        yield "explicit-exit-notify 1"


def _route(network: IPv4Network | IPv6Network, *, past_tunnel: bool = False) -> str:
    """Return a pushed route into the tunnel, or past it."""
    if isinstance(network, IPv4Network):
        return f"route {network.network_address} {network.netmask}" + (" net_gateway" if past_tunnel else "")
    return f"route-ipv6 {network}" + (" net_gateway_ipv6" if past_tunnel else "")


def _profile_dict(profile: Profile, nodes: tuple[NodePlan, ...]) -> dict[str, Any]:
    fields_of_profile: dict[str, Any] = _plain(asdict(profile))
    return fields_of_profile | {"nodes": [n.name for n in nodes if _serves(profile, n.name)]}


def _plain(value: Any) -> Any:
    """Return ``value`` with networks as text and tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, IPv4Network | IPv6Network) else value
