"""Two portals behind one address, two servers of the database, two nodes, and a client host."""

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.hosts import Deployment, OfficialApp, converge, prepare_client


@pytest.fixture(scope="package")
def deployment() -> Deployment:
    return converge("ha_portal")


@pytest.fixture
def make_app(deployment: Deployment) -> Iterator[Callable[[str], OfficialApp]]:
    """Open the official app for a user, signed in: ``make_app("alice")``."""
    client = deployment.host("clients")
    prepare_client(client, deployment)
    opened: list[OfficialApp] = []

    def make(user: str) -> OfficialApp:
        app = OfficialApp(client, user)
        opened.append(app)
        app.do("start", user=user, password=deployment.passwords[user])
        app.do("add_server", url=deployment.portal_url)
        return app

    yield make
    for app in opened:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()
