"""A portal and three nodes: deployed by ``site.yml``, reached through NAT, closed to all but the portal."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.e2e.hosts import Deployment, Host, wait_until
from tests.e2e.multi_node.world import World
from tests.e2e.test_deployment import EXPOSURE, changed

NODES = ["ams1", "fra1", "fra2"]
SERVES = {"everywhere": set(NODES), "amsterdam": {"ams1"}, "frankfurt": {"fra1", "fra2"}}

#: SSH, the agent, OpenVPN, WireGuard, names for clients, and on loopback what chrony is asked at.
NODE_PORTS = {"tcp/22", "tcp/41194", "udp/51820", "tcp/53", "udp/53", "udp/323"} | {
    f"{protocol}/{port}" for protocol in ("tcp", "udp") for port in (1194, 1195, 1196)
}
#: ``tcp/22`` for each socket that takes what anybody sends. dnsmasq asks others from ports of its own choice.
LISTENING = """ss -Hlntup | awk '!/"dnsmasq"/ || $5 ~ /:53$/ {print $1 "/" $5}' | sed 's|/.*:|/|' | sort -u"""

#: Answers with the address that a caller seems to have, and for /port with the port, too.
WHO = """
import socketserver
from http.server import BaseHTTPRequestHandler
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].removeprefix("::ffff:").encode()
        if self.path == "/port":
            body += b" %d" % self.client_address[1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address = socketserver.socket.AF_INET6, True
Server(("::", 80), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def internet(deployment: Deployment) -> Iterator[dict[int, str]]:
    """The addresses of the host on the Internet, by family; it says who called."""
    host = deployment.host("internet")
    host.put({"who.py": WHO.encode()}, "/opt/e2e")
    host.run("systemctl is-active -q who || systemd-run -q --unit who python3 /opt/e2e/who.py")
    variables = deployment.variables(host.name)
    yield {4: variables["lab_internet_host_ipv4"], 6: variables["lab_internet_host_ipv6"]}
    host.run("systemctl stop who")


def test_second_run_changes_nothing_on_any_host(deployment: Deployment) -> None:
    """R83."""
    done = deployment.playbook("site", log="second-run")
    assert done.returncode == 0, done.stdout[-3000:]
    assert changed(done.stdout) == dict.fromkeys(["portal1", *NODES], 0), done.stdout


def test_check_mode_changes_nothing_and_says_nothing_changes(deployment: Deployment) -> None:
    """R84."""
    done = deployment.playbook("site", "--check", "--diff", log="check-mode")
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout


def test_one_node_can_be_deployed_alone(deployment: Deployment) -> None:
    done = deployment.playbook("node", "--limit", "fra2", log="part")
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout[-3000:]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("prefer_tcp", [False, True])
def test_tunnels_reach_the_internet_through_the_address_of_their_node(
    world: World, make_app, internet: dict[int, str], node: str, prefer_tcp: bool
) -> None:
    """Both protocols, IPv4 and IPv6: the host outside knows no way to what is inside tunnels."""
    app = make_app("alice")
    with world.only(node):
        got = world.connect(app, "everywhere", prefer_tcp=prefer_tcp)
    assert (got["node"], got["protocol"]) == (node, "openvpn" if prefer_tcp else "wireguard")
    own = {4: world.node(node).address, 6: ipv6_of(world.node(node))}
    for family, address in internet.items():
        where = f"[{address}]" if family == 6 else address
        said = app.do("inside", words=["curl", "-s", "-m", "5", f"http://{where}/"])
        assert said["output"] == own[family], said


def test_who_left_a_node_from_an_address_and_port_is_known(
    world: World, make_app, internet: dict[int, str]
) -> None:
    """As a complaint names it: an address of a node, a port, and a time."""
    app = make_app("alice")
    with world.only("fra1"):
        got = world.connect(app, "everywhere")

    def asked(address: str, port: str) -> list[tuple[str, str, str]]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        words = [address, "--port", port, "--at", now, "--tolerance", "10"]
        found = world.ask("address", *words)["holders"]
        return [(one["user"], one["node"], one["flow"]["protocol"]) for one in found]

    for family, address in internet.items():
        where = f"[{address}]" if family == 6 else address
        said = app.do("inside", words=["curl", "-s", "-m", "5", f"http://{where}/port"])["output"]
        seen, port = said.split()
        found = wait_until(lambda seen=seen, port=port: asked(seen, port), 10, "it is in the log")
        assert found == [("alice", "fra1", "TCP")]
        assert asked(seen, str((int(port) + 1) % 65536)) == []
    assert got["node"] == "fra1"


def ipv6_of(host: Host) -> str:
    found = re.search(r"inet6 (fd77[0-9a-f:]+)/", host.output("ip -6 address show dev host0"))
    assert found
    return found[1]


@pytest.mark.parametrize("profile", SERVES)
def test_profile_is_served_by_its_nodes_only(world: World, profile: str) -> None:
    plan = world.ask("plan", "show")
    assert set(plan["profiles"][profile]["nodes"]) == SERVES[profile]
    for node in NODES:
        shown = world.ask("node", "show", node)
        for kind in ("shares", "processes"):
            assert (profile in {one["profile_id"] for one in shown[kind]}) == (node in SERVES[profile])


def test_verification_proves_every_node(world: World) -> None:
    """Each profile on each of its nodes, and on each node every way to connect."""
    done = world.ask("verify")
    assert done["passed"], done
    tried: dict[str, set[tuple[str, str]]] = {node: set() for node in NODES}
    for check in done["checks"]:
        if found := re.fullmatch(r"(\w+): (\w+) (\w+\+\w+)", check["name"]):
            tried[found[1]].add((found[2], found[3]))
    for node, both in tried.items():
        town = "amsterdam" if node == "ams1" else "frankfurt"
        assert {profile for profile, _way in both} == {town, "everywhere"}, node
        assert {way for _profile, way in both} == {"wireguard+udp", "openvpn+udp", "openvpn+tcp"}, node


@pytest.mark.parametrize("node", NODES)
def test_units_of_nodes_are_sandboxed(world: World, node: str) -> None:
    """H1."""
    for unit in ("vpn-node-agent.service", "causeway-nat-log.service", "openvpn-server@everywhere-0.service"):
        said = world.node(node).output(f"systemd-analyze security --no-pager {unit} | tail -1")
        most = (EXPOSURE | {"causeway-nat-log.service": 2.5}).get(unit, 5.0)
        score = re.search(r"(\d+\.\d)", said)
        assert score, said
        assert float(score[1]) <= most, said


def test_a_node_is_no_portal_and_the_portal_no_node(world: World) -> None:
    """N2, N10: each host runs, listens and holds what its part needs."""
    for name in NODES:
        node = world.node(name)
        listens = set(node.output(LISTENING).split())
        assert {"tcp/22", "tcp/41194", "udp/51820"} <= listens <= NODE_PORTS, listens
        assert node.run("test -e /etc/causeway/portal -o -e /etc/causeway/tls", check=False).returncode != 0
    listens = set(world.portal.output(LISTENING).split())
    assert {"tcp/22", "tcp/443"} <= listens, listens
    assert not {one.partition("/")[2] for one in listens} & {"41194", "51820", "1194"}, listens
    assert world.portal.run("test -e /etc/causeway/node", check=False).returncode != 0
