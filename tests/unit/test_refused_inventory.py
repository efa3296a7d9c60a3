"""R94: a wrong inventory stops before any host is touched; the message names variable, value and fix."""

from typing import Any

import pytest

from tests.unit.inventory import node, openvpn, plan, profile, split_tunnel, wireguard
from vpn_core.errors import PlanError


def refusal(
    profiles: dict[Any, Any] | None = None,
    nodes: dict[Any, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> str:
    with pytest.raises(PlanError) as caught:
        plan(profiles, nodes, settings)
    return str(caught.value)


#: What is wrong: profiles, then variable, value and fix as the message has them.
PROFILES: dict[str, tuple[Any, str, str, str]] = {
    "no profile": ({}, "vpn_profiles", "no profile", "name at least one"),
    "profiles as a list": ([profile()], "vpn_profiles", "[{'display_name'", "write 'key: value' lines"),
    "profile id with a slash": ({"a/b": profile()}, "vpn_profiles", "'a/b'", "use 1 to 60 letters"),
    "profile id with a dot first": ({"..": profile()}, "vpn_profiles", "'..'", "letter or digit first"),
    "profile id too long": ({"a" * 61: profile()}, "vpn_profiles", "'aaaa", "use 1 to 60"),
    "profile id that YAML read as a number": ({2024: profile()}, "vpn_profiles", "2024", "put it in quotes"),
    "profile id that YAML read as a truth": ({False: profile()}, "vpn_profiles", "False", "put it in quotes"),
    "profile that is empty": ({"a": None}, "vpn_profiles.a", "None", "write 'key: value' lines"),
    "unknown key near a known one": (
        {"a": profile(dns_server=["192.0.2.53"])},
        "vpn_profiles.a",
        "'dns_server'",
        "did you mean 'dns_servers'?",
    ),
    "unknown key near none": (
        {"a": profile(zzz=1)},
        "vpn_profiles.a",
        "'zzz'",
        "known keys are default_gateway",
    ),
    "unknown key of WireGuard": (
        {"a": profile(wireguard=wireguard(port=1))},
        "vpn_profiles.a.wireguard",
        "'port'",
        "known keys are ipv4, ipv6, keepalive",
    ),
    "no display name": (
        {"a": {"wireguard": wireguard()}},
        "vpn_profiles.a",
        "'display_name'",
        "it is what users see",
    ),
    "display name with a line break": (
        {"a": profile(display_name="A\nB")},
        "vpn_profiles.a.display_name",
        r"'A\nB'",
        "on one line",
    ),
    "display name of blanks": (
        {"a": profile(display_name="  ")},
        "vpn_profiles.a.display_name",
        "'  '",
        "write 1 to 64 printable",
    ),
    "display name as a number": (
        {"a": profile(display_name=7)},
        "vpn_profiles.a.display_name",
        "7 is not a text",
        "put it in quotes",
    ),
    "priority as a text": (
        {"a": profile(priority="high")},
        "vpn_profiles.a.priority",
        "'high'",
        "write digits",
    ),
    "priority as a truth": ({"a": profile(priority=True)}, "vpn_profiles.a.priority", "True", "write digits"),
    "truth as a text": ({"a": profile(hidden="no")}, "vpn_profiles.a.hidden", "'no'", "true or false"),
    "truth without a value": ({"a": profile(hidden=None)}, "vpn_profiles.a.hidden", "None", "remove the key"),
    "list as a text": (
        {"a": split_tunnel(routes="198.51.100.0/24")},
        "vpn_profiles.a.routes",
        "'198.51.100.0/24'",
        "write [first, second]",
    ),
    "no protocol": (
        {"a": profile(wireguard=None)},
        "vpn_profiles.a",
        "no protocol",
        "add 'wireguard' or 'openvpn'",
    ),
    "preferred protocol not offered": (
        {"a": profile(preferred_protocol="openvpn")},
        "vpn_profiles.a.preferred_protocol",
        "'openvpn'",
        "use wireguard",
    ),
    "one family only": (
        {"a": profile(wireguard={"ipv4": "10.64.0.0/16"})},
        "vpn_profiles.a.wireguard",
        "'ipv6'",
        "write ipv6: fd00:64::/96",
    ),
    "range without prefix": (
        {"a": profile(wireguard=wireguard(ipv4="10.64.0.0"))},
        "vpn_profiles.a.wireguard.ipv4",
        "'10.64.0.0'",
        "write 10.64.0.0/32",
    ),
    "range with host bits": (
        {"a": profile(wireguard=wireguard(ipv4="10.64.1.0/16"))},
        "vpn_profiles.a.wireguard.ipv4",
        "'10.64.1.0/16'",
        "write 10.64.0.0/16",
    ),
    "range with host bits in IPv6": (
        {"a": profile(wireguard=wireguard(ipv6="fd00:64::1/96"))},
        "vpn_profiles.a.wireguard.ipv6",
        "'fd00:64::1/96'",
        "write fd00:64::/96",
    ),
    "range with a netmask": (
        {"a": profile(wireguard=wireguard(ipv4="10.64.0.0/255.255.0.0"))},
        "vpn_profiles.a.wireguard.ipv4",
        "'10.64.0.0/255.255.0.0'",
        "write it like 10.64.0.0/16",
    ),
    "range with a zone": (
        {"a": profile(wireguard=wireguard(ipv6="fd00:64::%eth0/96"))},
        "vpn_profiles.a.wireguard.ipv6",
        "'fd00:64::%eth0/96'",
        "write it like fd00:64::/96",
    ),
    "range of the other family": (
        {"a": profile(wireguard=wireguard(ipv4="fd00:64::/96"))},
        "vpn_profiles.a.wireguard.ipv4",
        "'fd00:64::/96'",
        "write it like 10.64.0.0/16",
    ),
    "range that is none": (
        {"a": profile(wireguard=wireguard(ipv4="10.64/16"))},
        "vpn_profiles.a.wireguard.ipv4",
        "'10.64/16'",
        "write it like 10.64.0.0/16",
    ),
    "range that YAML read as a number": (
        {"a": profile(wireguard=wireguard(ipv4=10.64))},
        "vpn_profiles.a.wireguard.ipv4",
        "10.64",
        "put it in quotes",
    ),
    "range of loopback": (
        {"a": profile(wireguard=wireguard(ipv4="127.0.0.0/16"))},
        "vpn_profiles.a.wireguard.ipv4",
        "127.0.0.0/16",
        "take a range like 10.64.0.0/16",
    ),
    "range of multicast": (
        {"a": profile(openvpn=openvpn(ipv6="ff00::/96"))},
        "vpn_profiles.a.openvpn.ipv6",
        "ff00::/96",
        "take a range like fd00:64::/96",
    ),
    "everything as a range": (
        {"a": profile(wireguard=wireguard(ipv4="0.0.0.0/0"))},
        "vpn_profiles.a.wireguard.ipv4",
        "0.0.0.0/0",
        "take a range like 10.64.0.0/16",
    ),
    "WireGuard range too small for the nodes": (
        {"a": profile(wireguard=wireguard(ipv4="10.64.0.0/26"))},
        "vpn_profiles.a.wireguard.ipv4",
        "10.64.0.0/26",
        "use a /25 or wider",
    ),
    "WireGuard IPv6 smaller than IPv4": (
        {"a": profile(wireguard=wireguard(ipv6="fd00:64::/113"))},
        "vpn_profiles.a.wireguard.ipv6",
        "fd00:64::/113",
        "use a /112 or wider",
    ),
    "OpenVPN range too small for nodes and ports": (
        {"a": profile(openvpn=openvpn(ipv4="10.65.0.0/25"))},
        "vpn_profiles.a.openvpn.ipv4",
        "10.65.0.0/25",
        "use a /24 or wider",
    ),
    "OpenVPN IPv6 range too small": (
        {"a": profile(openvpn=openvpn(ipv6="fd00:65::/108"))},
        "vpn_profiles.a.openvpn.ipv6",
        "fd00:65::/108",
        "use a /107 or wider",
    ),
    "OpenVPN range too large for OpenVPN": (
        {"a": profile(wireguard=None, openvpn=openvpn(ipv4="10.0.0.0/10"))},
        "vpn_profiles.a.openvpn.ipv4",
        "10.0.0.0/10",
        "use a /11 or more ports",
    ),
    "three ports": (
        {"a": profile(openvpn=openvpn(udp_ports=[1194, 1195]))},
        "vpn_profiles.a.openvpn",
        "2 udp_ports and 1 tcp_ports make 3 processes",
        "1, 2, 4, 8, 16, 32 or 64",
    ),
    "no port": (
        {"a": profile(openvpn=openvpn(udp_ports=[], tcp_ports=[]))},
        "vpn_profiles.a.openvpn",
        "make 0 processes",
        "add or remove ports",
    ),
    "port 0": (
        {"a": profile(openvpn=openvpn(udp_ports=[0]))},
        "vpn_profiles.a.openvpn.udp_ports[0]",
        "0 is out of bounds",
        "use 1 to 65535",
    ),
    "port twice": (
        {"a": profile(openvpn=openvpn(udp_ports=[1194, 1194], tcp_ports=[443, 1194]))},
        "vpn_profiles.a.openvpn.udp_ports",
        "[1194, 1194]",
        "each process needs its own",
    ),
    "exposed port without a port": (
        {"a": profile(openvpn=openvpn(tcp_ports=[], exposed_tcp_ports=[443]))},
        "vpn_profiles.a.openvpn.exposed_tcp_ports",
        "[443]",
        "name the ports",
    ),
    "port of WireGuard": (
        {"a": profile(openvpn=openvpn(udp_ports=[51820]))},
        "vpn_profiles.a.openvpn.udp_ports",
        "51820 on vpn1 is taken by WireGuard (vpn_wireguard_port)",
        "use another port",
    ),
    "port of SSH": (
        {"a": profile(openvpn=openvpn(tcp_ports=[22]))},
        "vpn_profiles.a.openvpn.tcp_ports",
        "22 on vpn1 is taken by SSH",
        "use another port",
    ),
    "port of the agent": (
        {"a": profile(openvpn=openvpn(tcp_ports=[41194]))},
        "vpn_profiles.a.openvpn.tcp_ports",
        "41194 on vpn1 is taken by the node agent",
        "use another port",
    ),
    "port of the gateway's DNS": (
        {"a": profile(openvpn=openvpn(udp_ports=[53]))},
        "vpn_profiles.a.openvpn.udp_ports",
        "53 on vpn1 is taken by DNS on the gateway",
        "use another port",
    ),
    "port of another profile": (
        {
            "a": profile(openvpn=openvpn()),
            "b": profile(wireguard=None, openvpn=openvpn(ipv4="10.66.0.0/16", ipv6="fd00:66::/96")),
        },
        "vpn_profiles.b.openvpn.udp_ports",
        "1194 on vpn1 is taken by vpn_profiles.a.openvpn.udp_ports",
        "use another port",
    ),
    "exposed port of another profile": (
        {
            "a": profile(openvpn=openvpn(udp_ports=[1194], tcp_ports=[1194], exposed_udp_ports=[443])),
            "b": profile(
                wireguard=None,
                openvpn=openvpn(
                    ipv4="10.66.0.0/16",
                    ipv6="fd00:66::/96",
                    udp_ports=[1195],
                    tcp_ports=[1195],
                    exposed_udp_ports=[443],
                ),
            ),
        },
        "vpn_profiles.b.openvpn.exposed_udp_ports",
        "443 of vpn1 leads to vpn_profiles.a.openvpn.exposed_udp_ports too",
        "use another port",
    ),
    "overlap of two profiles": (
        {"a": profile(), "b": profile()},
        "vpn_profiles.b.wireguard.ipv4",
        "10.64.0.0/16 overlaps vpn_profiles.a.wireguard.ipv4 (10.64.0.0/16)",
        "give each profile and protocol its own range",
    ),
    "overlap of two protocols": (
        {"a": profile(openvpn=openvpn(ipv6="fd00:64::/80"))},
        "vpn_profiles.a.wireguard.ipv6",
        "fd00:64::/96 overlaps vpn_profiles.a.openvpn.ipv6 (fd00:64::/80)",
        "give each profile and protocol its own range",
    ),
    "routes with a default gateway": (
        {"a": profile(routes=["198.51.100.0/24"])},
        "vpn_profiles.a.routes",
        "198.51.100.0/24",
        "set that to false or remove the routes",
    ),
    "split tunnel without routes": (
        {"a": split_tunnel(routes=[])},
        "vpn_profiles.a.routes",
        "[] with default_gateway: false",
        "name what it leads to",
    ),
    "route that is everything": (
        {"a": split_tunnel(routes=["0.0.0.0/0"])},
        "vpn_profiles.a.routes",
        "0.0.0.0/0",
        "set default_gateway: true",
    ),
    "route with host bits": (
        {"a": split_tunnel(routes=["198.51.100.7/24"])},
        "vpn_profiles.a.routes[0]",
        "'198.51.100.7/24'",
        "write 198.51.100.0/24",
    ),
    "excluded route with host bits": (
        {"a": split_tunnel(excluded_routes=["198.51.100.64/24"])},
        "vpn_profiles.a.excluded_routes[0]",
        "'198.51.100.64/24'",
        "write 198.51.100.0/24",
    ),
    "DNS server outside of a split tunnel": (
        {"a": split_tunnel(dns_servers=["198.51.100.53", "192.0.2.53"])},
        "vpn_profiles.a.dns_servers",
        "192.0.2.53",
        "add 192.0.2.53/32 to routes",
    ),
    "DNS server outside of a split tunnel in IPv6": (
        {"a": split_tunnel(dns_servers=["2001:db8:2::53"])},
        "vpn_profiles.a.dns_servers",
        "2001:db8:2::53",
        "add 2001:db8:2::53/128 to routes",
    ),
    "DNS server excluded from a split tunnel": (
        {"a": split_tunnel(excluded_routes=["198.51.100.32/27"])},
        "vpn_profiles.a.dns_servers",
        "198.51.100.53",
        "exclude less",
    ),
    "DNS server that nothing is asked": (
        {"a": split_tunnel(dns_search_domains=[])},
        "vpn_profiles.a.dns_servers",
        "198.51.100.53",
        "name the domains",
    ),
    "DNS server by name": (
        {"a": profile(dns_servers=["dns.example.org"])},
        "vpn_profiles.a.dns_servers[0]",
        "'dns.example.org'",
        "write 198.51.100.7",
    ),
    "DNS server with a zone": (
        {"a": profile(dns_servers=["fe80::1%eth0"])},
        "vpn_profiles.a.dns_servers[0]",
        "'fe80::1%eth0'",
        "write 198.51.100.7",
    ),
    "DNS server twice": (
        {"a": profile(dns_servers=["2001:db8::53", "2001:db8:0::53"])},
        "vpn_profiles.a.dns_servers",
        "2001:db8::53",
        "remove one",
    ),
    "search domain that is an address": (
        {"a": profile(dns_search_domains=["192.0.2.53"])},
        "vpn_profiles.a.dns_search_domains",
        "'192.0.2.53'",
        "use letters, digits",
    ),
    "search domain with a blank": (
        {"a": profile(dns_search_domains=["example org"])},
        "vpn_profiles.a.dns_search_domains",
        "'example org'",
        "use letters, digits",
    ),
    "permission as a number": (
        {"a": profile(permissions=["staff", 5])},
        "vpn_profiles.a.permissions[1]",
        "5",
        "put it in quotes",
    ),
    "permissions as a text": (
        {"a": profile(permissions="staff")},
        "vpn_profiles.a.permissions",
        "'staff'",
        "write [first, second]",
    ),
    "unknown node": (
        {"a": profile(nodes=["vpn2"])},
        "vpn_profiles.a.nodes",
        "'vpn2'",
        "hosts in group 'nodes' are vpn1",
    ),
    "no node": ({"a": profile(nodes=[])}, "vpn_profiles.a.nodes", "[]", "hidden: true"),
}

NODES: dict[str, tuple[Any, str, str, str]] = {
    "no node": ({}, "group 'nodes'", "empty", "put a host into it"),
    "host without vpn_node": ({"vpn1": None}, "vpn_node of vpn1", "None", "write 'key: value' lines"),
    "node without a number": (
        {"vpn1": {"hostname": "vpn1.example.org"}},
        "vpn_node of vpn1",
        "'number'",
        "write vpn_node: {number: 1",
    ),
    "node without a host name": (
        {"vpn1": {"number": 1}},
        "vpn_node of vpn1",
        "'hostname'",
        "hostname: node1.example.org}",
    ),
    "unknown key": (
        {"vpn1": node(host_name="vpn1.example.org")},
        "vpn_node of vpn1",
        "'host_name'",
        "did you mean 'hostname'?",
    ),
    "number as a text": ({"vpn1": node(number="1")}, "vpn_node of vpn1.number", "'1'", "without quotes"),
    "negative number": ({"vpn1": node(number=-1)}, "vpn_node of vpn1.number", "-1", "use 0 to 1023"),
    "number behind the last part": (
        {"vpn1": node(number=16)},
        "vpn_node of vpn1.number",
        "16 is not below vpn_max_nodes (16)",
        "take a free number from 0 to 15",
    ),
    "number twice": (
        {"vpn1": node(1), "vpn2": node(1, hostname="other.example.org")},
        "vpn_node.number",
        "1 is that of vpn1 and of vpn2",
        "give each its own",
    ),
    "host name twice": (
        {"vpn1": node(1, hostname="VPN.example.org"), "vpn2": node(2, hostname="vpn.example.org.")},
        "vpn_node.hostname",
        "vpn.example.org is that of vpn1 and of vpn2",
        "give each its own",
    ),
    "agent address twice": (
        {"vpn1": node(1, agent_address="127.0.0.1"), "vpn2": node(2, agent_address="127.0.0.1")},
        "vpn_node.agent_address",
        "127.0.0.1 is that of vpn1 and of vpn2",
        "give each its own",
    ),
    "host name in the range of clients": (
        {"vpn1": node(hostname="10.64.3.4")},
        "vpn_node.hostname of vpn1",
        "10.64.3.4 lies in vpn_profiles.employees.wireguard.ipv4 (10.64.0.0/16)",
        "move the range",
    ),
    "agent address in the range of clients": (
        {"vpn1": node(agent_address="fd00:64::99")},
        "vpn_node.agent_address of vpn1",
        "fd00:64::99 lies in vpn_profiles.employees.wireguard.ipv6",
        "move the range",
    ),
}


@pytest.mark.parametrize(("profiles", "variable", "value", "fix"), PROFILES.values(), ids=PROFILES)
def test_profile_is_refused_with_variable_value_and_fix(profiles, variable, value, fix):
    message = refusal(profiles)

    assert variable in message
    assert value in message
    assert fix in message
    assert message.isprintable()


@pytest.mark.parametrize(("nodes", "variable", "value", "fix"), NODES.values(), ids=NODES)
def test_node_is_refused_with_variable_value_and_fix(nodes, variable, value, fix):
    message = refusal(nodes=nodes)

    assert variable in message
    assert value in message
    assert fix in message


@pytest.mark.parametrize(
    "name",
    [
        "vpn_1.example.org",
        "-vpn.example.org",
        "vpn-.example.org",
        "vpn..example.org",
        "vpn.example.org..",
        ".example.org",
        "vpn.example.org:443",
        "https://vpn.example.org",
        "vpn example.org",
        "vpn.example.1",
        "198.51.100",
        "198.51.100.256",
        "198.51.100.07",
        "fe80::1%eth0",
        "2001:db8::g",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "vpn\u00fc.example.org",
        "a" * 64 + ".example.org",
        ".".join(["a" * 49] * 4 + ["a" * 50]) + ".org",
        "",
    ],
)
def test_bad_host_name_is_refused(name):
    message = refusal(nodes={"vpn1": node(hostname=name)})

    assert message.startswith("vpn_node of vpn1.hostname: ")
    assert name[:60] in message
    assert "write " in message or "use " in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("VPN1.Example.ORG", "vpn1.example.org"),
        ("vpn1.example.org.", "vpn1.example.org"),
        ("vpn1", "vpn1"),
        ("198.51.100.7", "198.51.100.7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_good_host_name_is_put_into_its_normal_form(written, meant):
    (found,) = plan(nodes={"vpn1": node(hostname=written)}).nodes

    assert found.hostname == found.agent_address == meant


def test_portal_on_the_node_needs_its_web_ports():
    profiles = {"a": profile(openvpn=openvpn(tcp_ports=[443]))}

    plan(profiles, {"vpn1": node()})
    message = refusal(profiles, {"vpn1": node(is_portal=True)})

    assert "vpn_profiles.a.openvpn.tcp_ports: 443 on vpn1 is taken by the portal; use another port" in message


def test_same_port_on_different_nodes_is_no_clash():
    other = openvpn(ipv4="10.66.0.0/16", ipv6="fd00:66::/96")
    profiles = {
        "a": profile(wireguard=None, openvpn=openvpn(), nodes=["vpn1"]),
        "b": profile(wireguard=None, openvpn=other, nodes=["vpn2"]),
    }

    plan(profiles, {"vpn1": node(1), "vpn2": node(2)})


@pytest.mark.parametrize("inner", ["10.0.0.0/25", "10.77.3.0/24", "10.255.255.0/24"])
def test_small_range_anywhere_inside_a_large_one_is_found(inner):
    """Also when other ranges lie between the large one's first address and the small one."""
    profiles = {
        "small": profile(wireguard=wireguard(ipv4=inner, ipv6="fd00:1::/104")),
        "beside": profile(wireguard=wireguard(ipv4="11.0.0.0/16", ipv6="fd00:2::/96")),
        "large": profile(wireguard=wireguard(ipv4="10.0.0.0/8", ipv6="fd00:3::/96")),
    }

    message = refusal(profiles)

    assert "vpn_profiles.small.wireguard.ipv4" in message
    assert "vpn_profiles.large.wireguard.ipv4" in message


@pytest.mark.parametrize(
    ("settings", "variable", "value", "fix"),
    [
        ({"max_nodes": 0}, "vpn_max_nodes", "0", "use 1 to 1024"),
        ({"max_nodes": 1025}, "vpn_max_nodes", "1025", "use 1 to 1024"),
        ({"max_nodes": "16"}, "vpn_max_nodes", "'16'", "without quotes"),
        ({"wireguard_port": 65536}, "vpn_wireguard_port", "65536", "use 1 to 65535"),
        (
            {"wireguard_ports": 1},
            "settings of vpn_plan",
            "'wireguard_ports'",
            "did you mean 'wireguard_port'?",
        ),
        ({"wireguard_port": 53}, "WireGuard (vpn_wireguard_port)", "53 on vpn1", "use another port"),
        (["max_nodes"], "settings of vpn_plan", "['max_nodes']", "write 'key: value' lines"),
    ],
)
def test_setting_is_refused_with_variable_value_and_fix(settings, variable, value, fix):
    message = refusal(settings=settings)

    assert message.startswith(variable)
    assert value in message
    assert fix in message


def test_very_long_value_is_shortened_in_the_message():
    message = refusal({"a": profile(display_name="x" * 100_000)})

    assert len(message) < 250
