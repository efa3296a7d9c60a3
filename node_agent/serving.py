"""What this node serves: every connection is checked against it before it reaches ``wg`` or OpenVPN (N8)."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from node_agent.settings import Settings
from vpn_core.messages import WIREGUARD, Connection


@dataclass(frozen=True)
class _Range:
    """One network as numbers: a full set has ten thousand addresses, and others wait while it is checked."""

    network: IPv4Network | IPv6Network
    first: int
    last: int
    gateway: int

    def refusal(self, address: str) -> str:
        number = _number(address)
        if not self.first <= number <= self.last:
            return f"{address} is outside of {self.network}"
        if number in (self.first, self.last, self.gateway):
            return f"{address} is the node's own address"
        return ""


def _number(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, address))


def _range(network: IPv4Network | IPv6Network, gateway: IPv4Address | IPv6Address) -> _Range:
    return _Range(network, int(network.network_address), int(network.broadcast_address), int(gateway))


class Serving:
    """The node's ranges and profiles. ``own_key`` returns the interface's public key once it is known."""

    def __init__(self, settings: Settings, own_key: Callable[[], str | None]) -> None:
        networks = settings.wireguard.networks if settings.wireguard else ()
        self._ranges = {
            n.profile_id: (_range(n.ipv4, n.gateway_ipv4), _range(n.ipv6, n.gateway_ipv6)) for n in networks
        }
        self._openvpn = {process.profile_id for process in settings.openvpn}
        self._own_key = own_key

    def refusal(self, connection: Connection) -> str:
        """Return why this node cannot serve a connection, "" if it can."""
        profile_id = connection.profile_id
        if connection.protocol != WIREGUARD:
            return "" if profile_id in self._openvpn else f"profile {profile_id} has no OpenVPN here"
        ranges = self._ranges.get(profile_id)
        if ranges is None:
            return f"profile {profile_id} has no WireGuard here"
        for own, address in zip(ranges, (connection.ipv4, connection.ipv6), strict=True):
            if reason := own.refusal(str(address)):
                return reason
        if connection.public_key == self._own_key():
            return "the public key is the node's own"
        return ""
