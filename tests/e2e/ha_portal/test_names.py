"""``vpn_portal_frontend: dns``: the portal's name leads to every portal, and no address is in common."""

from collections.abc import Callable

import pytest

from tests.e2e.growing.inventory import name_leads_to
from tests.e2e.ha_portal.world import PROFILE, holders, one_holder
from tests.e2e.hosts import Deployment, OfficialApp, wait_until

UP = "systemctl is-active --quiet nginx.service vpn-portal.service"


@pytest.mark.faults
def test_name_that_leads_to_both_portals(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """Whoever cannot reach one of them tries the other one, and needs no other sign-in."""
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    deploy(deployment, "-e", "vpn_portal_frontend=dns")
    try:
        assert holders(deployment) == []
        portals = deployment.hosts("portals")
        with name_leads_to(deployment, [portal.address for portal in portals]):
            for portal in portals:
                deployment.lab("power-off", portal.name)
                try:
                    # The first one may go out on a connection that the app still has to the one that is off.
                    wait_until(lambda: bob.attempt("get_config", **asked)["ok"], 30, "bob is answered")
                    assert bob.do("get_config", **asked)["sign_ins"] == 1
                finally:
                    deployment.lab("power-on", portal.name)
                wait_until(lambda host=portal: host.run(UP, check=False).returncode == 0, 60, "it is back")
    finally:
        deploy(deployment)
    one_holder(deployment)
    assert bob.do("get_config", **asked)["sign_ins"] == 1


@pytest.mark.faults
def test_release_that_does_not_serve_stops_at_the_first_portal(deployment: Deployment) -> None:
    """As with an address in common: the other one goes on."""
    first, second = deployment.hosts("portals")
    deploy(deployment, "-e", "vpn_portal_frontend=dns")
    try:
        before = second.output("systemctl show --property=ActiveEnterTimestamp vpn-portal.service")
        names = ["-e", "vpn_portal_frontend=dns", "-e", "portal_workers=0"]
        done = deployment.playbook("site", "--limit", "portals", "--tags", "portal", *names, log="names")
        assert done.returncode != 0
        assert "Wait until this portal serves" in done.stdout
        assert second.output("systemctl show --property=ActiveEnterTimestamp vpn-portal.service") == before
        assert first.run("systemctl is-active nginx.service").returncode == 0
    finally:
        deploy(deployment)
    one_holder(deployment)


def deploy(deployment: Deployment, *options: str) -> None:
    tags = ["--limit", "portals", "--tags", "portal,firewall,virtual_ip"]
    done = deployment.playbook("site", *tags, *options, log="names")
    assert done.returncode == 0, done.stdout[-3000:]
