"""Every portal process is down for a while: what works goes on, what ends ends (R51, R52)."""

import time
from collections.abc import Callable

from tests.e2e.hosts import OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings, World

UNITS = "vpn-portal.service vpn-portal.socket vpn-portal-controller.service"
EXPIRES_SECONDS = 25
PROFILE = "everywhere"


def live_without_portals(
    world: World, make_app: Callable[..., OfficialApp], nodes: tuple[str, str], seconds: int
) -> None:
    """Tunnels pass traffic, OpenVPN reconnects, expiry happens; afterwards every session is there once."""
    alice, bob, erin = (make_app(name) for name in ("alice", "bob", "erin"))
    earlier = {name: len(world.sessions(name)) for name in ("alice", "bob", "erin")}
    with world.only(nodes[0]):
        of_alice = world.connect(alice, PROFILE)
    with world.only(nodes[1]):
        of_bob = world.connect(bob, PROFILE)
        of_erin = world.connect(erin, PROFILE, prefer_tcp=True)
    world.expire("bob", EXPIRES_SECONDS)
    pings = Pings(alice, of_alice["gateway"], "alice")
    portals = world.deployment.hosts("portals")

    for portal in portals:
        portal.run(f"systemctl stop {UNITS}")
    away_at = time.monotonic()
    try:
        reconnects = max(1, seconds // 15)
        for number in range(1, reconnects + 1):
            erin.do("down")
            erin.do("up", config=of_erin["config"], protocol="openvpn", transport="tcp")
            wait_until(lambda: erin.pings(of_erin["gateway"]), 20, "OpenVPN without a portal")
            next_at = away_at + seconds * number / reconnects
            wait_until(lambda at=next_at: time.monotonic() > at, seconds, "time passes")
        wait_until(lambda: not bob.pings(of_bob["gateway"]), EXPIRES_SECONDS + 30, "bob's time is over")
    finally:
        for portal in portals:
            portal.run(f"systemctl start {UNITS}")
    assert pings.lost() == 0
    erin.do("down")

    def told() -> bool:
        return all(s["ended"] for s in world.sessions("erin")) and all(
            s["ended"] for s in world.sessions("bob")
        )

    wait_until(told, 60, "the journals are read")
    found = {name: world.sessions(name)[count:] for name, count in earlier.items()}
    assert len(found["erin"]) == reconnects + 1
    assert len({(s["connection"], s["started"]) for s in found["erin"]}) == len(found["erin"])
    # OpenVPN tells in whole seconds when a client came.
    pairs = zip(found["erin"], found["erin"][1:], strict=False)
    assert all(a["ended"] <= b["started"] + 1 for a, b in pairs)
    assert len(found["bob"]) == 1
    (of_one,) = found["alice"]
    assert of_one["ended"] is None
