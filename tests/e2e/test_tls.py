"""The portal's certificate: by ACME from a real server (pebble), provided, and back to the own CA."""

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hosts import Deployment, Host, wait_until
from tests.e2e.test_deployment import changed

PEBBLE = "/root/pebble"
RENEW = "certbot renew -q --force-renewal --no-random-sleep-on-renew"
SELF_SIGNED = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"


def served_certificate(deployment: Deployment) -> bytes:
    """Return what the portal shows now, as DER; whoever signed it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name = deployment.portal_url.removeprefix("https://")
    with (
        socket.create_connection((name, 443), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        found = tls.getpeercert(binary_form=True)
    assert found
    return found


def trusted_by(deployment: Deployment, ca_file: Path) -> bool:
    """Tell whether a client that trusts only ``ca_file`` gets an answer from the portal."""
    command = ["curl", "-s", "-o", "/dev/null", "--cacert", str(ca_file), f"{deployment.portal_url}/sign-in"]
    return subprocess.run(command, check=False).returncode == 0


def provided(deployment: Deployment, directory: Path) -> tuple[Path, dict[str, str]]:
    """Make a certificate that no CA has signed; return its file, and inventory variables that provide it."""
    name = deployment.portal_url.removeprefix("https://")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(
        [*SELF_SIGNED.split(), *names, "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, {
        "vpn_portal_tls": "provided",
        "vault_portal_tls_certificate": certificate.read_text(),
        "vault_portal_tls_key": key.read_text(),
    }


@pytest.fixture
def own_certificate_afterwards(deployment: Deployment) -> Iterator[None]:
    yield
    done = deployment.playbook("portal", log="back-to-selfsigned")
    assert done.returncode == 0, done.stdout[-3000:]
    assert trusted_by(deployment, deployment.ca_file)


@pytest.fixture
def pebble(deployment: Deployment, client: Host) -> Iterator[dict[str, str]]:
    """An ACME server on the client host that fetches HTTP-01 challenges; yields inventory variables."""
    domain = deployment.portal_url.split(".", 1)[1]
    name = f"{client.name}.{domain}"
    config = {
        "listenAddress": "0.0.0.0:14000",
        "managementListenAddress": "0.0.0.0:15000",
        "certificate": f"{PEBBLE}/cert.pem",
        "privateKey": f"{PEBBLE}/key.pem",
        "httpPort": 80,
        "tlsPort": 443,
    }
    client.put({"config.json": json.dumps({"pebble": config}).encode()}, PEBBLE)
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
    client.run(f"apt-get update -qq && {install} pebble", timeout=300)
    client.run(f"{SELF_SIGNED} -subj /CN=pebble -addext subjectAltName=DNS:{name},IP:{client.address}"
               f" -keyout {PEBBLE}/key.pem -out {PEBBLE}/cert.pem")  # fmt: skip
    client.run("systemd-run --quiet --collect --unit=pebble --setenv=PEBBLE_VA_NOSLEEP=1"
               f" pebble -config {PEBBLE}/config.json")  # fmt: skip
    try:
        wait_until(
            lambda: client.run("curl -sk https://127.0.0.1:14000/dir", check=False).returncode == 0,
            20,
            "pebble",
        )
        yield {
            "vpn_portal_tls": "acme",
            "vpn_acme_directory_url": f"https://{name}:14000/dir",
            "vpn_acme_ca_file": "/usr/local/share/pebble.crt",
        }
    finally:
        client.run("systemctl stop pebble.service", check=False)


@pytest.mark.faults
def test_acme_fetches_and_renews(
    deployment: Deployment,
    server: Host,
    client: Host,
    pebble: dict[str, str],
    own_certificate_afterwards: None,
    tmp_path: Path,
) -> None:
    """H10, R67: HTTP-01 against any directory; a renewal is loaded without a run of Ansible."""
    # A pebble of an earlier run had another root and does not know the account any more.
    server.run("cd /etc/letsencrypt 2>/dev/null && rm -rf accounts archive live renewal || true")
    certificate = client.output(f"cat {PEBBLE}/cert.pem")
    server.put({"pebble.crt": certificate.encode()}, "/usr/local/share")
    root = tmp_path / "root.pem"

    first = deployment.playbook("portal", "-e", json.dumps(pebble), log="acme")

    assert first.returncode == 0, first.stdout[-3000:]
    root.write_text(client.output("curl -sk https://127.0.0.1:15000/roots/0") + "\n")
    assert trusted_by(deployment, root)
    again = deployment.playbook("portal", "-e", json.dumps(pebble), log="acme-again")
    assert set(changed(again.stdout).values()) == {0}, again.stdout[-3000:]

    before = served_certificate(deployment)
    assert server.output("systemctl is-active certbot.timer") == "active"
    # What the timer starts renews only near the end; the same program is asked to do it now.
    server.run(f"REQUESTS_CA_BUNDLE={pebble['vpn_acme_ca_file']} {RENEW}", timeout=120)
    wait_until(lambda: served_certificate(deployment) != before, 15, "nginx shows the renewed certificate")
    assert trusted_by(deployment, root)

    # Another server is another authority, though the certificate of the first one is still good.
    before = served_certificate(deployment)
    other = pebble | {"vpn_acme_directory_url": f"https://{client.address}:14000/dir"}
    moved = deployment.playbook("portal", "-e", json.dumps(other), log="acme-moved")
    assert moved.returncode == 0, moved.stdout[-3000:]
    assert served_certificate(deployment) != before
    again = deployment.playbook("portal", "-e", json.dumps(other), log="acme-moved-again")
    assert set(changed(again.stdout).values()) == {0}, again.stdout[-3000:]


def test_provided_certificate_is_served(
    deployment: Deployment, own_certificate_afterwards: None, tmp_path: Path
) -> None:
    certificate, given = provided(deployment, tmp_path)
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps(given))

    done = deployment.playbook("portal", "--tags", "web_frontend", "-e", f"@{variables}", log="provided")

    assert done.returncode == 0, done.stdout[-3000:]
    assert trusted_by(deployment, certificate)
    assert given["vault_portal_tls_key"].splitlines()[1] not in done.stdout
