"""What an OpenVPN process pushes, in the order of spec node.md 7.2."""

from tests.unit.inventory import node, openvpn, plan, profile, split_tunnel


def pushes(profile_: dict, node_: dict | None = None, number: int = 0) -> list[str]:
    return list(plan({"a": profile_}, {"vpn1": node_ or node()}).nodes[0].openvpn[number].pushes)


def test_default_gateway_with_dns():
    wanted = profile(
        openvpn=openvpn(block_lan=True),
        dns_servers=["198.51.100.53", "2001:db8::53"],
        dns_search_domains=["example.org"],
        excluded_routes=["192.0.2.0/24", "2001:db8:2::/48"],
    )

    assert pushes(wanted) == [
        "redirect-gateway def1 ipv6 block-local",
        "route 0.0.0.0 0.0.0.0",
        "route 192.0.2.0 255.255.255.0 net_gateway",
        "route-ipv6 2001:db8:2::/48 net_gateway_ipv6",
        "dhcp-option DNS 198.51.100.53",
        "dhcp-option DNS 2001:db8::53",
        "block-outside-dns",
        "dhcp-option DOMAIN-SEARCH example.org",
        "explicit-exit-notify 1",
    ]


def test_tcp_has_no_exit_notice():
    assert "explicit-exit-notify 1" not in pushes(profile(openvpn=openvpn()), number=1)


def test_default_gateway_without_dns_blocks_no_dns():
    found = pushes(profile(openvpn=openvpn(), dns_servers=[]))

    assert found == ["redirect-gateway def1 ipv6", "route 0.0.0.0 0.0.0.0", "explicit-exit-notify 1"]


def test_gateway_as_dns_server_is_that_of_the_process():
    wanted = profile(openvpn=openvpn(), dns_servers=["@GW4@", "@GW6@"])

    assert [p for p in pushes(wanted, number=0) if "DNS" in p] == [
        "dhcp-option DNS 10.65.16.1",
        "dhcp-option DNS fd00:65::1000:1",
    ]
    assert [p for p in pushes(wanted, number=1) if "DNS" in p] == [
        "dhcp-option DNS 10.65.24.1",
        "dhcp-option DNS fd00:65::1001:1",
    ]


def test_split_tunnel_routes_and_search_domains():
    assert pushes(split_tunnel(openvpn=openvpn())) == [
        "route 198.51.100.0 255.255.255.0",
        "route-ipv6 2001:db8:1::/48",
        "dhcp-option DNS 198.51.100.53",
        "dhcp-option DOMAIN-SEARCH example.org",
        "explicit-exit-notify 1",
    ]


def test_node_inside_the_routes_of_a_split_tunnel_is_reached_past_the_tunnel():
    there = node(hostname="198.51.100.7", agent_address="2001:db8:1::7")

    found = pushes(split_tunnel(openvpn=openvpn()), there)

    assert found[2:4] == [
        "route 198.51.100.7 255.255.255.255 net_gateway",
        "route-ipv6 2001:db8:1::7/128 net_gateway_ipv6",
    ]


def test_node_that_is_excluded_already_is_not_excluded_twice():
    there = node(hostname="198.51.100.7")
    wanted = split_tunnel(openvpn=openvpn(), excluded_routes=["198.51.100.0/28"])

    assert [p for p in pushes(wanted, there) if "net_gateway" in p] == [
        "route 198.51.100.0 255.255.255.240 net_gateway"
    ]


def test_node_outside_of_the_routes_needs_no_exclusion():
    found = pushes(split_tunnel(openvpn=openvpn()), node(hostname="203.0.113.7"))

    assert not any("net_gateway" in p for p in found)
