"""Portals are deployed one after the other, and nobody notices."""

from collections.abc import Callable

import pytest

from tests.e2e.ha_portal.world import PROFILE, Connecting, Prober, one_holder
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings

#: What apps and browsers wait for an answer at least.
PATIENCE = 5.0


def since(portal: Host) -> str:
    """Return since when the portal's processes run."""
    return portal.output("systemctl show --property=ActiveEnterTimestamp vpn-portal.service")


def deploy_under_people(
    deployment: Deployment, make_app: Callable[[str], OfficialApp], *options: str
) -> None:
    """Deploy portals that restart by it, and see that nobody notices.

    The one that has the address gives it away before it is touched; what is under way is answered.
    """
    alice, bob, admin = make_app("alice"), make_app("bob"), make_app("admin")
    pings = {}
    for app, protocol in ((bob, "udp"), (admin, "tcp")):
        got = app.do("get_config", url=deployment.portal_url, profile=PROFILE, prefer_tcp=protocol == "tcp")
        opened = app.do("up", config=got["config"], protocol=got["protocol"], transport=protocol)
        gateway = opened["gateways"][0]
        wait_until(lambda app=app, gateway=gateway: app.pings(gateway), 20, "the tunnel works")
        pings[protocol] = Pings(app, gateway, protocol)
    one_holder(deployment)
    before = {portal.name: since(portal) for portal in deployment.hosts("portals")}

    with (
        Prober(deployment, patience=PATIENCE) as prober,
        Connecting(alice, deployment.portal_url, refreshes=True) as connecting,
    ):
        wait_until(prober.answers_again, 10, "it is answered")
        done = deployment.playbook("site", "--limit", "portals", *options, log="under-people")
        connects = len(connecting.addresses)
        wait_until(lambda: len(connecting.addresses) > connects + 3, 60, "people connect")
    assert done.returncode == 0, done.stdout[-3000:]
    connects, requests = len(connecting.addresses), len(prober.requests)
    print(f"{requests} requests, the slowest {prober.slowest():.1f} s; {connects} connects")
    assert prober.failed() == 0
    assert connecting.errors == []
    for portal in deployment.hosts("portals"):
        assert since(portal) != before[portal.name]
    one_holder(deployment)
    assert {protocol: p.lost() for protocol, p in pings.items()} == {"udp": 0, "tcp": 0}


def test_changed_setting_is_deployed_and_nobody_notices(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    tags = ["--tags", "portal,web_frontend,virtual_ip"]
    deploy_under_people(deployment, make_app, *tags, "-e", "portal_name=Changed")

    for portal in deployment.hosts("portals"):
        assert "Changed" in portal.output("cat /etc/causeway/portal/settings.toml")


@pytest.mark.faults
def test_release_that_does_not_serve_stops_at_the_first_portal(deployment: Deployment) -> None:
    """The other portal is not touched and goes on: nobody notices but who runs the playbook."""
    first, second = deployment.hosts("portals")
    before = since(second)
    with Prober(deployment, patience=PATIENCE) as prober:
        wait_until(prober.answers_again, 10, "it is answered")
        # It starts, and answers nobody.
        done = deployment.playbook("site", "--limit", "portals", "-e", "portal_workers=0", log="broken")
        assert done.returncode != 0
        assert one_holder(deployment) == second.name
    assert prober.failed() == 0
    assert since(second) == before

    done = deployment.playbook("site", "--limit", "portals", log="mended")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        first.output("systemctl is-active vpn-portal.service keepalived.service nginx.service").split()
        == ["active"] * 3
    )
