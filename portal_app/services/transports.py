"""Which protocol and transport a connect gets (spec api-v3.md 7.4): pure arithmetic on short lists."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from portal_app.models import Profile
from vpn_core.messages import OPENVPN, WIREGUARD

OPENVPN_UDP, OPENVPN_TCP = "openvpn+udp", "openvpn+tcp"
WIREGUARD_UDP, WIREGUARD_TCP = "wireguard+udp", "wireguard+tcp"

OPENVPN_TYPE = "application/x-openvpn-profile"
WIREGUARD_TYPE = "application/x-wireguard-profile"
WIREGUARD_TCP_TYPE = "application/x-wireguard+tcp-profile"

_ACCEPTED = {
    OPENVPN_TYPE: (OPENVPN_UDP, OPENVPN_TCP),
    WIREGUARD_TYPE: (WIREGUARD_UDP,),
    WIREGUARD_TCP_TYPE: (WIREGUARD_TCP,),
}
_WITHOUT_ACCEPT = frozenset({OPENVPN_UDP, OPENVPN_TCP, WIREGUARD_UDP})


@dataclass(frozen=True)
class Attempt:
    """One protocol to find a node for; ``tcp_first`` puts the TCP remotes of OpenVPN first. ``reason`` is why
    it comes first, "" of those that come after it.
    """

    protocol: str
    tcp_first: bool
    reason: str = ""


def accepted(header: str) -> frozenset[str]:
    """Return what an app can do by its ``Accept`` header lines joined with commas; no q values, exact
    comparison.
    """
    types = {item.strip() for item in header.split(",")}
    known = frozenset(t for name, transports in _ACCEPTED.items() if name in types for t in transports)
    return known or _WITHOUT_ACCEPT


def supported(profile: Profile) -> list[str]:
    """Return what a profile offers, in the order of ``/info``. WireGuard over TCP is not offered yet."""
    found = []
    if profile.openvpn is not None:
        if profile.openvpn["udp_ports"] or profile.openvpn["exposed_udp_ports"]:
            found.append(OPENVPN_UDP)
        if profile.openvpn["tcp_ports"] or profile.openvpn["exposed_tcp_ports"]:
            found.append(OPENVPN_TCP)
    if profile.wireguard is not None:
        found.append(WIREGUARD_UDP)
    return found


def in_order(
    offers: Collection[str],
    accepts: Collection[str],
    *,
    has_key: bool,
    preferred: str,
    prefer_tcp: bool,
) -> list[str]:
    """Return what to try from left to right; an empty list means that there is nothing in common."""
    wireguard, openvpn = [WIREGUARD_UDP, WIREGUARD_TCP], [OPENVPN_UDP, OPENVPN_TCP]
    order = openvpn + wireguard if preferred == OPENVPN else wireguard + openvpn
    common = [t for t in order if t in offers and t in accepts and (has_key or t not in wireguard)]
    if prefer_tcp:
        common.sort(key=lambda t: not t.endswith("+tcp"))
    return common


def attempts(order: Sequence[str], *, prefer_tcp: bool = False) -> list[Attempt]:
    """Return each protocol once: the first entry of OpenVPN decides whose remotes come first.

    >>> [(a.protocol, a.reason) for a in attempts(["wireguard+udp", "openvpn+udp"])]
    [('wireguard', 'preferred by the profile'), ('openvpn', '')]
    """
    found: dict[str, Attempt] = {}
    for transport in order:
        protocol = OPENVPN if transport in (OPENVPN_UDP, OPENVPN_TCP) else WIREGUARD
        found.setdefault(protocol, Attempt(protocol, tcp_first=transport.endswith("+tcp")))
    if not found:
        return []
    first, *others = found.values()
    if prefer_tcp and first.tcp_first:
        reason = "TCP was asked for"
    elif others:
        reason = "preferred by the profile"
    else:
        reason = "the only one that app and profile have in common"
    return [replace(first, reason=reason), *others]


def nothing_in_common(offers: Collection[str], accepts: Collection[str], *, has_key: bool) -> str:
    """Say why ``in_order`` returned nothing.

    >>> nothing_in_common(["wireguard+udp"], ["wireguard+udp"], has_key=False)
    'the profile offers wireguard+udp; the app takes wireguard+udp and sent no WireGuard key'
    """
    key = "" if has_key else " and sent no WireGuard key"
    return f"the profile offers {', '.join(offers)}; the app takes {', '.join(sorted(accepts))}{key}"
