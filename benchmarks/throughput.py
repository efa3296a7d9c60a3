"""Throughput of a tunnel that we deployed against a hand-made one between the same two hosts.

``python -m benchmarks.throughput`` needs a converged lab (``make lab``). The hand-made tunnels are what
manuals show: WireGuard with our MTU and with the one that ``wg-quick`` takes, OpenVPN over UDP with its
defaults and the fingerprints of two certificates. The client's end is the same program for both, and it
reaches both by the portal's name, so over the same family. Each is measured in turn with ours, by iperf3 with
one TCP stream, down (server to client) and up. The ratios of one run count. What it made is removed at the
end.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.e2e.hosts import Host, OfficialApp, prepare_client, read_deployment, wait_until
from vpn_core import openvpn, wireguard

PROFILE = "employees"
WAYS = {"down": "", "up": "--reverse"}
TRANSPORT = "udp"
#: Protocols, with the MTU of the tunnel that is made by hand.
TUNNELS = (("wireguard", wireguard.MTU), ("wireguard", 1420), ("openvpn", openvpn.TUN_MTU))


@dataclass(frozen=True)
class Tunnel:
    """A tunnel that is open: the client's namespace, and its address in it."""

    namespace: str
    address: str


def opened(client: Host, app: OfficialApp, name: str, config: str, protocol: str) -> Tunnel:
    """Bring ``config`` up at the client, by the same program for both: only the servers' ends differ."""
    app.do("up", config=config, protocol=protocol, transport=TRANSPORT)
    shown = json.loads(client.output(f"ip -n causeway-{name} -j -4 address show dev cw{name}0"))
    return Tunnel(f"causeway-{name}", shown[0]["addr_info"][0]["local"])


@contextmanager
def ours(url: str, client: Host, password: str, protocol: str) -> Iterator[Tunnel]:
    """Open a tunnel as the official app does."""
    app = OfficialApp(client, "alice")
    try:
        app.do("start", user="alice", password=password)
        app.do("add_server", url=url)
        # The library asks for OpenVPN only when TCP is preferred; the configuration has UDP as well.
        got = app.do("get_config", url=url, profile=PROFILE, prefer_tcp=protocol == "openvpn")
        assert got["protocol"] == protocol
        yield opened(client, app, "alice", got["config"], protocol)
    finally:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()


@contextmanager
def by_hand(server: Host, client: Host, protocol: str, name: str, mtu: int) -> Iterator[Tunnel]:
    """Make a server's end by the tools' own means, and open a tunnel to it by ``name``."""
    app = OfficialApp(client, "hand")
    insert = "nft --echo --handle insert rule inet causeway input udp dport { 51999, 1999 } accept"
    handle = re.findall(r"# handle (\d+)", server.output(insert))[-1]
    try:
        for host in (server, client):
            host.run(f"mkdir -p -m 0700 /run/handmade; {KEYS}")
        of_server, of_client = (
            {file: host.output(f"cat /run/handmade/{file}") for file in KEY_FILES}
            for host in (server, client)
        )
        values = {"server": name, "mtu": mtu, "mine": of_client, "theirs": of_server}
        if protocol == "wireguard":
            server.run(WIREGUARD_SERVER.format(peer=of_client["public"], mtu=mtu))
            config = WIREGUARD_CLIENT.format(**values)
        else:
            server.run(OPENVPN_SERVER.format(peer=of_client["fingerprint"]))
            config = OPENVPN_CLIENT.format(**values)
        tunnel = opened(client, app, "hand", config, protocol)
        wait_until(lambda: app.pings("192.0.2.1"), 20, "the hand-made tunnel")
        yield tunnel
    finally:
        # The hosts first: the app may have died.
        server.run(f"nft delete rule inet causeway input handle {handle}", check=False)
        for host in (client, server):
            host.run("systemctl stop handmade; rm -r /run/handmade", check=False)
        app.attempt("down")
        app.close()


KEY_FILES = ("private", "public", "key", "crt", "fingerprint")
KEYS = """
set -e
cd /run/handmade
umask 077
wg genkey | tee private | wg pubkey >public
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=handmade \
    -keyout key -out crt 2>/dev/null
openssl x509 -in crt -noout -fingerprint -sha256 | cut -d= -f2 >fingerprint
"""
WIREGUARD_SERVER = """
set -e
systemd-run -q --collect --unit handmade wireguard-go --foreground hand0
until wg show hand0 >/dev/null 2>&1; do sleep 0.1; done
wg set hand0 listen-port 51999 private-key /run/handmade/private peer {peer} allowed-ips 192.0.2.2/32
ip address add 192.0.2.1/24 dev hand0
ip link set hand0 mtu {mtu} up
"""
WIREGUARD_CLIENT = """[Interface]
PrivateKey = {mine[private]}
Address = 192.0.2.2/24
MTU = {mtu}

[Peer]
PublicKey = {theirs[public]}
AllowedIPs = 0.0.0.0/0
Endpoint = {server}:51999
"""
OPENVPN_SERVER = """
set -e
cat >/run/handmade/conf <<X
dev hand0
dev-type tun
cert /run/handmade/crt
key /run/handmade/key
verb 1
server 192.0.2.0 255.255.255.0
server-ipv6 2001:db8:99::/112
topology subnet
port 1999
proto udp6
dh none
keepalive 10 60
<peer-fingerprint>
{peer}
</peer-fingerprint>
X
systemd-run -q --collect --unit handmade openvpn --config /run/handmade/conf
"""
OPENVPN_CLIENT = """client
nobind
remote {server} 1999 udp
<cert>
{mine[crt]}
</cert>
<key>
{mine[key]}
</key>
<peer-fingerprint>
{theirs[fingerprint]}
</peer-fingerprint>
"""


def mbit(server: Host, client: Host, tunnel: Tunnel, way: str, seconds: int) -> float:
    """Return what one TCP stream carries (Mbit/s). iperf3 listens at the client: no firewall stands there."""
    inside = f"ip netns exec {tunnel.namespace}"
    client.run(f"{inside} iperf3 --server --one-off --daemon")
    listens = f"{inside} ss -Hltn sport = 5201 | grep -q ."
    wait_until(lambda: client.run(listens, check=False).returncode == 0, 10, "iperf3 listens")
    said = server.output(f"iperf3 --json --omit 1 --time {seconds} --client {tunnel.address} {WAYS[way]}")
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12, help="measurements of each tunnel and way")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    arguments = parser.parse_args()
    deployment = read_deployment("single_host")
    server, client = deployment.host("portals"), deployment.host("clients")
    prepare_client(client, deployment)
    for host in (server, client):
        host.run("dpkg -s iperf3 >/dev/null 2>&1 || { apt-get update -qq; apt-get install -y -qq iperf3; }")
    password = deployment.passwords["alice"]
    name = urlsplit(deployment.portal_url).hostname
    assert name

    print("| protocol | MTU by hand | way | ours, Mbit/s | by hand | ratio of medians | of the rounds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for protocol, mtu in TUNNELS:
        with (
            ours(deployment.portal_url, client, password, protocol) as our_tunnel,
            by_hand(server, client, protocol, name, mtu) as hand_tunnel,
        ):
            for way in WAYS:
                found: list[tuple[float, float]] = []
                for number in range(arguments.rounds):
                    # Who begins changes, so that neither always has the warmer machine.
                    tunnels = [our_tunnel, hand_tunnel]
                    order = tunnels if number % 2 == 0 else tunnels[::-1]
                    got = {id(t): mbit(server, client, t, way, arguments.seconds) for t in order}
                    found.append((got[id(our_tunnel)], got[id(hand_tunnel)]))
                own, hand = (statistics.median(column) for column in zip(*found, strict=True))
                each = sorted(a / b for a, b in found)
                print(
                    f"| {protocol} | {mtu} | {way} | {own:.0f} | {hand:.0f} | {own / hand:.2f}"
                    f" | {each[0]:.2f} to {each[-1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
