"""Sessions when two things happen at once."""

import asyncio
from collections.abc import Iterator
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
