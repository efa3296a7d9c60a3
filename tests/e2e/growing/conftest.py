"""A single host and others that join it: one lab for all of this folder, in the order of the files."""

from collections.abc import Iterator

import pytest

from tests.e2e.growing.inventory import put_into_inventory
from tests.e2e.hosts import converge, prepare_client
from tests.e2e.multi_node.world import World


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    deployment = converge("growing")
    client = deployment.host("clients")
    prepare_client(client, deployment)
    with World(deployment, client) as world:
        yield world
    put_into_inventory(deployment, [])
