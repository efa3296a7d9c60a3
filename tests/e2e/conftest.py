"""One deployed single host and its client host for all end-to-end tests."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hosts import PROJECT, Deployment, Host, OfficialApp, read_deployment

CLIENT_PACKAGES = "ca-certificates iproute2 iputils-ping openvpn wireguard-go wireguard-tools curl nmap"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    """Bring the lab up and converge it by the command that people use.

    With ``CAUSEWAY_LAB_AS_IT_IS=single_host``, or another instance's name, its hosts are taken as they
    stand, for those who write tests.
    """
    name = "single_host"
    if as_it_is := os.environ.get("CAUSEWAY_LAB_AS_IT_IS"):
        return read_deployment(name, as_it_is)
    log = PROJECT / ".lab" / "make-lab.log"
    log.parent.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    with log.open("w") as output:
        done = subprocess.run(
            ["make", "lab", "TOPOLOGY=single_host"],
            cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=1800, env=environment,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-4000:]
    return read_deployment(name)


@pytest.fixture(scope="session")
def server(deployment: Deployment) -> Host:
    """The single host: portal and node."""
    return deployment.host("portals")


@pytest.fixture(scope="session")
def client(deployment: Deployment) -> Host:
    """The client host with the official library, our browser, and the portal's CA in the system's store."""
    host = deployment.host("clients")
    host.put({"causeway-lab.crt": deployment.ca_file.read_bytes()}, "/usr/local/share/ca-certificates")
    if host.run(f"dpkg -s {CLIENT_PACKAGES}", check=False).returncode != 0:
        install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
        host.run(f"apt-get update -qq && {install} {CLIENT_PACKAGES}", timeout=300)
    host.run("update-ca-certificates")
    library = importlib.util.find_spec("eduvpn_common")
    assert library is not None
    assert library.origin is not None
    root = Path(library.origin).parent
    files = {f"eduvpn_common/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*") if p.is_file()}
    files["official_app.py"] = (PROJECT / "tests/e2e/official_app.py").read_bytes()
    # Only the modules without dependencies: importing the portal's package itself would need Flask.
    files |= {"portal_app/__init__.py": b"", "portal_app/verification/__init__.py": b""}
    for module in ("browser", "tunnel", "resolver"):
        path = PROJECT / f"portal_app/verification/{module}.py"
        files[f"portal_app/verification/{module}.py"] = path.read_bytes()
    host.put(files, "/opt/e2e")
    return host


@pytest.fixture
def app(client: Host) -> Iterator[OfficialApp]:
    """The official app on the client host, with nobody signed in."""
    opened = OfficialApp(client)
    yield opened
    opened.close()
