"""The way between people, nodes and the portal is bad: it loses packets, is full, is narrow (R64, R65)."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.hosts import Host, OfficialApp, wait_until
from tests.e2e.multi_node.test_node_loss import CONNECT_SECONDS, OTHER, VICTIM
from tests.e2e.multi_node.world import ROUND_SECONDS, World

#: One packet in ten gets lost on its way to a host; the tests' own way in stays good.
LOSS = """
table inet e2e {{
  chain in {{
    type filter hook input priority -300
    tcp dport 22 accept
    tcp sport 22 accept
    {whose} numgen random mod 10 == 0 counter drop
  }}
}}
"""
#: What leaves the node waits in a short queue for 2 Mbit/s. Somebody sends a little more than that.
FILL_UPLINK = """
import socket, sys, time
away = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began, sent = time.monotonic(), 0
while True:
    while sent < 260_000 * (time.monotonic() - began):
        sent += away.sendto(bytes(1300), (sys.argv[1], 9))
    time.sleep(0.01)
"""
UPLINK = "tc qdisc replace dev host0 root tbf rate 2mbit burst 16k latency 100ms"


@contextmanager
def bad_uplink(world: World, node: Host) -> Iterator[None]:
    """A node whose uplink is full, and whose packets get lost both ways."""
    others = (world.portal, world.client)
    node.put({"fill.py": FILL_UPLINK.encode()}, "/run/e2e")
    try:
        node.run(UPLINK)
        node.run(f"systemd-run -q --collect --unit e2e-fill python3 /run/e2e/fill.py {world.client.address}")
        node.run("nft -f -", stdin=LOSS.format(whose=""))
        for host in others:
            host.run("nft -f -", stdin=LOSS.format(whose=f"ip saddr {node.address}"))
        yield
        said = node.output("tc -s qdisc show dev host0; systemctl is-active e2e-fill")
        assert re.search(r"dropped [1-9]", said), said
        assert said.endswith("\nactive"), said
    finally:
        node.run("systemctl stop e2e-fill; tc qdisc delete dev host0 root", check=False)
        for host in (node, *others):
            host.run("nft delete table inet e2e", check=False)


def test_uplink_of_a_node_is_full_and_loses_packets(
    world: World, make_app: Callable[..., OfficialApp]
) -> None:
    """R64: nobody's connect fails, and what is to end there ends."""
    dave = make_app("dave")
    with world.only(VICTIM):
        got = world.connect(dave, "frankfurt")
    try:
        with bad_uplink(world, world.node(VICTIM)):
            with world.probing("everywhere") as prober:
                wait_until(lambda: VICTIM in prober.nodes(0), 60, "the node is chosen all the same")
                world.vpn_portal("user", "disable", "dave")
                wait_until(lambda: not dave.pings(got["gateway"]), ROUND_SECONDS, "dave is cut")
                wait_until(lambda: len(prober.attempts) > 40, 120, "some connects")
            # Its uplink is still bad.
            wait_until(lambda: world.peers(VICTIM) == world.wanted(VICTIM), ROUND_SECONDS, "in step")
        assert prober.failures() == []
        assert prober.slowest() < CONNECT_SECONDS
    finally:
        world.vpn_portal("user", "enable", "dave")
    world.wait_until_in_step(VICTIM)


#: A home router: whoever is behind it reaches everything, by packets of at most 1,280 bytes.
NARROW = """
set -e
ip netns add narrow
ip link add narrow0 mtu 1280 type veth peer name narrow1 mtu 1280 netns narrow
ip address add 192.0.2.1/24 dev narrow0
ip address add 2001:db8:1280::1/64 dev narrow0 nodad
ip link set narrow0 up
ip -n narrow link set lo up
ip -n narrow address add 192.0.2.2/24 dev narrow1
ip -n narrow address add 2001:db8:1280::2/64 dev narrow1 nodad
ip -n narrow link set narrow1 up
ip -n narrow route add default via 192.0.2.1
ip -n narrow route add default via 2001:db8:1280::1
sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
nft -f - <<X
table inet narrow {
  chain out {
    type nat hook postrouting priority srcnat
    ip saddr 192.0.2.0/24 masquerade
    ip6 saddr 2001:db8:1280::/64 masquerade
  }
}
X
"""
WIDE = "ip netns delete narrow; ip link delete narrow0; nft delete table inet narrow"


@pytest.fixture
def narrow_app(world: World) -> Iterator[OfficialApp]:
    """The official app of somebody behind a narrow path."""
    world.client.run(NARROW)
    app = OfficialApp(world.client, "alice", within="narrow")
    try:
        app.do("start", user="alice", password=world.password("alice"))
        app.do("add_server", url=world.deployment.portal_url)
        yield app
    finally:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()
        world.client.run(WIDE, check=False)


@pytest.mark.parametrize("prefer_tcp", [False, True])
def test_path_is_narrow(world: World, narrow_app: OfficialApp, prefer_tcp: bool) -> None:
    """R65: 1,400 bytes of payload and a page over HTTPS pass, over IPv4 and IPv6."""
    with world.only(OTHER):
        got = world.connect(narrow_app, "everywhere", prefer_tcp=prefer_tcp)
    ipv4, ipv6 = got["gateways"]
    wait_until(lambda: narrow_app.pings(ipv4, 1428) and narrow_app.pings(ipv6, 1428), 10, "1,400 bytes")
    page = f"{world.deployment.portal_url}/static/style.css"
    for family in ("-4", "-6"):
        words = [
            "curl",
            "-s",
            "-m",
            "10",
            family,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
            page,
        ]
        code, size = narrow_app.do("inside", words=words)["output"].split()
        assert (code, int(size) > 5000) == ("200", True)
