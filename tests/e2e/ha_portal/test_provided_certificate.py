"""Two portals with a certificate that the operator has, of a CA that no system knows."""

import json
from pathlib import Path

import pytest

from tests.e2e.hosts import Deployment
from tests.e2e.test_tls import provided


@pytest.mark.faults
def test_all_portals_show_it_and_it_is_trusted(deployment: Deployment, tmp_path: Path) -> None:
    """The proof of site.yml trusts it, as do the checks and what asks for keepalived who serves."""
    name = deployment.portal_url.removeprefix("https://")
    certificate, given = provided(deployment, tmp_path)
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps(given | {"vpn_portal_ca": str(certificate)}))
    try:
        done = deployment.playbook("site", "-e", f"@{variables}", log="provided")
        assert done.returncode == 0, done.stdout[-3000:]
        assert "0 failed" in done.stdout
        assert given["vault_portal_tls_key"].splitlines()[1] not in done.stdout
        for portal in deployment.hosts("portals"):
            shown = f"openssl s_client -connect {portal.address}:443 -servername {name} </dev/null"
            assert portal.output(f"{shown} 2>/dev/null | openssl x509") == certificate.read_text().strip()
            assert "PASS" in portal.output("vpn-portal check --peers")
            portal.run("/etc/causeway/virtual-ip/serves")
    finally:
        done = deployment.playbook("site", log="own-certificate-again")
    assert done.returncode == 0, done.stdout[-3000:]
