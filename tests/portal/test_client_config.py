"""Client configurations (spec api-v3.md 7.6 and 7.8): what test_connect.py does not show."""

import base64
import random
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from portal_app.errors import Unavailable
from portal_app.render import client_config
from vpn_core.wireguard import is_public_key


def ranges(udp=(), tcp=(), exposed_udp=(), exposed_tcp=()):
    return {
        "udp_ports": list(udp),
        "tcp_ports": list(tcp),
        "exposed_udp_ports": list(exposed_udp),
        "exposed_tcp_ports": list(exposed_tcp),
    }


class Last(random.Random):
    """Chooses the last of a list."""

    def choice(self, seq):
        return seq[-1]


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (ranges([1194], [1194]), [(1194, "udp"), (1194, "tcp")]),
        (ranges([1194, 1195, 1196], [1194, 443]), [(1196, "udp"), (1194, "tcp"), (443, "tcp")]),
        (
            ranges([1194, 1195, 53, 443], [1194, 80, 443]),
            [(1195, "udp"), (443, "udp"), (1194, "tcp"), (443, "tcp")],
        ),
        (ranges([], [443]), [(443, "tcp")]),
        (ranges([1194], [1194], exposed_udp=[53]), [(53, "udp"), (1194, "tcp")]),
        (ranges([1194], [1194], exposed_tcp=[80]), [(1194, "udp"), (80, "tcp")]),
        (ranges([80], [53]), [(80, "udp"), (53, "tcp")]),  # special for the other transport only
    ],
)
def test_remotes_are_one_normal_and_one_special_port_of_each_transport(ports, expected):
    assert client_config.remotes(ports, tcp_first=False, rng=Last()) == expected
    tcp_first = [r for r in expected if r[1] == "tcp"] + [r for r in expected if r[1] == "udp"]
    assert client_config.remotes(ports, tcp_first=True, rng=Last()) == tcp_first


def test_every_port_is_chosen_some_time():
    found = {client_config.remotes(ranges([1194, 1195, 53, 443]), tcp_first=False)[0] for _ in range(200)}

    assert found == {(1194, "udp"), (1195, "udp")}


def test_profile_without_a_port_is_an_error():
    with pytest.raises(Unavailable):
        client_config.remotes(ranges(), tcp_first=False)


@pytest.mark.parametrize(
    ("default_gateway", "servers", "domains", "expected"),
    [
        (True, ["198.51.100.53", "@GW6@"], ["example.org"], ["198.51.100.53", "fd00::1", "example.org"]),
        (True, [], [], []),
        (False, ["@GW4@"], [], []),
        (False, ["@GW4@"], ["example.org"], ["10.0.4.1", "example.org"]),
    ],
)
def test_dns_line(default_gateway, servers, domains, expected):
    profile = SimpleNamespace(
        default_gateway=default_gateway, dns_servers=servers, dns_search_domains=domains
    )

    assert client_config.dns(profile, ("10.0.4.0/22", "fd00::/112")) == expected


def test_ipv6_address_of_a_node_is_put_in_brackets():
    assert client_config._bracketed("2001:db8::7") == "[2001:db8::7]"
    assert client_config._bracketed("198.51.100.7") == "198.51.100.7"


def test_key_pair_is_a_pair():
    private, public = client_config.wireguard_key_pair()

    key = X25519PrivateKey.from_private_bytes(base64.b64decode(private))
    assert base64.b64encode(key.public_key().public_bytes_raw()).decode() == public
    assert is_public_key(public)
