"""Expiry follows the portal, and a clock that jumps does not prolong anything (R52, R61)."""

from node_agent.clock import Clock


class Host:
    def __init__(self) -> None:
        self.wall, self.elapsed = 1_000_000.0, 50.0
        self.clock = Clock(lambda: self.wall, lambda: self.elapsed)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.elapsed += seconds


def test_a_clock_set_back_does_not_set_time_back() -> None:
    host = Host()
    host.passes(10)
    host.wall -= 86_400

    assert host.clock.now() == 1_000_010


def test_a_clock_set_ahead_after_boot_is_followed() -> None:
    host = Host()
    host.wall += 500

    assert host.clock.now() == 1_000_500


def test_the_portals_time_counts_from_when_it_is_heard() -> None:
    host = Host()
    host.clock.hear(2_000_000)
    host.passes(7)
    host.wall += 86_400

    assert host.clock.now() == 2_000_007
    assert host.clock.skew_seconds == 1_000_007 + 86_400 - 2_000_007
