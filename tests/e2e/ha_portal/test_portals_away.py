"""Both portals are down for ten minutes."""

from collections.abc import Callable

import pytest

from tests.e2e.hosts import OfficialApp
from tests.e2e.multi_node.world import World
from tests.e2e.portals_away import live_without_portals


@pytest.mark.faults
def test_both_portals_are_away_for_ten_minutes(world: World, make_app: Callable[..., OfficialApp]) -> None:
    live_without_portals(world, make_app, ("n1", "n2"), seconds=600)
