"""What a node survives by itself: restarts, crashes, reboots, hand edits, portals that are away."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until

PORTAL_UNITS = "vpn-portal.service vpn-portal-controller.service"


@pytest.fixture
def tunnel(
    app: OfficialApp, deployment: Deployment, request: pytest.FixtureRequest
) -> Iterator[tuple[OfficialApp, str]]:
    """An open tunnel of alice and its gateway; ``request.param`` is the profile."""
    profile = getattr(request, "param", "employees")
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    got = app.do("get_config", url=deployment.portal_url, profile=profile)
    opened = app.do("up", config=got["config"], protocol=got["protocol"])
    gateway = opened["gateways"][0]
    wait_until(lambda: app.pings(gateway), 20, "tunnel")
    yield app, gateway
    app.attempt("down")
    app.attempt("disconnect")


both_protocols = pytest.mark.parametrize("tunnel", ["employees", "legacy"], indirect=True)


def start_pinging(app: OfficialApp, gateway: str, count: int) -> None:
    command = f"ping -n -q -i 0.2 -c {count} {gateway} > /tmp/pings 2>&1 &"
    app.do("inside", words=["sh", "-c", command])


def lost_pings(app: OfficialApp) -> int:
    """Wait for the pings of ``start_pinging`` to end; return how many had no answer."""
    said = wait_until(
        lambda: next((line for line in app.do("inside", words=["cat", "/tmp/pings"])["output"].splitlines()
                      if "packets transmitted" in line), ""),
        60, "pings end",
    )  # fmt: skip
    words = said.split()
    return int(words[0]) - int(words[3])


def main_pid(server: Host, unit: str) -> int:
    return int(server.output(f"systemctl show -p MainPID --value {unit}"))


@both_protocols
def test_agent_restart_loses_no_ping(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R46: no peer is removed and added again."""
    app, gateway = tunnel
    start_pinging(app, gateway, 40)
    server.run("systemctl restart vpn-node-agent.service")
    assert lost_pings(app) == 0


@both_protocols
def test_agent_crash_loses_no_ping_and_is_restarted(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R43."""
    app, gateway = tunnel
    pid = main_pid(server, "vpn-node-agent.service")
    start_pinging(app, gateway, 40)
    server.run(f"kill -KILL {pid}")
    wait_until(lambda: main_pid(server, "vpn-node-agent.service") not in (0, pid), 2, "agent is back")
    assert lost_pings(app) == 0


def test_dead_interface_is_rebuilt_with_its_peers(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R47: the userspace process (or the interface) dies; everything is back by itself."""
    app, gateway = tunnel
    peers = "wg show wg0 allowed-ips"
    before = sorted(server.output(peers).splitlines())
    assert before
    server.run("ip link delete wg0")
    wait_until(
        lambda: sorted(server.run(peers, check=False).stdout.splitlines()) == before,
        5,
        "all its peers are back",
    )
    # WireGuard's KEEPALIVE_TIMEOUT and REKEY_TIMEOUT: a client notices after 15 s that its session is gone.
    wait_until(lambda: app.pings(gateway), 30, "tunnel works again")


def test_openvpn_crash_heals_by_itself(app: OfficialApp, deployment: Deployment, server: Host) -> None:
    """R49: the process is restarted and the client returns without a portal."""
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    got = app.do("get_config", url=deployment.portal_url, profile="legacy")
    opened = app.do("up", config=got["config"], protocol="openvpn")
    wait_until(lambda: app.pings(opened["gateways"][0]), 15, "tunnel")
    server.run(f"systemctl stop {PORTAL_UNITS}")
    try:
        pid = main_pid(server, "openvpn-server@legacy-0.service")
        server.run(f"kill -KILL {pid}")
        # The client notices by its own keepalive; a person would reconnect at once, so do that.
        app.do("down")
        wait_until(
            lambda: main_pid(server, "openvpn-server@legacy-0.service") not in (0, pid), 15, "openvpn is back"
        )
        opened = app.do("up", config=got["config"], protocol="openvpn")
        wait_until(lambda: app.pings(opened["gateways"][0]), 20, "tunnel without a portal")
    finally:
        server.run(f"systemctl start {PORTAL_UNITS}")
        app.attempt("down")


def test_hand_made_changes_of_peers_are_corrected(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R48: a stranger's peer goes, a removed one comes back, and the log says so."""
    app, gateway = tunnel
    stranger = server.output("wg genkey | wg pubkey")
    key = server.output("wg show wg0 peers").split()[0]
    server.run(f"wg set wg0 peer {stranger} allowed-ips 10.64.31.200/32 && wg set wg0 peer {key} remove")

    def peers() -> list[str]:
        return server.output("wg show wg0 peers").split()

    wait_until(lambda: stranger not in peers() and key in peers(), 10, "peers corrected")
    wait_until(lambda: app.pings(gateway), 30, "tunnel works again")
    assert stranger[:8] in server.output("journalctl -u vpn-node-agent.service --since '-60 s' -o cat")


def test_tunnels_outlive_all_portals(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R51."""
    app, gateway = tunnel
    server.run(f"systemctl stop {PORTAL_UNITS}")
    try:
        start_pinging(app, gateway, 50)
        assert lost_pings(app) == 0
    finally:
        server.run(f"systemctl start {PORTAL_UNITS}")


@both_protocols
def test_expiry_ends_a_tunnel_without_the_portal(
    tunnel: tuple[OfficialApp, str], server: Host, deployment: Deployment
) -> None:
    """R52, I3: the agent knows when a connection ends and needs nobody to say so."""
    app, gateway = tunnel
    server.run(f"systemctl stop {PORTAL_UNITS}")
    try:
        # An early expiry: the row gets one, and the agent is told by the usual full set.
        server.run(
            "runuser -u causeway-portal -- /opt/causeway/current/bin/python -",
            stdin=SHORTEN.replace("SECONDS", "8"),
        )
        wait_until(lambda: not app.pings(gateway), 40, "tunnel ends")
    finally:
        server.run(f"systemctl start {PORTAL_UNITS}")


#: Lets every connection end in some seconds and tells the node, as the controller would.
SHORTEN = """
from datetime import timedelta
from sqlalchemy import update
from portal_app import db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.models import Connection, Node
from portal_app.services import nodes
from portal_app.settings import Settings
settings = Settings.load()
db.connect_to(settings.database_url)
with db.transaction() as t:
    t.execute(update(Connection).values(expires_at=utc_now() + timedelta(seconds=SECONDS)))
    node = t.query(Node).one()
    t.execute(update(Node).values(generation=Node.generation + 1))
with db.transaction(read_only=True) as t:
    wanted = nodes.wanted_set(t, node.number)
Agents(settings).put_set(node, wanted)
"""


@both_protocols
def test_reboot_brings_everything_back(tunnel: tuple[OfficialApp, str], server: Host) -> None:
    """R45: peers are restored from local state; the same tunnel works again without a new connect."""
    app, gateway = tunnel
    boot_id = server.output(
        "cat /proc/sys/kernel/random/boot_id; systemctl show -p UserspaceTimestampMonotonic --value"
    )
    server.run("systemctl reboot", check=False)

    def is_back() -> bool:
        done = server.run(
            "systemctl is-system-running; systemctl show -p UserspaceTimestampMonotonic --value", check=False
        )
        return done.stdout.startswith("running") and boot_id.split()[-1] not in done.stdout

    wait_until(is_back, 90, "host is back")
    wait_until(lambda: app.pings(gateway), 90, "tunnel works again")
    assert json.loads(server.output("vpn-portal node list --json"))
