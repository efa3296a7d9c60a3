"""What this node serves: every connection is checked against it before it reaches ``wg`` or OpenVPN (N8)."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from node_agent.settings import Settings
from vpn_core.messages import WIREGUARD, Connection


class Serving:
    """The node's ranges and profiles. ``own_key`` returns the interface's public key once it is known."""

    def __init__(self, settings: Settings, own_key: Callable[[], str | None]) -> None:
        self._networks = {
            n.profile_id: n for n in (settings.wireguard.networks if settings.wireguard else ())
        }
        self._own_addresses = {
            n.profile_id: {
                n.gateway_ipv4,
                n.gateway_ipv6,
                n.ipv4.network_address,
                n.ipv4.broadcast_address,
                n.ipv6.network_address,
            }
            for n in self._networks.values()
        }
        self._openvpn = {process.profile_id for process in settings.openvpn}
        self._own_key = own_key

    def refusal(self, connection: Connection) -> str:
        """Return why this node cannot serve a connection, "" if it can."""
        profile_id = connection.profile_id
        if connection.protocol != WIREGUARD:
            return "" if profile_id in self._openvpn else f"profile {profile_id} has no OpenVPN here"
        network = self._networks.get(profile_id)
        if network is None:
            return f"profile {profile_id} has no WireGuard here"
        ipv4, ipv6 = IPv4Address(connection.ipv4 or ""), IPv6Address(connection.ipv6 or "")
        if ipv4 not in network.ipv4 or ipv6 not in network.ipv6:
            return f"{ipv4} or {ipv6} is outside of {network.ipv4} and {network.ipv6}"
        if not self._own_addresses[profile_id].isdisjoint((ipv4, ipv6)):
            return f"{ipv4} or {ipv6} is the node's own address"
        if connection.public_key == self._own_key():
            return "the public key is the node's own"
        return ""
