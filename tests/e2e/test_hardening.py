"""What a deployed host refuses, and what a power cut leaves."""

import json
import subprocess
import sys
import threading

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
    assert last[0]["user"] == "bob"
    for address in answered[-20:]:
        assert json.loads(server.output(f"vpn-portal address {address} --json")), address
