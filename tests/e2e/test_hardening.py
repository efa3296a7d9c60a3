"""What a deployed host refuses, and what a power cut leaves."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from portal_app.verification.browser import App, Browser, VerificationError
from portal_app.verification.tunnel import new_wireguard_key
from tests.e2e.hosts import PROJECT, Deployment, Host, wait_until

SYSCTLS = {
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv4.conf.all.rp_filter": "1",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv6.conf.all.accept_redirects": "0",
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
}

INTEGRITY = """
import sqlite3
database = sqlite3.connect("/var/lib/causeway-portal/portal.sqlite")
print(database.execute("pragma integrity_check").fetchone()[0])
"""


@pytest.mark.parametrize("user", ["causeway-portal", "causeway-node", "causeway-openvpn", "www-data"])
def test_services_cannot_write_their_code_or_settings(server: Host, user: str) -> None:
    """H3."""
    places = "/opt/causeway /etc/causeway /etc/systemd/system /etc/openvpn /etc/nginx /usr/local/bin"
    found = server.output(f"runuser -u {user} -- find {places} -not -type l -writable 2>/dev/null || true")
    assert found == ""


def test_kernel_settings(server: Host) -> None:
    """H7."""
    said = server.output("sysctl -n " + " ".join(SYSCTLS)).split()
    assert dict(zip(SYSCTLS, said, strict=True)) == SYSCTLS


def test_clock_is_kept(server: Host) -> None:
    """H9. A lab host may not set its clock, so the service itself is skipped there by its own condition."""
    assert server.output("systemctl is-enabled chrony.service") == "enabled"


def test_forwarding_waits_for_the_firewall(server: Host) -> None:
    """V7: the unit that turns forwarding on has loaded the rules, before the network is up."""
    order = server.output("systemctl show -p Before --value causeway-firewall.service")
    assert "network-pre.target" in order.split()
    assert server.run("grep -rl ip_forward /etc/sysctl.d /etc/sysctl.conf", check=False).stdout in (
        "",
        "/etc/sysctl.conf\n",
    )
    assert "net.ipv4.ip_forward" not in server.output("grep -v '^#' /etc/sysctl.conf || true")


def test_ssh_takes_keys_only(server: Host) -> None:
    """H6."""
    said = server.output("sshd -T").splitlines()
    assert "passwordauthentication no" in said
    assert "kbdinteractiveauthentication no" in said


def test_ssh_offers_no_weak_algorithms(server: Host) -> None:
    """H6."""
    said = dict(line.split(" ", 1) for line in server.output("sshd -T").splitlines() if " " in line)
    for name in ("kexalgorithms", "macs", "ciphers"):
        assert said[name]
        assert not re.search(r"sha1|nistp|umac-64|group14|cbc|3des|arcfour|md5", said[name]), said[name]


@pytest.fixture(scope="module")
def openvpn_config(deployment: Deployment) -> str:
    """What bob's app gets for the profile with OpenVPN alone, over UDP."""
    app = App(deployment.portal_url, Browser(deployment.ca_file))
    app.discover()
    app.authorize("bob", deployment.passwords["bob"])
    config = app.connect("legacy", "application/x-openvpn-profile")
    return "".join(line for line in config.splitlines(keepends=True) if not line.endswith(" tcp\n"))


@pytest.mark.parametrize(
    ("change", "comes_in"),
    [
        (("", ""), True),
        (("data-ciphers AES-256-GCM:CHACHA20-POLY1305", "data-ciphers CHACHA20-POLY1305"), True),
        (("data-ciphers AES-256-GCM:CHACHA20-POLY1305", "data-ciphers AES-128-GCM:AES-256-CBC"), False),
        (("tls-version-min 1.3", "tls-version-min 1.2\ntls-version-max 1.2"), False),
        (("remote-cert-tls server", "remote-cert-tls client"), False),
        (("tls-crypt", "ignored"), False),
    ],
    ids=["as given", "second cipher", "other ciphers", "tls 1.2", "server as client", "without tls-crypt"],
)
def test_openvpn_negotiates_only_what_is_agreed(
    openvpn_config: str, tmp_path: Path, change: tuple[str, str], comes_in: bool
) -> None:
    """V5: TLS 1.3, two AEAD ciphers, tls-crypt; no compression is offered or pushed."""
    before, after = change
    config = openvpn_config.replace(before, after)
    if before == "tls-crypt":
        config = re.sub("<tls-crypt>.*</tls-crypt>\n", "", openvpn_config, flags=re.DOTALL)
    assert (config == openvpn_config) == (before == "")
    (tmp_path / "client.conf").write_text(config)
    words = ["openvpn", "--config", str(tmp_path / "client.conf"), "--dev", "null", "--ifconfig-noexec"]
    words += ["--route-noexec", "--tls-exit", "--hand-window", "4", "--connect-retry-max", "1", "--verb", "4"]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        try:
            wait_until(
                lambda: "Initialization Sequence Completed" in log.read_text() or process.poll() is not None,
                20,
                "openvpn is in or gives up",
            )
            came_in = process.poll() is None
        finally:
            process.terminate()
    said = log.read_text()
    assert came_in is comes_in, said[-2000:]
    if came_in:
        assert "Control Channel: TLSv1.3" in said
        assert re.search(r"Data Channel: cipher '(AES-256-GCM|CHACHA20-POLY1305)'", said)
        assert "comp" not in next(line for line in said.splitlines() if "PUSH_REPLY" in line)


@pytest.mark.faults
def test_power_cut_keeps_what_was_acknowledged(deployment: Deployment, server: Host) -> None:
    """R32, I2: connects run while the host loses power; the database is whole and has all answered ones.

    The machine's page cache survives this cut: it proves the order of writes, not that of a disk.
    """
    app = App(deployment.portal_url, Browser(deployment.ca_file))
    app.discover()
    app.authorize("bob", deployment.passwords["bob"])
    answered: list[str] = []
    enough = threading.Event()

    def connect() -> None:
        while True:
            try:
                config = app.connect("lab", "application/x-wireguard-profile", new_wireguard_key()[1])
            except VerificationError:
                return
            answered.append(config.split("Address = ")[1].split("/")[0])
            if len(answered) == 20:
                enough.set()

    connecting = threading.Thread(target=connect)
    connecting.start()
    assert enough.wait(30)
    lab = [sys.executable, str(PROJECT / "molecule/shared/lab.py")]
    subprocess.run(
        [*lab, "power-off", "--name", deployment.name, server.name], check=True, capture_output=True
    )
    connecting.join(60)
    subprocess.run(
        [*lab, "power-on", "--name", deployment.name, server.name], check=True, capture_output=True
    )
    wait_until(lambda: server.run("vpn-portal check", check=False).returncode == 0, 90, "service is back")

    assert server.output("runuser -u causeway-portal -- python3 -", stdin=INTEGRITY) == "ok"
    last = json.loads(server.output(f"vpn-portal address {answered[-1]} --json"))
    assert last["holders"][0]["user"] == "bob"
    for address in answered[-20:]:
        assert json.loads(server.output(f"vpn-portal address {address} --json"))["holders"], address
