"""After what the files before this one did to portals, databases and nodes."""

from tests.e2e.disclosure import disclosed, managed, secrets_of
from tests.e2e.hosts import Deployment


def test_no_fault_has_printed_a_secret(deployment: Deployment) -> None:
    """S2, S3, S4: not in what playbooks said, nor on any host."""
    secrets = secrets_of(deployment)
    logs = list((deployment.directory / "logs").glob("*.log"))
    said = "".join(path.read_text(errors="replace") for path in logs)
    assert [f"{secret[:4]}…" for secret in secrets if secret in said] == []
    assert disclosed(secrets, *managed(deployment)) == []
