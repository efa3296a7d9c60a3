"""Sessions and the wanted set when two things happen at once."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent import agent as agent_module
from tests.agent.conftest import AUTHORITY, peer
from tests.agent.virtual_node import BEGIN, WG_SECONDS, Node, Time
from vpn_core.messages import Connection, WantedSet

SHARE: dict[str, Any] = {
    "number": 1,
    "name": "node1",
    "openvpn": [],
    "wireguard": [
        {
            "profile_id": "employees",
            "ipv4": "10.64.0.0/17",
            "ipv6": "fd00:64::/112",
            "gateway_ipv4": "10.64.0.1",
            "gateway_ipv6": "fd00:64::1",
        }
    ],
}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node whose agent runs; nothing happens at the same time unless a test says so."""
    time = Time()
    monkeypatch.setattr(agent_module, "time", time)
    made = Node(SHARE, tmp_path / "node1", time)
    made.start()
    made.live_until(time.elapsed + 1)
    yield made
    made.crash()


def connection(number: int, **changed: Any) -> Connection:
    return peer(number, **({"expires_at": BEGIN + 100_000} | changed))


def told(node: Node) -> list[tuple[str, str, int | None]]:
    """Return kind, connection and bytes of each event."""
    return [(e.kind, e.connection_id, e.received_bytes) for e in node.agent.journal._events]


def test_a_cut_during_a_round_ends_the_session_once(node: Node) -> None:
    """R97."""
    alice = connection(1)
    node.run(node.agent.admit(AUTHORITY, alice))
    node.interface.use(str(alice.public_key), alice.connection_id, 100)

    async def while_it_looks() -> None:
        looking = asyncio.create_task(node.agent._round())
        await asyncio.sleep(WG_SECONDS / 2)
        await node.agent.cut(AUTHORITY, alice.connection_id, 2)
        await looking

    node.run(while_it_looks())

    assert told(node) == [("start", alice.connection_id, None), ("end", alice.connection_id, 100)]


def test_a_key_that_moves_to_a_new_connection_takes_no_session_along(node: Node) -> None:
    """I7, R97: the cut of the old connection was lost, the admission of the new one displaces it."""
    old = connection(1)
    new = connection(2, public_key=old.public_key)
    node.run(node.agent.admit(AUTHORITY, old))
    node.interface.use(str(old.public_key), old.connection_id, 100)
    node.live_until(node.time.elapsed + 6)

    node.run(node.agent.admit(AUTHORITY, new))
    node.live_until(node.time.elapsed + 6)
    assert told(node) == [("start", old.connection_id, None), ("end", old.connection_id, 100)]
    node.interface.use(str(new.public_key), new.connection_id, 7)
    node.run(node.agent.cut(AUTHORITY, new.connection_id, 3))

    assert told(node)[2:] == [("start", new.connection_id, None), ("end", new.connection_id, 7)]


def test_a_key_that_moves_twice_takes_no_session_along(node: Node) -> None:
    """R97: its new connection comes and goes while the peer of the old one is on its way out."""
    old = connection(1)
    new = connection(2, public_key=old.public_key)
    node.run(node.agent.admit(AUTHORITY, old))
    node.interface.use(str(old.public_key), old.connection_id, 100)
    node.live_until(node.time.elapsed + 6)

    async def at_once() -> None:
        admitting = asyncio.create_task(node.agent.admit(AUTHORITY, new))
        await asyncio.sleep(WG_SECONDS / 2)
        # What the interface has to do for somebody else keeps it waiting.
        other = asyncio.create_task(node.agent.admit(AUTHORITY, connection(3)))
        while new.connection_id not in node.agent.store.entries:
            await asyncio.sleep(WG_SECONDS / 10)
        await node.agent.cut(AUTHORITY, new.connection_id, 3)
        await asyncio.wait([admitting, other])

    node.run(at_once())

    assert told(node) == [("start", old.connection_id, None), ("end", old.connection_id, 100)]


@pytest.mark.parametrize("how", ["a set", "its expiry", "a newer connection"])
def test_a_session_shorter_than_two_looks_is_told_whatever_ends_it(node: Node, how: str) -> None:
    """R97."""
    alice = connection(1, expires_at=int(node.time.time()) + 6)
    node.run(node.agent.admit(AUTHORITY, alice))
    # One look is just over, and the next comes too late.
    node.live_until(node.time.elapsed + 5.1)
    node.interface.use(str(alice.public_key), alice.connection_id, 100)

    if how == "a set":
        node.run(node.agent.replace(WantedSet(AUTHORITY, 2, ()), node.time.time()))
    elif how == "a newer connection":
        node.run(node.agent.admit(AUTHORITY, connection(2, ipv4=alice.ipv4)))
    else:
        node.live_until(node.time.elapsed + 2)

    assert told(node) == [("start", alice.connection_id, None), ("end", alice.connection_id, 100)]


def test_usage_knows_who_came_since_the_last_round(node: Node) -> None:
    """R63: a drain asks who is there."""
    alice = connection(1)
    node.run(node.agent.admit(AUTHORITY, alice))
    node.interface.use(str(alice.public_key), alice.connection_id, 100)

    async def used() -> list[dict[str, Any]]:
        return [usage async for portion in node.agent.usage() for usage in portion]

    (usage,) = node.run(used())

    assert (usage["connection_id"], usage["active"], usage["received_bytes"]) == (
        alice.connection_id,
        True,
        100,
    )


def _be_slow(node: Node) -> None:
    """Nobody who cuts waits for another look at the interface."""
    assert node.agent.wireguard is not None
    node.agent.wireguard.look_seconds = 1.0


async def _while_a_set_is_compared(node: Node, wanted: WantedSet, other: Coroutine[Any, Any, Any]) -> None:
    """Let something come when a thread is comparing a whole set."""
    replacing = asyncio.create_task(node.agent.replace(wanted))
    await asyncio.sleep(0)
    await asyncio.gather(replacing, other)


def test_a_cut_that_comes_while_a_set_is_compared_is_not_undone(node: Node) -> None:
    """R95: the set was read before the cut."""
    alice = connection(1)
    cut = node.agent.cut(AUTHORITY, alice.connection_id, 5)

    node.run(_while_a_set_is_compared(node, WantedSet(AUTHORITY, 1, (alice,)), cut))

    node.live_until(node.time.elapsed + 6)
    assert node.agent.store.entries == {}
    assert node.interface.peers == {}


def test_an_admission_that_comes_while_a_set_is_compared_keeps_its_address(node: Node) -> None:
    """I1, R95: the set still gives it to a connection that has ended."""
    alice, bob = connection(1), connection(2, generation=5, ipv4=connection(1).ipv4)
    admission = node.agent.admit(AUTHORITY, bob)

    node.run(_while_a_set_is_compared(node, WantedSet(AUTHORITY, 1, (alice,)), admission))

    node.live_until(node.time.elapsed + 6)
    assert list(node.agent.store.entries.values()) == [bob]
    assert node.interface.peers.keys() == {bob.public_key}


def test_a_cut_that_comes_between_two_portions_of_a_set_is_not_undone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "PORTION", 1)
    alice, bob = connection(1, generation=2), connection(2, generation=1)

    async def cut_the_second() -> None:
        replacing = asyncio.create_task(node.agent.replace(WantedSet(AUTHORITY, 2, (alice, bob))))
        await asyncio.sleep(WG_SECONDS / 2)
        assert node.agent.store.entries.keys() == {alice.connection_id, bob.connection_id}
        _be_slow(node)
        await node.agent.cut(AUTHORITY, bob.connection_id, 5)
        await replacing
        # Not only after the next round.
        assert node.interface.peers.keys() == {alice.public_key}

    node.run(cut_the_second())


def test_a_cut_between_two_portions_of_a_look_ends_the_session_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R97."""
    monkeypatch.setattr(agent_module, "PORTION", 1)
    alice, bob = connection(1), connection(2)
    for one in (alice, bob):
        node.run(node.agent.admit(AUTHORITY, one))
        node.interface.use(str(one.public_key), one.connection_id, 100)
    sessions, cuts = node.agent.sessions, []
    observe = sessions.observe

    def cut_bob_after(portion: list[Connection], *arguments: Any) -> None:
        observe(portion, *arguments)
        if portion == [alice]:
            _be_slow(node)
            cuts.append(asyncio.create_task(node.agent.cut(AUTHORITY, bob.connection_id, 5)))

    monkeypatch.setattr(sessions, "observe", cut_bob_after)

    async def look() -> None:
        await node.agent._round()
        await asyncio.gather(*cuts)

    node.run(look())
    node.live_until(node.time.elapsed + 6)

    assert [event for event in told(node) if event[1] == bob.connection_id] == [
        ("start", bob.connection_id, None), ("end", bob.connection_id, 100),
    ]  # fmt: skip
