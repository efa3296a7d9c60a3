"""Small builders of inventories: one thing that a test is about, the rest as a sysadmin would write it."""

from typing import Any

from vpn_core.plan import Plan, make_plan


def wireguard(**changes: Any) -> dict[str, Any]:
    return {"ipv4": "10.64.0.0/16", "ipv6": "fd00:64::/96"} | changes


def openvpn(**changes: Any) -> dict[str, Any]:
    return {"ipv4": "10.65.0.0/16", "ipv6": "fd00:65::/96"} | changes


def profile(**changes: Any) -> dict[str, Any]:
    """Return a profile with WireGuard only; ``openvpn=openvpn()`` adds the other protocol."""
    return {
        "display_name": "Employees",
        "dns_servers": ["@GW4@", "@GW6@"],
        "wireguard": wireguard(),
    } | changes


def split_tunnel(**changes: Any) -> dict[str, Any]:
    return (
        profile(
            default_gateway=False,
            routes=["198.51.100.0/24", "2001:db8:1::/48"],
            dns_servers=["198.51.100.53"],
            dns_search_domains=["example.org"],
        )
        | changes
    )


def node(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"number": number, "hostname": f"node{number}.example.org"} | changes


def plan(
    profiles: dict[Any, Any] | None = None,
    nodes: dict[Any, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Plan:
    """Return the plan of one profile on one node, or of what is given."""
    return make_plan(
        {"employees": profile()} if profiles is None else profiles,
        {"vpn1": node()} if nodes is None else nodes,
        settings,
    )
