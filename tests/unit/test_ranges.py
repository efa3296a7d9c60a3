"""How a range is cut: the worked examples of spec node.md 5 and 7.1 and portal.md 5.4."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from vpn_core.errors import PlanError
from vpn_core.ranges import (
    bits_for,
    client_addresses,
    gateway,
    node_range,
    openvpn_max_clients,
    openvpn_process_ranges,
    part,
    wireguard_capacity,
)


@pytest.mark.parametrize(
    ("prefix", "clients"), [(24, 253), (23, 509), (22, 1021), (20, 4093), (29, 5), (16, 65533)]
)
def test_wireguard_range_holds_all_but_network_gateway_and_broadcast(prefix, clients):
    assert wireguard_capacity(IPv4Network(("10.0.0.0", prefix))) == clients


def test_first_and_last_client_of_a_24_are_2_and_254():
    ipv4, ipv6 = IPv4Network("10.61.60.0/24"), IPv6Network("fd43:10:61:60::/112")

    assert client_addresses(ipv4, ipv6, 0) == ("10.61.60.2", "fd43:10:61:60::2")
    assert client_addresses(ipv4, ipv6, wireguard_capacity(ipv4) - 1) == ("10.61.60.254", "fd43:10:61:60::fe")


def test_gateway_is_the_first_host():
    assert gateway(ip_network("10.61.60.0/24")) == "10.61.60.1"
    assert gateway(ip_network("fd43:10:61:60::/112")) == "fd43:10:61:60::1"


@pytest.mark.parametrize(
    ("ipv4", "processes", "expected", "clients"),
    [
        ("172.18.131.0/24", 1, ["172.18.131.0/24"], 252),
        ("172.18.131.0/24", 2, ["172.18.131.0/25", "172.18.131.128/25"], 124),
        (
            "172.18.131.0/24",
            4,
            ["172.18.131.0/26", "172.18.131.64/26", "172.18.131.128/26", "172.18.131.192/26"],
            60,
        ),
        ("172.18.131.0/24", 8, [f"172.18.131.{i * 32}/27" for i in range(8)], 28),
        ("10.0.0.0/8", 32, [f"10.{i * 8}.0.0/13" for i in range(32)], 524284),
        ("10.42.42.0/27", 4, ["10.42.42.0/29", "10.42.42.8/29", "10.42.42.16/29", "10.42.42.24/29"], 4),
    ],
)
def test_openvpn_ipv4_is_cut_into_equal_parts(ipv4, processes, expected, clients):
    ranges = openvpn_process_ranges(IPv4Network(ipv4), IPv6Network("fd42::/64"), processes)

    assert [str(four) for four, _ in ranges] == expected
    assert {openvpn_max_clients(four) for four, _ in ranges} == {clients}


@pytest.mark.parametrize(
    ("ipv6", "processes", "expected"),
    [
        (
            "fd00:0:0:1::/64",
            4,
            ["fd00:0:0:1::/112", "fd00::1:0:0:1:0/112", "fd00::1:0:0:2:0/112", "fd00::1:0:0:3:0/112"],
        ),
        ("fd42::/112", 1, ["fd42::/112"]),
        ("fd42::/108", 16, ["fd42::/112", *(f"fd42::{i:x}:0/112" for i in range(1, 16))]),
    ],
)
def test_openvpn_ipv6_is_a_112_each_from_the_start(ipv6, processes, expected):
    ranges = openvpn_process_ranges(IPv4Network("10.0.0.0/16"), IPv6Network(ipv6), processes)

    assert [six for _, six in ranges] == [IPv6Network(n) for n in expected]


def test_ipv6_112_cannot_be_cut_for_two_processes():
    with pytest.raises(PlanError, match=r"fd42::/112 is too small for 2 .* use a /111 or wider"):
        openvpn_process_ranges(IPv4Network("10.0.0.0/16"), IPv6Network("fd42::/112"), 2)


def test_ipv4_28_cannot_be_cut_for_four_processes():
    with pytest.raises(PlanError, match=r"10\.42\.42\.0/28 is too small for 4 .* use a /27 or fewer ports"):
        openvpn_process_ranges(IPv4Network("10.42.42.0/28"), IPv6Network("fd42::/64"), 4)


@pytest.mark.parametrize("processes", [0, 3, 5, 6, 7, 12, 65, 128])
def test_number_of_processes_is_a_power_of_two_up_to_64(processes):
    with pytest.raises(
        PlanError, match=f"^{processes} OpenVPN processes: use 1, 2, 4, 8, 16, 32 or 64 ports"
    ):
        openvpn_process_ranges(IPv4Network("10.0.0.0/16"), IPv6Network("fd42::/64"), processes)


def test_part_n_of_a_range_belongs_to_node_number_n():
    profile_range = ip_network("10.64.0.0/16")

    assert [str(node_range(profile_range, n, 16)) for n in (0, 1, 15)] == [
        "10.64.0.0/20",
        "10.64.16.0/20",
        "10.64.240.0/20",
    ]


def test_number_of_parts_is_rounded_up_to_a_power_of_two():
    assert bits_for(16) == bits_for(9) == 4
    assert node_range(ip_network("10.64.0.0/16"), 8, 9) == ip_network("10.64.128.0/20")


def test_node_number_behind_the_last_part_is_refused():
    with pytest.raises(PlanError, match=r"10\.64\.0\.0/16 has no part 16 of /20; use a wider range"):
        node_range(ip_network("10.64.0.0/16"), 16, 16)


@pytest.mark.parametrize("prefix", [15, 33])
def test_parts_wider_than_the_range_or_longer_than_an_address_are_refused(prefix):
    with pytest.raises(PlanError, match=f"10.64.0.0/16 cannot be cut into parts of /{prefix}"):
        part(ip_network("10.64.0.0/16"), 0, prefix)


def test_negative_part_is_refused():
    with pytest.raises(PlanError, match="no part -1"):
        part(ip_network("10.64.0.0/16"), -1, 20)
