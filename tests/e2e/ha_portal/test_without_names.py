"""No host can resolve a name (R77)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.e2e.ha_portal.world import PROFILE, Connecting, Prober, one_holder
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until, within

RULES = "type filter hook output priority -300; meta l4proto { tcp, udp } th dport 53 drop;"
DROP = f"table inet e2e {{ chain x {{ {RULES} }}; }}"
#: Who waits for answers about names waits longer.
START_SECONDS = 10


@contextmanager
def no_names(hosts: list[Host]) -> Iterator[None]:
    """Let no question for a name leave the hosts; nobody says so."""
    for host in hosts:
        host.run(f"nft '{DROP}'")
    try:
        yield
    finally:
        for host in hosts:
            host.run("nft delete table inet e2e")


def test_names_cannot_be_resolved(deployment: Deployment, make_app: Callable[[str], OfficialApp]) -> None:
    """R77: people notice nothing, and what is restarted starts."""
    bob = make_app("bob")
    portals, nodes = deployment.hosts("portals"), deployment.hosts("nodes")
    holder = one_holder(deployment)
    other = next(portal for portal in portals if portal.name != holder)

    with (
        no_names([*portals, *nodes, *deployment.hosts("databases")]),
        Prober(deployment) as prober,
        Connecting(bob, deployment.portal_url, refreshes=True) as people,
    ):
        for host, units in (
            (other, ["vpn-portal", "vpn-portal-controller", "nginx", "keepalived"]),
            (deployment.named(holder), ["vpn-portal-controller"]),
            (nodes[0], ["vpn-node-agent"]),
        ):
            for unit in units:
                began = time.monotonic()
                host.run(f"systemctl restart {unit}.service")
                assert time.monotonic() - began <= within(START_SECONDS), f"{unit} on {host.name}"
        ready = "/etc/causeway/virtual-ip/ready"
        wait_until(lambda: other.run(ready, check=False).returncode == 0, START_SECONDS, "it can serve")
        known = len(people.addresses)
        wait_until(lambda: len(people.addresses) > known + 5, 30, "bob connects")

    assert prober.failed() == 0
    assert people.errors == []
    assert one_holder(deployment) == holder
    assert bob.do("get_config", url=deployment.portal_url, profile=PROFILE)["sign_ins"] == 1
