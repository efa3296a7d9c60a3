"""One deployed single host and its client host for the end-to-end tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hosts import Deployment, Host, OfficialApp, converge, prepare_client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    return converge("single_host")


@pytest.fixture(scope="session")
def server(deployment: Deployment) -> Host:
    """The single host: portal and node."""
    return deployment.host("portals")


@pytest.fixture(scope="session")
def client(deployment: Deployment) -> Host:
    """The client host with the official library, our browser, and the portal's CA in the system's store."""
    host = deployment.host("clients")
    prepare_client(host, deployment)
    return host


@pytest.fixture
def app(client: Host) -> Iterator[OfficialApp]:
    """The official app on the client host, with nobody signed in."""
    opened = OfficialApp(client)
    yield opened
    opened.close()
