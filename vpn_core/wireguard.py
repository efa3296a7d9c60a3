"""What both ends of a WireGuard tunnel must agree on, and the syntax of keys."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from vpn_core.ranges import Network

INTERFACE = "wg0"
#: Leaves room for IPv6, UDP and the WireGuard header on a path of 1472 bytes (spec api-v3.md 7.6).
MTU = 1392
KEEPALIVE_SECONDS = 25

#: Standard base64 of 32 bytes (spec api-v3.md 7.1).
PUBLIC_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw480]=")


def is_public_key(value: object) -> bool:
    """Tell whether ``value`` is the base64 of 32 bytes in its one canonical spelling."""
    return isinstance(value, str) and PUBLIC_KEY.fullmatch(value) is not None


def allowed_ips(
    *,
    default_gateway: bool,
    routes: Iterable[Network],
    excluded_routes: Iterable[Network],
    own_networks: Iterable[Network],
) -> list[Network]:
    """Return a client's AllowedIPs: IPv4 before IPv6, by address (spec api-v3.md 7.6).

    What is excluded is cut out of what holds it. The client's own networks are always there, also when an
    exclusion covers them: the gateway must stay reachable.

    >>> from ipaddress import ip_network
    >>> own = [ip_network("10.61.60.0/24"), ip_network("fd43:10:61:60::/112")]
    >>> not_these = [ip_network("128.0.0.0/2")]
    >>> found = allowed_ips(default_gateway=True, routes=[], excluded_routes=not_these, own_networks=own)
    >>> ",".join(map(str, found))
    '0.0.0.0/1,192.0.0.0/2,::/0'
    """
    own_networks = list(own_networks)
    found: list[Network] = []
    for network in [*(_EVERYTHING if default_gateway else ()), *routes, *own_networks]:
        found = _with(found, network)
    for excluded in excluded_routes:
        found = [part for network in found for part in _without(network, excluded)]
    for network in own_networks:
        found = _with(found, network)
    return sorted(found, key=lambda n: (n.version, int(n.network_address), n.prefixlen))


_EVERYTHING: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # same family


def _with(networks: list[Network], network: Network) -> list[Network]:
    if any(_inside(network, known) for known in networks):
        return networks
    return [known for known in networks if not _inside(known, network)] + [network]


def _without(network: Network, excluded: Network) -> list[Network]:
    if _inside(network, excluded):
        return []
    if not _inside(excluded, network):
        return [network]
    return list(network.address_exclude(excluded))  # type: ignore[arg-type]  # same family
