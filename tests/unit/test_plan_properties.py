"""Whatever the inventory: no two parts overlap, nothing leaves its range, adding a node renumbers nobody."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.inventory import node, plan, profile
from vpn_core.errors import PlanError
from vpn_core.plan import make_plan
from vpn_core.ranges import bits_for, client_addresses, gateway

PORTS = [(1, 0), (0, 1), (1, 1), (3, 1), (4, 4)]


@st.composite
def inventories(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return profiles, nodes and settings that make a plan; each profile has its own /12 and /48."""
    max_nodes = draw(st.integers(1, 40))
    numbers = draw(st.lists(st.integers(0, max_nodes - 1), min_size=1, max_size=5, unique=True))
    profiles = {}
    for index in range(draw(st.integers(1, 4))):
        udp, tcp = draw(st.sampled_from(PORTS))
        bits = bits_for(max_nodes) + bits_for(udp + tcp)
        protocols = draw(st.sampled_from(["wireguard", "openvpn", "both"]))
        first_port = 2000 + 10 * index
        profiles[f"p{index}"] = profile(
            wireguard=None
            if protocols == "openvpn"
            else {
                "ipv4": f"10.{index * 16}.0.0/{draw(st.integers(12, 29 - bits_for(max_nodes)))}",
                "ipv6": f"fd00:{index}::/{draw(st.sampled_from([48, 64, 96, 100]))}",
            },
            openvpn=None
            if protocols == "wireguard"
            else {
                "ipv4": f"172.{16 + index}.0.0/{draw(st.integers(max(16, 16 - bits), 29 - bits))}",
                "ipv6": f"fd01:{index}::/{draw(st.integers(48, 112 - bits))}",
                "udp_ports": list(range(first_port, first_port + udp)),
                "tcp_ports": list(range(first_port, first_port + tcp)),
            },
        )
    return profiles, {f"vpn{n}": node(n) for n in numbers}, {"max_nodes": max_nodes}


def planned(inventory: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the plan; an IPv6 range that holds fewer clients than IPv4 is no inventory."""
    profiles, nodes, settings = inventory
    for entry in profiles.values():
        block = entry["wireguard"]
        if block and 128 - IPv6Network(block["ipv6"]).prefixlen < 32 - IPv4Network(block["ipv4"]).prefixlen:
            block["ipv6"] = block["ipv6"].rpartition("/")[0] + "/96"
    return make_plan(profiles, nodes, settings).to_dict()


def parts(data: dict[str, Any]) -> list[tuple[IPv4Network | IPv6Network, IPv4Network | IPv6Network]]:
    """Return each part of the plan with the range it was cut from."""
    found = []
    for node_plan in data["nodes"].values():
        for protocol in ("wireguard", "openvpn"):
            for share in node_plan[protocol]:
                whole = data["profiles"][share["profile_id"]][protocol]
                found += [
                    (ip_network(share[family]), ip_network(whole[family])) for family in ("ipv4", "ipv6")
                ]
    return found


@given(inventories())
def test_no_two_parts_overlap(inventory):
    for (one, _), (other, _) in combinations(parts(planned(inventory)), 2):
        assert one.version != other.version or not one.overlaps(other)


@given(inventories())
def test_no_part_leaves_its_range(inventory):
    for inner, outer in parts(planned(inventory)):
        assert inner.subnet_of(outer)  # type: ignore[arg-type]


@given(inventories())
def test_every_client_and_gateway_lies_inside_its_part(inventory):
    """I1: no two addresses of a part are the same; none is the gateway's, the network's or the broadcast."""
    for node_plan in planned(inventory)["nodes"].values():
        for share in node_plan["wireguard"]:
            ipv4, ipv6 = IPv4Network(share["ipv4"]), IPv6Network(share["ipv6"])
            last = share["capacity"] - 1
            edges = {position: client_addresses(ipv4, ipv6, position) for position in (0, last)}
            assert len({*edges[0], gateway(ipv4)}) == 3
            for four, six in edges.values():
                assert ip_address(four) in ipv4
                assert ip_address(six) in ipv6
                assert four not in (gateway(ipv4), str(ipv4.network_address), str(ipv4.broadcast_address))
                assert six != gateway(ipv6)
            assert client_addresses(ipv4, ipv6, last + 1)[0] == str(ipv4.broadcast_address)
        for process in node_plan["openvpn"]:
            assert ip_address(process["gateway_ipv4"]) in IPv4Network(process["ipv4"])
            assert ip_address(process["gateway_ipv6"]) in IPv6Network(process["ipv6"])
            assert process["max_clients"] >= 4


@given(inventories(), st.data())
def test_adding_or_removing_nodes_renumbers_nobody(inventory, data):
    """R90"""
    profiles, nodes, settings = inventory
    before = planned(inventory)
    numbers = st.lists(st.integers(0, settings["max_nodes"] - 1), min_size=1, max_size=5, unique=True)
    changed = {f"vpn{n}": node(n) for n in data.draw(numbers)}

    after = planned((profiles, changed, settings))

    for name in nodes.keys() & changed.keys():
        assert after["nodes"][name] == before["nodes"][name]


@given(inventories())
def test_no_port_and_no_device_of_a_node_is_given_twice(inventory):
    for node_plan in planned(inventory)["nodes"].values():
        ports = [(p["protocol"], p["port"]) for p in node_plan["openvpn"]]
        devices = [p["device"] for p in node_plan["openvpn"]]
        names = [p["name"] for p in node_plan["openvpn"]]
        assert len(set(ports)) == len(set(devices)) == len(set(names)) == len(names)


NETWORKS = st.builds(
    lambda address, prefix: str(ip_network((address, prefix), strict=False)),
    st.integers(int(ip_address("10.0.0.0")), int(ip_address("10.3.255.255"))),
    st.integers(12, 25),
)


@given(st.lists(NETWORKS, min_size=2, max_size=6))
def test_every_overlap_of_two_profiles_is_found_and_nothing_else(networks):
    profiles = {
        f"p{i}": profile(wireguard={"ipv4": n, "ipv6": f"fd00:{i}::/96"}) for i, n in enumerate(networks)
    }
    overlap = any(IPv4Network(one).overlaps(IPv4Network(other)) for one, other in combinations(networks, 2))

    if overlap:
        with pytest.raises(PlanError, match="overlaps"):
            plan(profiles)
    else:
        plan(profiles)
