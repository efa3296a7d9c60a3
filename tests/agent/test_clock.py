"""Expiry follows the portal, and a clock that jumps does not prolong anything (R52, R61)."""

from node_agent.clock import Clock
from node_agent.wireguard import parse_dump


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


def test_a_date_has_whole_seconds_and_does_not_make_time_jitter() -> None:
    host = Host()
    host.clock.hear(2_000_000)
    host.passes(7.9)
    host.clock.hear(2_000_007)

    assert host.clock.now() == 2_000_007.9


def test_a_message_that_was_long_on_its_way_does_not_set_time_back() -> None:
    """R61: nor do two of them that arrive together."""
    host = Host()
    host.clock.hear(2_000_000)
    host.passes(60)
    host.clock.hear(2_000_010)
    host.clock.hear(2_000_010)
    host.clock.hear(2_000_040)

    assert host.clock.now() == 2_000_060


def test_a_portal_whose_clock_was_set_back_is_followed_when_it_says_so_again() -> None:
    """R61."""
    host = Host()
    host.clock.hear(2_000_000)
    host.passes(10)
    host.clock.hear(1_999_010)
    host.passes(10)
    host.clock.hear(1_999_020)

    assert host.clock.now() == 1_999_020


def test_a_late_message_and_a_timely_one_leave_no_doubt() -> None:
    host = Host()
    host.clock.hear(2_000_000)
    for now in (2_000_010, 2_000_020):
        host.passes(10)
        host.clock.hear(now - 9)
        host.clock.hear(now)

    assert host.clock.now() == 2_000_020


def test_a_restarted_agent_goes_on_with_the_portals_time() -> None:
    host = Host()
    host.clock.hear(2_000_000)
    assert host.clock.offset is not None
    host.passes(7)

    again = Clock(lambda: host.wall, lambda: host.elapsed)
    again.resume(host.clock.offset)

    assert again.now() == 2_000_007


def test_what_programs_on_the_host_say_is_turned_into_the_portals_time() -> None:
    """I7, R61: a handshake 20 s ago was 20 s ago, however wrong the host's clock is."""
    host = Host()
    host.clock.hear(2_000_000)
    dump = "private\tpublic\t51820\toff\n" + "key\t(none)\t(none)\t10.0.0.2/32\t{}\t1\t2\toff\n"

    for said, meant in ((host.wall - 20, 1_999_980), (0, 0)):
        seen = parse_dump(dump.format(int(said)), host.clock.skew_seconds)
        assert seen.counters["key"].last_handshake_at == meant
    assert host.clock.from_wall(host.wall - 20) == 1_999_980
