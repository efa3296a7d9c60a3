"""AllowedIPs of a client (spec api-v3.md 7.6): every row of its table, and what must always hold."""

from ipaddress import ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpn_core.wireguard import allowed_ips

OWN = [ip_network("10.61.60.0/24"), ip_network("fd43:10:61:60::/112")]


def computed(default_gateway=False, routes=(), excluded=(), own=OWN):
    return allowed_ips(
        default_gateway=default_gateway,
        routes=map(ip_network, routes),
        excluded_routes=map(ip_network, excluded),
        own_networks=own,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"default_gateway": True}, "0.0.0.0/0,::/0"),
        (
            {"default_gateway": True, "excluded": ["192.168.0.0/16"]},
            "0.0.0.0/1,128.0.0.0/2,192.0.0.0/9,192.128.0.0/11,192.160.0.0/13,192.169.0.0/16,192.170.0.0/15,"
            "192.172.0.0/14,192.176.0.0/12,192.192.0.0/10,193.0.0.0/8,194.0.0.0/7,196.0.0.0/6,200.0.0.0/5,"
            "208.0.0.0/4,224.0.0.0/3,::/0",
        ),
        ({"routes": ["10.0.0.0/8", "fd00::/16"]}, "10.0.0.0/8,fd00::/16,fd43:10:61:60::/112"),
        (
            {"routes": ["10.0.0.0/8"], "excluded": ["10.1.0.0/16"]},
            "10.0.0.0/16,10.2.0.0/15,10.4.0.0/14,10.8.0.0/13,10.16.0.0/12,10.32.0.0/11,10.64.0.0/10,"
            "10.128.0.0/9,fd43:10:61:60::/112",
        ),
        ({}, "10.61.60.0/24,fd43:10:61:60::/112"),
        # The own network survives an exclusion that covers it, and one inside it.
        ({"excluded": ["10.0.0.0/8", "fd00::/8"]}, "10.61.60.0/24,fd43:10:61:60::/112"),
        ({"excluded": ["10.61.60.128/25"]}, "10.61.60.0/24,fd43:10:61:60::/112"),
        # An exclusion larger than a route takes the route away.
        ({"routes": ["198.51.100.0/24"], "excluded": ["198.51.0.0/16"]}, "10.61.60.0/24,fd43:10:61:60::/112"),
        ({"routes": ["192.0.2.0/25", "192.0.2.0/24"]}, "10.61.60.0/24,192.0.2.0/24,fd43:10:61:60::/112"),
    ],
)
def test_row_of_the_table(arguments, expected):
    assert ",".join(map(str, computed(**arguments))) == expected


networks = st.builds(
    lambda address, prefix: ip_network((address, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)


@given(
    st.booleans(),
    st.lists(networks, max_size=5),
    st.lists(networks, max_size=5),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
)
def test_an_address_is_allowed_if_routed_and_not_excluded_or_in_the_own_network(
    default_gateway, routes, excluded, addresses
):
    found = computed(default_gateway, routes, excluded)

    def inside(address, listed):
        return any(n.version == 4 and ip_network((address, 32)).subnet_of(n) for n in listed)

    for address in [*addresses, *(int(n.network_address) for n in routes + excluded)]:
        routed = default_gateway or inside(address, routes)
        wanted = inside(address, OWN) or (routed and not inside(address, excluded))
        assert inside(address, found) == wanted
    for first, second in pairwise(found):
        assert first.version < second.version or first.broadcast_address < second.network_address
