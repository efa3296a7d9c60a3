"""The deployment itself: repeatable, honest in check mode, silent about secrets, sandboxed."""

import json
import re
import ssl
import subprocess

import pytest

from portal_app.verification.browser import App, Browser
from portal_app.verification.tunnel import new_wireguard_key
from tests.e2e.disclosure import disclosed, secrets_of
from tests.e2e.hosts import PROJECT, Deployment, Host

WELL_KNOWN = "/.well-known/vpn-user-portal"

#: reliability.md H1: exposure scores at most, as `systemd-analyze security` gives them.
EXPOSURE = {
    "vpn-portal.service": 2.0,
    "vpn-portal-controller.service": 2.0,
    "vpn-node-agent.service": 2.5,
    "nginx.service": 4.0,
    "openvpn-server@legacy-0.service": 5.0,
}


def changed(output: str) -> dict[str, int]:
    """Return ``changed`` of each host in a play recap."""
    recap = output.split("PLAY RECAP")[-1]
    return {
        name: int(count) for name, count in re.findall(r"^(\S+)\s+:.*?changed=(\d+)", recap, re.MULTILINE)
    }


def test_second_run_changes_nothing(deployment: Deployment, server: Host) -> None:
    """R83: no change and no restart."""
    units = " ".join(EXPOSURE)
    before = server.output(f"systemctl show -p InvocationID --value {units}")
    done = deployment.playbook("site", log="second-run")
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout
    assert server.output(f"systemctl show -p InvocationID --value {units}") == before


@pytest.fixture(scope="module")
def checked(deployment: Deployment) -> str:
    """What a run in check mode prints that says all it can."""
    done = deployment.playbook("site", "--check", "--diff", "-vvv", log="check-mode")
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_check_mode_on_a_deployed_host_changes_nothing(checked: str) -> None:
    """R84."""
    assert set(changed(checked).values()) == {0}, checked[-3000:]
    assert "Nothing changes.\n\nCapacity" in checked
    assert "unknown" not in checked.split("Capacity")[1]


@pytest.mark.parametrize(
    ("playbook", "words"),
    [("node", ["--limit", "vpn1"]), ("site", ["--tags", "firewall"]), ("portal", ["--tags", "web_frontend"])],
)
def test_a_part_can_be_deployed_alone(deployment: Deployment, playbook: str, words: list[str]) -> None:
    done = deployment.playbook(playbook, *words, log="part")
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}, done.stdout[-3000:]


def test_check_and_status_tell_a_healthy_service(server: Host) -> None:
    server.run("vpn-portal check")
    rows = json.loads(server.output("vpn-portal status --json"))
    assert {row["profile_id"] for row in rows} == {"employees", "lab", "legacy"}
    assert server.output("vpn-portal status --alert 90") == ""


def test_a_plan_that_renumbers_is_refused_before_anything_changes(
    deployment: Deployment, server: Host
) -> None:
    """R94, R84: neither firewall nor interface knows the new range; check mode says whom it would cut."""
    app = App(deployment.portal_url, Browser(deployment.ca_file))
    app.discover()
    app.authorize("bob", deployment.passwords["bob"])
    app.connect("lab", "application/x-wireguard-profile", new_wireguard_key()[1])
    profiles = deployment.variables(server.name)["vpn_profiles"]
    profiles["lab"]["wireguard"]["ipv4"] = "10.99.0.0/20"
    moved = {"vpn_profiles": profiles}
    try:
        refused = deployment.playbook("site", "-e", json.dumps(moved), log="renumbers")
        assert refused.returncode != 0
        assert "would renumber 1 connection" in re.sub(r"\s+", " ", refused.stdout)
        assert "vpn_renumber=true" in refused.stdout
        assert set(changed(refused.stdout).values()) == {0}, refused.stdout[-3000:]

        words = ["--check", "-e", json.dumps(moved | {"vpn_renumber": True})]
        told = deployment.playbook("site", *words, log="renumbers-check")
        assert told.returncode == 0, told.stdout[-3000:]
        assert "cut 1 connection, the range moved: bob" in told.stdout
    finally:
        app.disconnect()


def test_verify_passes(deployment: Deployment, server: Host) -> None:
    done = server.run("vpn-portal verify --json", timeout=300)
    result = json.loads(done.stdout)
    assert result["passed"], result
    assert {check["name"] for check in result["checks"]} >= {
        "employees wireguard+udp", "employees openvpn+udp", "employees openvpn+tcp", "lab wireguard+udp",
        "legacy openvpn+udp", "legacy openvpn+tcp",
    }  # fmt: skip


def test_verify_leaves_nothing(server: Host) -> None:
    assert "verify-" not in server.output("vpn-portal user list --json")
    assert "causeway-verify" not in server.output("ip netns list")


def test_verify_notices_a_broken_node(server: Host) -> None:
    """The proof can fail: with the firewall closed against tunnels it says which line."""
    server.run("systemctl stop openvpn-server@legacy-1.service")
    try:
        done = server.run("vpn-portal verify --json", check=False, timeout=300)
    finally:
        server.run("systemctl start openvpn-server@legacy-1.service")
    assert done.returncode == 1
    failed = [check["name"] for check in json.loads(done.stdout)["checks"] if not check["passed"]]
    assert failed == ["legacy openvpn+tcp"]


@pytest.mark.parametrize(("unit", "most"), EXPOSURE.items())
def test_units_are_sandboxed(server: Host, unit: str, most: float) -> None:
    """H1."""
    said = server.output(f"systemd-analyze security --no-pager {unit} | tail -1")
    score = float(re.search(r"(\d+\.\d)", said).group(1))  # type: ignore[union-attr]
    assert score <= most, said


def test_services_run_as_their_own_users(server: Host) -> None:
    """H2."""
    for unit, user in (("vpn-portal", "causeway-portal"), ("vpn-node-agent", "causeway-node")):
        pid = server.output(f"systemctl show -p MainPID --value {unit}.service")
        assert server.output(f"ps -o user:20= -p {pid}") == user


def test_openvpn_writes_no_addresses_of_its_clients(server: Host) -> None:
    """P3: Debian's unit has a status file, and a log."""
    assert server.output("find /run/openvpn-server /var/log/openvpn -type f") == ""


def test_tls_is_modern(deployment: Deployment) -> None:
    """H10: 1.2 and 1.3 only, HSTS, redirect from plain HTTP."""
    host = deployment.portal_url.removeprefix("https://")
    curl = ["curl", "-s", "--cacert", str(deployment.ca_file), "-o", "/dev/null", "-D", "-"]
    for version in ("1.2", "1.3"):
        done = subprocess.run(
            [*curl, f"--tlsv{version}", "--tls-max", version, f"{deployment.portal_url}/sign-in"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "strict-transport-security: max-age=" in done.stdout.lower()
        assert re.search(r"^server: nginx\r?$", done.stdout, re.MULTILINE | re.IGNORECASE)
    plain = subprocess.run(
        [*curl, f"http://{host}/sign-in"], capture_output=True, text=True, check=True
    ).stdout
    assert "301" in plain.splitlines()[0]
    assert f"location: https://{host}/sign-in" in plain.lower()
    assert ssl.HAS_TLSv1_3


def test_well_known_is_served_by_the_web_server_alone(deployment: Deployment, server: Host) -> None:
    server.run("systemctl stop vpn-portal.service")
    try:
        done = subprocess.run(
            ["curl", "-si", "--cacert", str(deployment.ca_file), deployment.portal_url + WELL_KNOWN],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        server.run("systemctl start vpn-portal.service")
    head, body = done.stdout.replace("\r", "").split("\n\n", 1)
    assert "content-type: application/json\n" in head.lower() + "\n"
    assert "cache-control: no-store" in head.lower()
    document = json.loads(body)
    assert document["api"]["http://eduvpn.org/api#3"]["api_endpoint"] == f"{deployment.portal_url}/api/v3"
    assert isinstance(document.get("v", ""), str)


def test_files_are_compressed_and_pages_are_not(deployment: Deployment) -> None:
    """The length of a page that has a secret beside what others wrote tells nothing about it (BREACH)."""
    page = Browser(deployment.ca_file).open(deployment.portal_url + "/")
    (sheet,) = re.findall(r'rel="stylesheet" href="(/static/[^"]+)"', page.text)
    curl = ["curl", "-sSL", "--compressed", "-o", "/dev/null", "-D", "-", "--cacert", str(deployment.ca_file)]

    def encoding(path: str) -> str:
        done = subprocess.run(
            [*curl, deployment.portal_url + path], capture_output=True, text=True, check=True
        )
        return ",".join(re.findall(r"(?i)^content-encoding: (\w+)", done.stdout, re.M))

    assert [encoding(path) for path in (sheet, "/")] == ["gzip", ""]


def test_no_secret_is_world_readable(server: Host) -> None:
    """S1."""
    found = server.output(
        "find /etc/causeway /var/lib/causeway-* /etc/openvpn /etc/wireguard -type f -perm -o=r"
        " -exec grep -lE 'PRIVATE KEY|Static key|password' {} + || true"
    )
    assert found == ""


def test_no_secret_in_output_or_logs(
    deployment: Deployment, server: Host, client: Host, checked: str
) -> None:
    """S2, S3, S4: the vault's values, the accounts' passwords, the host's keys are nowhere to be read."""
    secrets = secrets_of(deployment)
    said = checked + (PROJECT / ".lab/make-lab-single_host.log").read_text()
    said += "".join(
        path.read_text(errors="replace") for path in (deployment.directory / "logs").glob("*.log")
    )
    assert [f"{secret[:4]}…" for secret in secrets if secret in said] == []
    assert disclosed(secrets, server) == []
