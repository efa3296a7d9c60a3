"""``make plan`` on a deployed host: what it says is what a run then does, and it changes nothing itself."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.hosts import PROJECT, Deployment, Host, OfficialApp, wait_until

#: The resolver alone reads it.
RESOLVER_FILE = "/etc/causeway/dns/dnsmasq.conf"


def make_plan(deployment: Deployment, **variables: Any) -> dict[str, Any]:
    """Run ``make plan`` as people do, with extra variables, and return what it prints for machines."""
    words = [f"INVENTORY=.lab/{deployment.name}/inventory", "JSON=1", f"ARGS=-e '{json.dumps(variables)}'"]
    environment = {k: v for k, v in deployment.environment.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-s", "plan", *words],
        cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def services(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (host,) = said["hosts"]
    return {service["unit"]: service for service in host["services"]}


def invocations(server: Host) -> dict[str, str]:
    """Return of every running service of ours which start of it this is."""
    patterns = "'causeway-*.service' 'vpn-*.service' 'openvpn-server@*.service' nginx.service ssh.service"
    said = server.output(f"systemctl show -p Id -p InvocationID --state=active {patterns}")
    blocks = (dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n"))
    return {block["Id"]: block["InvocationID"] for block in blocks}


def test_what_plan_foresees_is_what_a_run_restarts(deployment: Deployment, server: Host) -> None:
    """R84: one setting, one service; and the plan before the run changed nothing."""
    changed = {"vpn_dns_forwarders": ["198.51.100.53"]}
    text, before = server.output(f"cat {RESOLVER_FILE}"), invocations(server)
    assert {"causeway-dns.service", "causeway-wireguard.service", "vpn-portal.service"} <= before.keys()

    said = make_plan(deployment, **changed)

    assert (server.output(f"cat {RESOLVER_FILE}"), invocations(server)) == (text, before)
    try:
        done = deployment.playbook("node", "--tags", "dns_resolver", "-e", json.dumps(changed), log="planned")
        after = invocations(server)
    finally:
        deployment.playbook("node", "--tags", "dns_resolver", log="planned-back")
    assert done.returncode == 0, done.stdout[-3000:]
    foreseen = services(said)
    assert {name: s["verb"] for name, s in foreseen.items()} == {"causeway-dns.service": "restart"}
    assert foreseen.keys() == {name for name in before if after[name] != before[name]}
    assert foreseen["causeway-dns.service"]["because"] == [RESOLVER_FILE]
    assert said["hosts"][0]["files"] == {RESOLVER_FILE: "changed"}
    assert (said["changes"], said["ending"]) == ([], [])


@pytest.fixture
def alice_connected(app: OfficialApp, deployment: Deployment, server: Host) -> Iterator[None]:
    """An open OpenVPN tunnel, and the portal knows of it."""
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    got = app.do("get_config", url=deployment.portal_url, profile="legacy")
    app.do("up", config=got["config"], protocol=got["protocol"])

    def is_known() -> bool:
        (node,) = json.loads(server.output("vpn-portal status --by-node --json"))
        return any(process["connected"]["connections"] for process in node["processes"])

    wait_until(is_known, 60, "the portal knows of the session")
    yield
    app.attempt("down")
    app.attempt("disconnect")


@pytest.mark.usefixtures("alice_connected")
def test_who_is_interrupted_is_asked_of_the_portal(deployment: Deployment) -> None:
    """Logging origins is a setting of OpenVPN, which has to restart for it; WireGuard has not."""
    said = services(make_plan(deployment, vpn_log_origins=True))

    assert "causeway-wireguard.service" not in said
    legacy = [said[f"openvpn-server@legacy-{number}.service"] for number in (0, 1)]
    assert {service["verb"] for service in legacy} == {"restart"}
    assert sum(service["connected"]["connections"] for service in legacy) == 1
    assert sum(service["connected"]["users"] for service in legacy) == 1
    assert said["openvpn-server@employees-0.service"]["connected"]["connections"] == 0
