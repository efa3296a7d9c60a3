"""The official client library against the deployed service, over both protocols, with traffic."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until

WAYS = [
    ("employees", False, "wireguard", "udp"),
    ("employees", True, "openvpn", "tcp"),
    ("lab", False, "wireguard", "udp"),
    ("legacy", False, "openvpn", "udp"),
    ("legacy", True, "openvpn", "tcp"),
]


@pytest.fixture
def alice(app: OfficialApp, deployment: Deployment) -> Iterator[OfficialApp]:
    """The app with the server added and alice behind it."""
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    yield app
    app.attempt("down")
    app.attempt("disconnect")


def connect(app: OfficialApp, url: str, profile: str, *, prefer_tcp: bool = False) -> dict:
    return app.do("get_config", url=url, profile=profile, prefer_tcp=prefer_tcp)


def received_bytes(server: Host) -> int:
    """Bytes that the node has received through all its tunnel devices."""
    counters = server.output(
        "cat /sys/class/net/wg0/statistics/rx_bytes /sys/class/net/tun*/statistics/rx_bytes"
    )
    return sum(map(int, counters.split()))


@pytest.mark.parametrize(("profile", "prefer_tcp", "protocol", "transport"), WAYS)
def test_each_profile_passes_traffic_over_each_protocol(
    alice: OfficialApp,
    deployment: Deployment,
    server: Host,
    profile: str,
    prefer_tcp: bool,
    protocol: str,
    transport: str,
) -> None:
    got = connect(alice, deployment.portal_url, profile, prefer_tcp=prefer_tcp)
    assert got["protocol"] == protocol
    opened = alice.do("up", config=got["config"], protocol=protocol, transport=transport)
    before = received_bytes(server)
    wait_until(lambda: alice.pings(opened["gateways"][0], opened["mtu"]), 15, "full-size ping")

    flood = ["ping", "-n", "-q", "-c", "200", "-i", "0.01", "-s", "1000", opened["gateways"][0]]
    assert " 0% packet loss" in alice.do("inside", words=flood)["output"]

    assert received_bytes(server) - before > 200 * 1000


def test_the_app_gets_what_the_inventory_says(alice: OfficialApp, deployment: Deployment) -> None:
    full = connect(alice, deployment.portal_url, "employees")
    split = connect(alice, deployment.portal_url, "lab")

    assert full["default_gateway"] is True
    assert "AllowedIPs = 0.0.0.0/0,::/0\n" in full["config"]
    assert split["default_gateway"] is False
    assert "0.0.0.0/0" not in split["config"]
    assert full["expiry"]["end_time"] - time.time() > 80 * 86400


def test_a_second_connect_kills_the_first(alice: OfficialApp, deployment: Deployment) -> None:
    first = connect(alice, deployment.portal_url, "employees")
    opened = alice.do("up", config=first["config"], protocol="wireguard")
    wait_until(lambda: alice.pings(opened["gateways"][0]), 15, "first tunnel")

    connect(alice, deployment.portal_url, "employees")

    wait_until(lambda: not alice.pings(opened["gateways"][0]), 5, "first tunnel is cut")


def test_the_app_refreshes_by_itself(alice: OfficialApp, deployment: Deployment) -> None:
    connect(alice, deployment.portal_url, "employees")
    before = alice.do("refresh_token")
    alice.do("spoil_access_token")
    alice.do("restart")

    again = connect(alice, deployment.portal_url, "employees")

    assert again["sign_ins"] == 1
    assert alice.do("refresh_token") != before


@pytest.mark.parametrize(("profile", "protocol"), [("employees", "wireguard"), ("legacy", "openvpn")])
def test_disable_cuts_within_two_seconds(
    app: OfficialApp, deployment: Deployment, server: Host, profile: str, protocol: str
) -> None:
    """I3, R38: what an admin disables passes no traffic and no API call any more."""
    app.do("start", user="bob", password=deployment.passwords["bob"])
    app.do("add_server", url=deployment.portal_url)
    got = connect(app, deployment.portal_url, profile)
    opened = app.do("up", config=got["config"], protocol=protocol)
    wait_until(lambda: app.pings(opened["gateways"][0]), 15, "tunnel")
    try:
        server.run("vpn-portal user disable bob")
        wait_until(lambda: not app.pings(opened["gateways"][0]), 2, "bob is cut")
        refused = app.attempt("get_config", url=deployment.portal_url, profile=profile)
        assert not refused["ok"]
    finally:
        server.run("vpn-portal user enable bob")
    again = connect(app, deployment.portal_url, profile)
    assert again["sign_ins"] == 2


def test_who_had_which_address_is_known(alice: OfficialApp, deployment: Deployment, server: Host) -> None:
    """I7: the connection is a row that names user and address from its first moment."""
    got = connect(alice, deployment.portal_url, "employees")
    address = next(line for line in got["config"].splitlines() if line.startswith("Address = "))
    ipv4 = address.removeprefix("Address = ").split("/")[0]

    rows = json.loads(server.output(f"vpn-portal address {ipv4} --json"))["holders"]

    assert rows[0]["user"] == "alice"
    assert rows[0]["until"] is None


def test_disconnect_ends_the_connection(alice: OfficialApp, deployment: Deployment) -> None:
    got = connect(alice, deployment.portal_url, "employees")
    opened = alice.do("up", config=got["config"], protocol="wireguard")
    wait_until(lambda: alice.pings(opened["gateways"][0]), 15, "tunnel")

    alice.do("disconnect")

    wait_until(lambda: not alice.pings(opened["gateways"][0]), 2, "tunnel is cut")
