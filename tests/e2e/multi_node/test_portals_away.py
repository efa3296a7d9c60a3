"""The one portal is down for a while; for ten minutes in tests/e2e/ha_portal."""

from collections.abc import Callable

import pytest

from tests.e2e.hosts import OfficialApp
from tests.e2e.multi_node.world import World
from tests.e2e.portals_away import live_without_portals


@pytest.mark.faults
def test_portal_is_away_for_a_minute(world: World, make_app: Callable[..., OfficialApp]) -> None:
    live_without_portals(world, make_app, ("ams1", "fra1"), seconds=60)
