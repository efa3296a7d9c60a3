"""``make plan`` for several nodes: each host has its own part, and who is interrupted is counted there."""

from collections.abc import Callable

from tests.e2e.hosts import OfficialApp, wait_until
from tests.e2e.multi_node.test_topology import NODES
from tests.e2e.multi_node.world import World
from tests.e2e.test_plan import make_plan

NEW = {"openvpn-server@frankfurt-0.service", "openvpn-server@frankfurt-1.service"}


def test_plan_names_each_node_that_a_change_concerns(
    world: World, make_app: Callable[..., OfficialApp]
) -> None:
    """Logging origins restarts every OpenVPN process; a profile comes to one more node."""
    erin = make_app("erin")
    with world.only("fra1"):
        world.connect(erin, "everywhere", prefer_tcp=True)
    wait_until(lambda: world.open_sessions("fra1"), 60, "the portal knows of the session")
    given = world.deployment.variables("portal1")["vpn_profiles"]
    # In the order of the inventory: another order would be a change, too.
    profiles = {name: given[name] for name in ("everywhere", "amsterdam", "frankfurt")}
    profiles["frankfurt"]["nodes"] = NODES

    said = make_plan(world.deployment, vpn_profiles=profiles, vpn_log_origins=True)

    assert said["changes"] == ["frankfurt on ams1: offered"]
    services = {
        host["name"]: {service["unit"]: service for service in host["services"]} for host in said["hosts"]
    }
    assert services.keys() == {"portal1", *NODES}
    started = {
        name: {u for u, s in found.items() if s["verb"] == "start"} for name, found in services.items()
    }
    assert started == {"portal1": set(), "ams1": NEW, "fra1": set(), "fra2": set()}
    interrupted = {
        (name, unit): service["connected"]["connections"]
        for name, found in services.items()
        for unit, service in found.items()
        if service["verb"] == "restart" and service["connected"]
    }
    assert {key for key, count in interrupted.items() if count} == {
        ("fra1", "openvpn-server@everywhere-1.service")
    }
    assert {name for name, _ in interrupted} == set(NODES)
    places = {(row["profile"], row["node"]) for row in said["capacity"]}
    assert {("frankfurt", name) for name in NODES} <= places
