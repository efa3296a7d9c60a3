"""Cut a profile's range for nodes and OpenVPN processes (spec node.md, sections 5 and 7.1)."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from vpn_core.addresses import text_of
from vpn_core.errors import PlanError

Network: TypeAlias = IPv4Network | IPv6Network

#: Each OpenVPN process gets an IPv6 range of this length, whatever its IPv4 range is.
OPENVPN_IPV6_PREFIX = 112
#: The smallest IPv4 range that still leaves room for clients: a /29 has five WireGuard or four OpenVPN ones.
SMALLEST_IPV4_PREFIX = 29
#: OpenVPN 2.6 ends with "allows for too many host addresses" for a server network wider than this.
WIDEST_OPENVPN_PREFIX = 16


def bits_for(parts: int) -> int:
    """Return how many bits tell ``parts`` equal parts apart.

    >>> [bits_for(n) for n in (1, 2, 3, 16, 17)]
    [0, 1, 2, 4, 5]
    """
    return (parts - 1).bit_length()


def part(network: Network, index: int, prefix: int) -> Network:
    """Return part number ``index`` of length ``prefix``; raises PlanError when it is not inside ``network``.

    >>> from ipaddress import ip_network
    >>> part(ip_network("10.64.0.0/16"), 2, 22)
    IPv4Network('10.64.8.0/22')
    """
    if not network.prefixlen <= prefix <= network.max_prefixlen:
        raise PlanError(f"{network} cannot be cut into parts of /{prefix}; use a wider range")
    if not 0 <= index < 1 << (prefix - network.prefixlen):
        raise PlanError(f"{network} has no part {index} of /{prefix}; use a wider range")
    step = 1 << (network.max_prefixlen - prefix)
    return type(network)((int(network.network_address) + index * step, prefix))


def node_range(profile_range: Network, node_number: int, max_nodes: int) -> Network:
    """Return the part of a profile's range that one node hands out.

    The range is cut into ``max_nodes`` (rounded up to a power of two) equal parts; part N belongs to
    node number N, so adding a node never renumbers another.

    >>> from ipaddress import ip_network
    >>> node_range(ip_network("10.64.0.0/16"), node_number=2, max_nodes=64)
    IPv4Network('10.64.8.0/22')
    """
    return part(profile_range, node_number, profile_range.prefixlen + bits_for(max_nodes))


def gateway(network: Network) -> str:
    """Return the node's own address in a range: its first host.

    >>> from ipaddress import ip_network
    >>> gateway(ip_network("fd00::/112"))
    'fd00::1'
    """
    return str(network.network_address + 1)


def wireguard_capacity(ipv4: IPv4Network) -> int:
    """Return how many clients a range holds: all but network, gateway and broadcast address.

    >>> [wireguard_capacity(IPv4Network(f"10.0.0.0/{p}")) for p in (24, 23, 22, 20, 29)]
    [253, 509, 1021, 4093, 5]
    """
    return int(ipv4.num_addresses) - 3


def client_addresses(ipv4: IPv4Network, ipv6: IPv6Network, position: int) -> tuple[str, str]:
    """Return both addresses of client ``position`` (from 0): network + 2 + position in each family.

    >>> client_addresses(IPv4Network("10.61.60.0/24"), IPv6Network("fd43:10:61:60::/112"), 5)
    ('10.61.60.7', 'fd43:10:61:60::7')
    """
    return (
        text_of(IPv4Address, int(ipv4.network_address) + 2 + position),
        text_of(IPv6Address, int(ipv6.network_address) + 2 + position),
    )


def openvpn_max_clients(ipv4: IPv4Network) -> int:
    """Return ``max-clients`` of a process: OpenVPN keeps its own address and one more out of the pool.

    >>> [openvpn_max_clients(IPv4Network(f"10.0.0.0/{p}")) for p in (24, 25, 26, 27, 29)]
    [252, 124, 60, 28, 4]
    """
    return int(ipv4.num_addresses) - 4


def openvpn_process_ranges(
    ipv4: IPv4Network, ipv6: IPv6Network, processes: int
) -> list[tuple[IPv4Network, IPv6Network]]:
    """Cut a node's range for its OpenVPN processes, in the order of their numbers.

    IPv4 is cut into equal parts, IPv6 into consecutive /112 from the start (spec node.md 7.1). Raises
    PlanError when a part would be smaller than /29 or the IPv6 range does not hold that many /112.

    >>> parts = openvpn_process_ranges(IPv4Network("172.18.131.0/24"), IPv6Network("fd00:0:0:1::/64"), 2)
    >>> [f"{four} {six}" for four, six in parts]
    ['172.18.131.0/25 fd00:0:0:1::/112', '172.18.131.128/25 fd00::1:0:0:1:0/112']
    """
    bits = bits_for(processes)
    if processes < 1 or processes != 1 << bits or processes > 64:
        raise PlanError(f"{processes} OpenVPN processes: use 1, 2, 4, 8, 16, 32 or 64 ports")
    if ipv4.prefixlen + bits > SMALLEST_IPV4_PREFIX:
        raise PlanError(
            f"{ipv4} is too small for {processes} OpenVPN processes: each needs a /{SMALLEST_IPV4_PREFIX}"
            f" or wider; use a /{SMALLEST_IPV4_PREFIX - bits} or fewer ports"
        )
    if ipv6.prefixlen > OPENVPN_IPV6_PREFIX - bits:
        raise PlanError(
            f"{ipv6} is too small for {processes} OpenVPN processes: each takes a /{OPENVPN_IPV6_PREFIX};"
            f" use a /{OPENVPN_IPV6_PREFIX - bits} or wider"
        )
    return [
        (IPv4Network(part(ipv4, i, ipv4.prefixlen + bits)), IPv6Network(part(ipv6, i, OPENVPN_IPV6_PREFIX)))
        for i in range(processes)
    ]
