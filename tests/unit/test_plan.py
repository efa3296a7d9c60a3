"""What a plan holds, and that it stays what it was when the inventory grows."""

import json

import pytest

from tests.unit.inventory import node, openvpn, plan, profile, split_tunnel, wireguard
from vpn_core.errors import PlanError
from vpn_core.plan import make_plan

EVERYTHING = {
    "employees": profile(openvpn=openvpn()),
    "lab": split_tunnel(
        excluded_routes=["198.51.100.128/25"],
        wireguard=wireguard(ipv4="10.66.0.0/16", ipv6="fd00:66::/96", keepalive=True),
        permissions=["lab"],
        nodes=["vpn2"],
    ),
    "legacy": profile(
        wireguard=None,
        openvpn=openvpn(
            ipv4="10.67.0.0/16",
            ipv6="fd00:67::/96",
            udp_ports=[1195],
            tcp_ports=[1195],
            exposed_tcp_ports=[443],
            block_lan=True,
        ),
    ),
}
NODES = {"vpn2": node(2, agent_address="198.51.100.2"), "vpn1": node(1)}


def test_one_range_per_profile_and_protocol_is_all_an_operator_gives():
    (found,) = plan({"employees": profile(openvpn=openvpn())}).nodes
    (share,) = found.wireguard

    assert (share.ipv4, share.ipv6) == ("10.64.16.0/20", "fd00:64::1000:0/100")
    assert (share.gateway_ipv4, share.gateway_ipv6) == ("10.64.16.1", "fd00:64::1000:1")
    assert share.capacity == 4093
    assert [(p.name, p.device, p.protocol, p.port) for p in found.openvpn] == [
        ("employees-0", "tun0", "udp", 1194),
        ("employees-1", "tun1", "tcp", 1194),
    ]
    assert [(p.ipv4, p.ipv4_address, p.ipv4_netmask, p.ipv6) for p in found.openvpn] == [
        ("10.65.16.0/21", "10.65.16.0", "255.255.248.0", "fd00:65::1000:0/112"),
        ("10.65.24.0/21", "10.65.24.0", "255.255.248.0", "fd00:65::1001:0/112"),
    ]
    assert [p.max_clients for p in found.openvpn] == [2044, 2044]


def test_devices_count_over_all_profiles_of_a_node():
    found = plan(EVERYTHING, NODES).nodes[0]

    assert [(p.name, p.device) for p in found.openvpn] == [
        ("employees-0", "tun0"),
        ("employees-1", "tun1"),
        ("legacy-0", "tun2"),
        ("legacy-1", "tun3"),
    ]


def test_nodes_come_in_the_order_of_their_numbers():
    assert [(n.name, n.number, n.agent_name) for n in plan(EVERYTHING, NODES).nodes] == [
        ("vpn1", 1, "node-1"),
        ("vpn2", 2, "node-2"),
    ]


def test_profile_is_served_by_the_nodes_it_names_or_by_all():
    data = plan(EVERYTHING, NODES).to_dict()

    assert {p: entry["nodes"] for p, entry in data["profiles"].items()} == {
        "employees": ["vpn1", "vpn2"],
        "lab": ["vpn2"],
        "legacy": ["vpn1", "vpn2"],
    }
    assert [s["profile_id"] for s in data["nodes"]["vpn1"]["wireguard"]] == ["employees"]
    assert [s["profile_id"] for s in data["nodes"]["vpn2"]["wireguard"]] == ["employees", "lab"]


def test_agent_is_reached_by_the_host_name_unless_told_otherwise():
    data = plan(EVERYTHING, NODES).to_dict()

    assert data["nodes"]["vpn1"]["agent_address"] == "node1.example.org"
    assert data["nodes"]["vpn2"]["agent_address"] == "198.51.100.2"


def test_plan_is_plain_json():
    data = plan(EVERYTHING, NODES).to_dict()

    assert json.loads(json.dumps(data)) == data
    assert data["profiles"]["lab"]["routes"] == ["198.51.100.0/24", "2001:db8:1::/48"]
    assert data["profiles"]["legacy"]["wireguard"] is None


def test_plan_holds_what_both_ends_agree_on():
    data = plan(settings={"wireguard_port": 51821, "max_nodes": 4}).to_dict()

    assert data["version"] == 1
    assert data["max_nodes"] == 4
    assert data["agent_port"] == 41194
    assert data["wireguard"] == {"interface": "wg0", "port": 51821, "mtu": 1392, "keepalive_seconds": 25}
    assert data["openvpn"] == {
        "tls_version_min": "1.3",
        "data_ciphers": "AES-256-GCM:CHACHA20-POLY1305",
        "tun_mtu": 1500,
        "renegotiate_seconds": 36000,
        "keepalive": [10, 60],
    }


def test_resolved_profiles_make_the_same_plan_again():
    """The portal checks a plan by making it again from its own profiles and nodes."""
    data = plan(EVERYTHING, NODES).to_dict()
    profiles = {
        name: {k: v for k, v in entry.items() if k != "profile_id"}
        for name, entry in data["profiles"].items()
    }
    nodes = {
        name: {k: entry[k] for k in ("number", "hostname", "agent_address")}
        for name, entry in data["nodes"].items()
    }

    assert make_plan(profiles, nodes, {"max_nodes": data["max_nodes"]}).to_dict() == data


def test_adding_a_node_renumbers_nobody():
    """R90"""
    before = plan(EVERYTHING, NODES).to_dict()
    after = plan(EVERYTHING, NODES | {"vpn0": node(0), "vpn9": node(9)}).to_dict()

    assert {name: after["nodes"][name] for name in NODES} == before["nodes"]


def test_removing_a_node_renumbers_nobody():
    """R90"""
    profiles = EVERYTHING | {"lab": EVERYTHING["lab"] | {"nodes": None}}
    before = plan(profiles, NODES).to_dict()
    after = plan(profiles, {"vpn2": NODES["vpn2"]}).to_dict()

    assert after["nodes"]["vpn2"] == before["nodes"]["vpn2"]


def test_adding_a_profile_behind_the_others_changes_none_of_them():
    before = plan(EVERYTHING, NODES).to_dict()["nodes"]["vpn1"]
    more = EVERYTHING | {
        "guests": profile(
            wireguard=None,
            openvpn=openvpn(ipv4="10.68.0.0/16", ipv6="fd00:68::/96", udp_ports=[1196], tcp_ports=[]),
        )
    }
    after = plan(more, NODES).to_dict()["nodes"]["vpn1"]

    assert after["openvpn"][: len(before["openvpn"])] == before["openvpn"]
    assert after["wireguard"] == before["wireguard"]


def test_defaults_of_a_profile():
    found = plan({"a": {"display_name": "A", "wireguard": wireguard()}}).to_dict()["profiles"]["a"]

    assert found == {
        "profile_id": "a",
        "display_name": "A",
        "priority": 0,
        "hidden": False,
        "permissions": None,
        "default_gateway": True,
        "routes": [],
        "excluded_routes": [],
        "dns_servers": [],
        "dns_search_domains": [],
        "preferred_protocol": "wireguard",
        "wireguard": {"ipv4": "10.64.0.0/16", "ipv6": "fd00:64::/96", "keepalive": False},
        "openvpn": None,
        "nodes": ["vpn1"],
    }


def test_openvpn_listens_on_udp_and_tcp_1194_unless_told_otherwise():
    found = plan({"a": profile(openvpn=openvpn())}).to_dict()["profiles"]["a"]["openvpn"]

    assert (found["udp_ports"], found["tcp_ports"]) == ([1194], [1194])
    assert (found["exposed_udp_ports"], found["exposed_tcp_ports"]) == ([], [])


def test_wireguard_is_preferred_where_both_are_offered():
    found = plan({"a": profile(openvpn=openvpn()), "b": EVERYTHING["legacy"]}).to_dict()["profiles"]

    assert found["a"]["preferred_protocol"] == "wireguard"
    assert found["b"]["preferred_protocol"] == "openvpn"


def test_empty_permissions_let_nobody_in_and_absent_ones_everybody():
    data = plan({"a": profile(permissions=[])}).to_dict()["profiles"]["a"]

    assert data["permissions"] == []
    assert plan().to_dict()["profiles"]["employees"]["permissions"] is None


@pytest.mark.parametrize(
    ("profile_", "warning"),
    [
        (
            profile(dns_servers=[]),
            "default_gateway without dns_servers; clients keep asking their own resolver",
        ),
        (
            profile(dns_servers=["198.51.100.53"], excluded_routes=["198.51.100.0/24"]),
            "DNS server 198.51.100.53 lies in excluded_routes; clients ask it past the tunnel",
        ),
    ],
)
def test_what_runs_but_is_hardly_meant_is_a_warning(profile_, warning):
    assert plan({"a": profile_}).warnings == (f"vpn_profiles.a: {warning}",)


def test_usual_profile_has_no_warning():
    assert plan(EVERYTHING, NODES).warnings == ()


def test_dns_server_in_one_of_two_adjacent_routes_is_routed():
    routes = ["198.51.100.0/25", "198.51.100.128/25"]

    plan({"a": split_tunnel(routes=routes, dns_servers=["198.51.100.130", "198.51.100.1", "@GW6@"])})


def test_plan_without_a_node_that_leaves_is_that_of_an_inventory_without_it():
    """R90: nobody else's addresses change."""
    nodes = {"n1": node(1), "n2": node(2)}
    elsewhere = wireguard(ipv4="10.70.0.0/16", ipv6="fd00:70::/96")
    here, there = profile(nodes=["n1"]), profile(nodes=["n1", "n2"], wireguard=elsewhere)

    left = plan({"a": here, "b": there}, nodes, {"leaving_node": "n2"}).to_dict()

    assert left == plan({"a": here, "b": there | {"nodes": ["n1"]}}, {"n1": node(1)}).to_dict()


@pytest.mark.parametrize(
    ("profiles", "nodes", "message"),
    [
        (
            {"a": profile(nodes=["n1"])},
            {"n1": node(1), "n2": node(2)},
            "vpn_profiles.a.nodes: n1 is the only one that serves it;"
            " name another node there, or take the profile out",
        ),
        ({"a": profile()}, {"n1": node(1)}, "n1 is the only node; add another one first"),
    ],
)
def test_node_that_others_need_does_not_leave(profiles, nodes, message):
    with pytest.raises(PlanError) as refused:
        plan(profiles, nodes, {"leaving_node": "n1"})
    assert str(refused.value) == message
