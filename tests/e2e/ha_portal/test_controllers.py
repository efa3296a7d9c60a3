"""One controller leads; whatever becomes of it, the other one goes on (R55)."""

import time
from collections.abc import Callable

import pytest

from portal_app.controller.leader import LOCK_KEY
from tests.e2e.ha_portal.world import NO_DATABASE, PROFILE, Prober, one_holder, primary, sql
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until
from tests.e2e.multi_node.world import World

UNIT = "vpn-portal-controller.service"
MAIN = f"$(systemctl show -P MainPID {UNIT})"
WITHIN_SECONDS = 10
WHAT_HAPPENS = {
    "stopped": (f"systemctl stop {UNIT}", f"systemctl start {UNIT}"),
    "frozen": (f"kill -STOP {MAIN}", f"kill -CONT {MAIN}"),
    "cut off from the databases": (f"nft '{NO_DATABASE}'", "nft delete table inet e2e"),
    "its host loses its power": (None, None),
}


def leader(deployment: Deployment, database: Host) -> str | None:
    """Return the portal whose controller has the lock."""
    asked = f"""SELECT client_addr FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND granted
        AND classid = {LOCK_KEY >> 32} AND objid = {LOCK_KEY & 0xFFFFFFFF}"""  # noqa: S608 - numbers of ours
    address = sql(database, asked)
    return next((host.name for host in deployment.hosts("portals") if host.address == address), None)


@pytest.mark.parametrize("what", WHAT_HAPPENS)
def test_leader_is_lost(
    deployment: Deployment, world: World, make_app: Callable[[str], OfficialApp], what: str
) -> None:
    """The other one leads, a node that did not hear of an end hears of it, and who ends a connection as
    soon as somebody answers is cut at once. The leader has the address, too.
    """
    alice, bob = make_app("alice"), make_app("bob")
    database, _standby = primary(deployment)
    first = one_holder(deployment)
    host = deployment.named(first)
    (other,) = (portal for portal in deployment.hosts("portals") if portal.name != first)
    other.run(f"systemctl stop {UNIT}")
    wait_until(lambda: leader(deployment, database) == first, 20, "it leads")
    other.run(f"systemctl start {UNIT}")
    # Its commands are asked from the portal that stays.
    world.portal = other
    with world.only("n1"):
        before = world.peers("n1")
        world.connect(alice, PROFILE)
        (key,) = world.peers("n1") & world.wanted("n1") - before
        of_bob = world.connect(bob, PROFILE)
        (key_of_bob,) = world.peers("n1") & world.wanted("n1") - before - {key}
    node = world.node("n1")
    break_it, mend_it = WHAT_HAPPENS[what]

    # Only a controller tells the agent: the portal that was asked found it away.
    node.run("systemctl stop vpn-node-agent")
    try:
        alice.do("disconnect")
        assert key in world.peers("n1") - world.wanted("n1")
        if break_it:
            host.run(break_it)
        else:
            deployment.lab("power-off", first)
    finally:
        node.run("systemctl start vpn-node-agent")
    began = time.monotonic()
    try:
        with Prober(deployment) as prober:
            wait_until(prober.answers_again, WITHIN_SECONDS, "somebody answers")
        assert bob.pings(of_bob["gateway"])
        # A connection to the portal that had the address is over.
        wait_until(lambda: bob.attempt("disconnect")["ok"], 2, "bob is answered")
        wait_until(lambda: key_of_bob not in world.peers("n1"), 2, "the peer is gone")
        wait_until(lambda: leader(deployment, database) == other.name, WITHIN_SECONDS, "it leads")
        print(f"{what}: the other one leads after {time.monotonic() - began:.1f} s")
        world.wait_until_in_step("n1")
        assert key not in world.peers("n1")
    finally:
        if mend_it:
            host.run(mend_it)
        else:
            deployment.lab("power-on", first)
    up = "systemctl is-active --quiet vpn-portal-controller.service"
    wait_until(lambda: host.run(up, check=False).returncode == 0, 60, "it is back")
