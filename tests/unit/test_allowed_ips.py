"""A client's AllowedIPs: the table of spec api-v3.md 7.6, and what must hold for all others."""

from ipaddress import IPv4Network, ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpn_core.wireguard import allowed_ips

OWN = [ip_network("10.61.60.0/24"), ip_network("fd43:10:61:60::/112")]


def computed(*, default_gateway: bool = False, routes: list[str] = (), excluded: list[str] = ()) -> str:
    found = allowed_ips(
        default_gateway=default_gateway,
        routes=[ip_network(n) for n in routes],
        excluded_routes=[ip_network(n) for n in excluded],
        own_networks=OWN,
    )
    return ",".join(map(str, found))


def test_default_gateway_is_everything():
    assert computed(default_gateway=True) == "0.0.0.0/0,::/0"


def test_exclusion_cuts_everything_into_the_rest():
    assert computed(default_gateway=True, excluded=["192.168.0.0/16"]) == (
        "0.0.0.0/1,128.0.0.0/2,192.0.0.0/9,192.128.0.0/11,192.160.0.0/13,192.169.0.0/16,192.170.0.0/15,"
        "192.172.0.0/14,192.176.0.0/12,192.192.0.0/10,193.0.0.0/8,194.0.0.0/7,196.0.0.0/6,200.0.0.0/5,"
        "208.0.0.0/4,224.0.0.0/3,::/0"
    )


def test_routes_bring_the_own_network_along():
    expected = "10.0.0.0/8,fd00::/16,fd43:10:61:60::/112"

    assert computed(routes=["10.0.0.0/8", "fd00::/16"]) == expected


def test_exclusion_inside_a_route():
    assert computed(routes=["10.0.0.0/8"], excluded=["10.1.0.0/16"]) == (
        "10.0.0.0/16,10.2.0.0/15,10.4.0.0/14,10.8.0.0/13,10.16.0.0/12,10.32.0.0/11,10.64.0.0/10,10.128.0.0/9,"
        "fd43:10:61:60::/112"
    )


def test_without_routes_the_own_network_is_all():
    assert computed() == "10.61.60.0/24,fd43:10:61:60::/112"


@pytest.mark.parametrize("excluded", ["10.61.60.0/24", "10.61.60.128/25", "10.0.0.0/8", "0.0.0.0/0"])
def test_no_exclusion_takes_the_own_network_away(excluded):
    found = computed(routes=["198.51.100.0/24"], excluded=[excluded])

    assert "10.61.60.0/24" in found.split(",")


def test_exclusion_wider_than_a_route_drops_the_route():
    assert (
        computed(routes=["198.51.100.0/24"], excluded=["198.51.0.0/16"])
        == "10.61.60.0/24,fd43:10:61:60::/112"
    )


def test_route_inside_another_is_left_out():
    found = computed(routes=["198.51.100.64/26", "198.51.100.0/24", "198.51.100.0/25"])

    assert found == "10.61.60.0/24,198.51.100.0/24,fd43:10:61:60::/112"


NETWORKS = st.lists(
    st.builds(
        lambda address, prefix: IPv4Network((address, prefix), strict=False),
        st.integers(int(ip_address("10.0.0.0")), int(ip_address("10.0.3.255"))),
        st.integers(21, 32),
    ),
    max_size=4,
)


@given(NETWORKS, NETWORKS, st.integers(int(ip_address("9.255.255.0")), int(ip_address("10.0.4.255"))))
def test_address_goes_through_the_tunnel_when_routed_and_not_excluded(routes, excluded, number):
    own = [ip_network("10.0.2.64/28")]
    found = allowed_ips(default_gateway=False, routes=routes, excluded_routes=excluded, own_networks=own)
    address = ip_address(number)

    expected = any(address in n for n in own) or (
        any(address in n for n in routes) and not any(address in n for n in excluded)
    )

    assert any(address in n for n in found) == expected
    assert not any(one.overlaps(other) for one, other in combinations(found, 2))
