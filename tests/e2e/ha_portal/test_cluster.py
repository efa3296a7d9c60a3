"""A PostgreSQL cluster that is not of this inventory, named by ``vpn_database_url``."""

import json
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.e2e.ha_portal.world import PROFILE, primary, status
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until

pytestmark = pytest.mark.faults
URL_FILE = "/etc/causeway/portal/secrets/database.url"

#: The standby is asked first. Channel binding does not know ed25519, which our servers' certificates are of.
URL = (
    "postgresql+psycopg://causeway:{{{{ vault_portal_secret_key | vpn_database_password }}}}@/causeway"
    "?host={standby}&host={primary}&target_session_attrs=read-write&sslmode=require&channel_binding=disable"
)


@pytest.fixture
def cluster(deployment: Deployment) -> Iterator[tuple[Host, Host]]:
    """The same two servers, which the inventory knows by the URL only; the one that takes writes first."""
    first, second = primary(deployment)
    file = deployment.directory / "inventory/hosts.yml"
    before = file.read_text()
    inventory = yaml.safe_load(before)
    del inventory["all"]["children"]["databases"]
    file.write_text(yaml.safe_dump(inventory))
    url = URL.format(standby=second.address, primary=first.address)
    try:
        run(deployment, "site", "--limit", "portals,nodes", "-e", json.dumps({"vpn_database_url": url}))
        yield first, second
    finally:
        file.write_text(before)
        run(deployment, "site", "--limit", "portals", "--tags", "portal")


def run(deployment: Deployment, playbook: str, *options: str) -> None:
    done = deployment.playbook(playbook, *options, log=f"cluster-{playbook}")
    assert done.returncode == 0, done.stdout[-3000:]


def test_portals_with_a_cluster_of_others(
    deployment: Deployment, make_app: Callable[[str], OfficialApp], cluster: tuple[Host, Host]
) -> None:
    """Another server takes writes: nobody signs in again and nothing is restarted."""
    first, second = cluster
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    bob.do("get_config", **asked)
    for portal in deployment.hosts("portals"):
        assert f"host={second.address}&host={first.address}" in portal.output(f"cat {URL_FILE}")

    deployment.lab("power-off", first.name)
    second.run("runuser -u postgres -- /etc/causeway/postgresql/replication promote")
    try:
        wait_until(lambda: bob.attempt("get_config", **asked)["ok"], 5, "bob connects")
        assert bob.do("get_config", **asked)["sign_ins"] == 1
    finally:
        deployment.lab("power-on", first.name)


def test_servers_are_as_before(deployment: Deployment) -> None:
    """What the inventory names again can be made the standby again."""
    (first,) = (host for host in deployment.hosts("databases") if status(host)["role"] == "down")
    run(deployment, "standby_database", "-e", f"host={first.name}")
    primary(deployment)
