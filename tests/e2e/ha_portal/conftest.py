"""Two portals behind one address, two servers of the database, two nodes, and a client host."""

import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.hosts import Deployment, OfficialApp, converge, prepare_client
from tests.e2e.multi_node.world import World


@pytest.fixture(scope="package")
def deployment() -> Deployment:
    return converge("ha_portal")


@pytest.fixture
def world(deployment: Deployment) -> Iterator[World]:
    client = deployment.host("clients")
    prepare_client(client, deployment)
    with World(deployment, client) as world:
        yield world


@pytest.fixture
def make_app(world: World) -> Iterator[Callable[[str], OfficialApp]]:
    """Open the official app for a user, signed in: ``make_app("alice")``."""
    opened: list[OfficialApp] = []

    def make(user: str) -> OfficialApp:
        app = OfficialApp(world.client, user)
        opened.append(app)
        app.do("start", user=user, password=world.password(user))
        app.do("add_server", url=world.deployment.portal_url)
        return app

    yield make
    for app in opened:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()


@pytest.fixture
def asked(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send each request of this process to the other portal than the one before; return which got it."""
    portals = itertools.cycle(deployment.hosts("portals"))
    got: list[str] = []
    connect = socket.create_connection

    def alternately(address: tuple[str, int], *rest: Any, **named: Any) -> socket.socket:
        portal = next(portals)
        got.append(portal.name)
        return connect((portal.address, address[1]), *rest, **named)

    monkeypatch.setattr(socket, "create_connection", alternately)
    return got
