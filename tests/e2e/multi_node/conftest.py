"""One portal, three nodes, a client, and a host on the Internet, for the tests of this folder."""

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.hosts import Deployment, Host, OfficialApp, converge, prepare_client
from tests.e2e.multi_node.world import World


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    return converge("multi_node")


@pytest.fixture(scope="session")
def client(deployment: Deployment) -> Host:
    host = deployment.host("clients")
    prepare_client(host, deployment)
    return host


@pytest.fixture(scope="session")
def world(deployment: Deployment, client: Host) -> Iterator[World]:
    with World(deployment, client) as world:
        yield world


@pytest.fixture
def make_app(world: World, client: Host) -> Iterator[Callable[..., OfficialApp]]:
    """Open the official app for a user, with the server added: ``make_app("alice")``."""
    opened: list[OfficialApp] = []

    def make(user: str) -> OfficialApp:
        app = OfficialApp(client, user)
        opened.append(app)
        app.do("start", user=user, password=world.password(user))
        app.do("add_server", url=world.deployment.portal_url)
        return app

    yield make
    for app in opened:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()
