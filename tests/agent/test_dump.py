"""What ``wg show dump`` says, read again every few seconds."""

import asyncio

from node_agent.errors import AgentError
from node_agent.wireguard import FRESH_COUNTERS_SECONDS, Observed, WireGuard, parse_dump

OWN = "private\tpublic\t51820\toff\n"


def line(key: str, handshake: int = 0, received: int = 0, ips: str = "10.64.0.2/32") -> str:
    return f"{key}\t(none)\t198.51.100.7:4500\t{ips}\t{handshake}\t{received}\t0\toff\n"


def test_only_lines_that_changed_are_read_again() -> None:
    before = parse_dump(OWN + line("rests") + line("moves"))

    after = parse_dump(OWN + line("rests") + line("moves", 5, 9, "10.64.0.3/32"), before=before)

    assert after.counters["rests"] is before.counters["rests"]
    assert after.counters["moves"].received_bytes == 9
    assert after.counters["moves"].last_handshake_at == 5
    assert after.peers["moves"].allowed_ips == {"10.64.0.3/32"}


def test_a_peer_that_is_gone_is_forgotten() -> None:
    before = parse_dump(OWN + line("stays") + line("goes"))

    after = parse_dump(OWN + line("stays"), before=before)

    assert after.peers.keys() == after.counters.keys() == {"stays"}
    assert len(after.lines) == 1


def test_a_clock_that_was_set_is_followed_for_peers_that_rest_too() -> None:
    """R61."""
    before = parse_dump(OWN + line("rests", 1000))

    after = parse_dump(OWN + line("rests", 1000), 600.0, before)

    assert before.counters["rests"].last_handshake_at == 1000
    assert after.counters["rests"].last_handshake_at == 400


def test_callers_at_once_share_a_look_that_begins_after_they_came() -> None:
    """Each look starts a `wg`; of hundreds who cut at once each needs one that is not older than its call."""
    begun: list[int] = []

    async def many() -> None:
        wireguard, go_on = WireGuard("wg0"), asyncio.Event()

        async def look() -> Observed:
            begun.append(len(begun))
            await go_on.wait()
            return wireguard.seen

        wireguard.look = look  # type: ignore[method-assign]
        first = asyncio.create_task(wireguard.refresh_if_cheap())
        await asyncio.sleep(0)
        others = [asyncio.create_task(wireguard.refresh_if_cheap()) for _ in range(20)]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *others)
        assert len(begun) == 2
        await wireguard.refresh_if_cheap()

    asyncio.run(many())

    assert len(begun) == 3


def test_nobody_waits_for_a_second_look_at_an_interface_that_hangs() -> None:
    """Each would take as long as the first one, one after the other."""
    begun: list[int] = []

    async def many() -> None:
        wireguard = WireGuard("wg0")

        async def look() -> Observed:
            begun.append(len(begun))
            await asyncio.sleep(2 * FRESH_COUNTERS_SECONDS)
            raise AgentError("no answer")

        wireguard.look = look  # type: ignore[method-assign]
        await asyncio.gather(*(wireguard.refresh_if_cheap() for _ in range(20)))

    asyncio.run(many())

    assert len(begun) == 1
