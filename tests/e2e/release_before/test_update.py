"""Two portals are updated from the release before, which ``CHANGELOG.md`` names, and nobody notices."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.ha_portal.conftest import make_app, world
from tests.e2e.ha_portal.test_updates import deploy_under_people
from tests.e2e.hosts import PROJECT, Deployment, OfficialApp, checkout, make_only_lab, read_deployment

pytestmark = pytest.mark.faults
NAME = "update"

__all__ = ["make_app", "world"]


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project as it was."""
    found = re.search(
        r"^Updates are tested from commit ([0-9a-f]{40})", (PROJECT / "CHANGELOG.md").read_text(), re.M
    )
    assert found
    with checkout(found[1], tmp_path_factory.mktemp("release") / "before") as directory:
        yield directory


@pytest.fixture(scope="module")
def deployment(release_before: Path) -> Deployment:
    """Hosts of this lab, with the release before on them."""
    make_only_lab(NAME, "lab-hosts", "TOPOLOGY=ha_portal", f"NAME={NAME}")
    before = replace(read_deployment("ha_portal", NAME), project=release_before)
    for playbook in ("init_secrets", "site"):
        done = before.playbook(playbook)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    finish = [sys.executable, "molecule/shared/lab.py", "finish", "--topology", "ha_portal", "--name", NAME]
    subprocess.run(finish, cwd=PROJECT, check=True, capture_output=True)
    return read_deployment("ha_portal", NAME)


def test_update_is_noticed_by_nobody(deployment: Deployment, make_app: Callable[[str], OfficialApp]) -> None:
    releases = {
        host.name: host.output("readlink /opt/causeway/current") for host in deployment.hosts("portals")
    }

    deploy_under_people(deployment, make_app)

    for host in deployment.hosts("portals"):
        assert host.output("readlink /opt/causeway/current") != releases[host.name]
        assert "at " in host.output("vpn-portal check | grep database")
