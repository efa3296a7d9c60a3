"""Two servers of the database: one takes writes, the other one has everything (reliability.md R24)."""

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.ha_portal.world import PROFILE, Connecting, primary, recorded, status
from tests.e2e.hosts import PROJECT, Deployment, Host, OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings

ALONE = "var/lib/postgresql/causeway/alone"


def alone_since(host: Host) -> float:
    """Return when this server wrote down that it is alone, seconds since 1970."""
    return float(host.output(f"stat -c %.Y /{ALONE}"))


def lose(deployment: Deployment, host: Host, fault: str) -> None:
    if fault == "hangs":
        host.run("pkill -STOP -u postgres -x postgres")
    else:
        deployment.lab("power-off", host.name)


def bring_back(deployment: Deployment, host: Host, fault: str) -> None:
    if fault == "hangs":
        host.run("pkill -CONT -u postgres -x postgres")
    else:
        deployment.lab("power-on", host.name)


def test_a_stranger_does_not_reach_the_database(deployment: Deployment) -> None:
    """H5: a portal does; a host that is neither portal nor server of the database does not."""

    def reaches(host: Host, server: Host, port: int) -> bool:
        probe = f"timeout 3 bash -c '</dev/tcp/{server.address}/{port}' 2>/dev/null"
        return host.run(probe, check=False).returncode == 0

    portal, stranger = deployment.host("portals"), deployment.host("clients")
    for server in deployment.hosts("databases"):
        assert reaches(portal, server, 5432), server.name
        assert reaches(stranger, server, 22), server.name
        assert not reaches(stranger, server, 5432), server.name


@pytest.mark.parametrize("fault", ["loses power", "hangs"])
def test_standby_is_lost(deployment: Deployment, make_app: Callable[[str], OfficialApp], fault: str) -> None:
    """The other one goes on without it, and waits for it again when it is back.

    What was confirmed until it had written down that it is alone would be lost with its host. The database
    cuts a wait short with a warning that says so; the portal confirms nothing then.
    """
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    first, second = primary(deployment)
    assert status(first)["waits_for_standby"]

    people = Connecting(bob, deployment.portal_url)
    with people:
        wait_until(lambda: people.moments, 10, "bob connected")
        lose(deployment, second, fault)
        lost = time.time()
        try:
            portal = deployment.host("portals")
            done = portal.run("vpn-portal node maintenance n1 off", check=False)
            ended = time.time()
            wait_until(lambda: status(first)["alone"], 30, "it goes on alone")
            alone = alone_since(first)
            wait_until(lambda: people.moments[-1] > alone, 10, "bob connects")
            assert not status(first)["waits_for_standby"]
            assert done.returncode != 0 or ended > alone, done.stdout + done.stderr
            # One answer may have been on its way, to whom asks one after the other.
            assert len([moment for moment in people.moments if lost < moment < alone]) <= 1
        finally:
            bring_back(deployment, second, fault)

    assert primary(deployment) == (first, second)
    assert status(first)["waits_for_standby"]
    assert bob.do("get_config", **asked)["sign_ins"] == 1


def test_server_that_takes_writes_loses_power(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R24, I2: the standby is promoted, nothing acknowledged is lost, the old one does not write again."""
    alice, bob = make_app("alice"), make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    got = alice.do("get_config", **asked)
    up = alice.do("up", config=got["config"], protocol=got["protocol"], transport="udp")
    (gateway, *_) = up["gateways"]
    wait_until(lambda: alice.pings(gateway), 20, "the tunnel works")
    pings = Pings(alice, gateway, "alice")
    first, second = primary(deployment)

    people = Connecting(bob, deployment.portal_url)
    with people:
        wait_until(lambda: len(people.addresses) >= 20, 30, "bob connected 20 times")
        deployment.lab("power-off", first.name)
        refused = deployment.playbook("promote_database", "-e", f"host={second.name}", log="refused")
        assert refused.returncode != 0
        assert f"{first.name} cannot be reached" in " ".join(refused.stdout.split())
        named = ["-e", f"host={second.name}", "-e", f"promote_without={first.name}"]
        done = deployment.playbook("promote_database", *named, log="promoted")
        assert done.returncode == 0, done.stdout[-3000:]
        before = len(people.addresses)
        wait_until(lambda: len(people.addresses) > before, 5, "bob connects")

    assert bob.do("get_config", **asked)["sign_ins"] == 1
    assert not Counter(people.addresses) - recorded(second, "bob")
    assert pings.lost() == 0

    # As if it had gone on alone before it was lost.
    (PROJECT / f".lab/{deployment.name}/hosts/{first.name}/root/{ALONE}").touch()
    deployment.lab("power-on", first.name)
    unit = "journalctl -q --no-pager -b -u 'postgresql@*.service'"
    says = f"{second.name} takes writes, and this server's data is older"
    wait_until(lambda: says in first.output(unit), 60, "the old one says why it stays down")
    assert (status(first)["role"], status(first)["alone"]) == ("down", False)
    assert bob.do("get_config", **asked)["sign_ins"] == 1

    done = deployment.playbook("standby_database", "-e", f"host={first.name}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert primary(deployment) == (second, first)


def test_both_lose_power(deployment: Deployment, make_app: Callable[[str], OfficialApp]) -> None:
    """R78: each waits for the other one, and the one that took writes does so again."""
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    first, second = primary(deployment)

    deployment.lab("power-off", first.name)
    deployment.lab("power-off", second.name)
    deployment.lab("power-on", first.name)
    waits = f"{second.name} does not answer"
    unit = "journalctl -q --no-pager -b -u 'postgresql@*.service'"
    try:
        wait_until(lambda: waits in first.output(unit), 60, "it waits for the other one")
        assert status(first)["role"] == "down"
    finally:
        deployment.lab("power-on", second.name)

    assert primary(deployment) == (first, second)
    assert bob.do("get_config", **asked)["sign_ins"] == 1


@pytest.mark.parametrize("unit", ["postgresql@*.service", "causeway-database-watch.service"])
def test_database_is_sandboxed(deployment: Deployment, unit: str) -> None:
    """H1"""
    listed = f"systemctl list-units -q --plain '{unit}' | cut -d' ' -f1"
    for host in deployment.hosts("databases"):
        said = host.output(f"systemd-analyze security --no-pager $({listed}) | tail -1")
        assert float(said.split(":")[1].split()[0]) <= 3.0, said
