"""WireGuard sessions from handshakes and counters."""

from pathlib import Path
from typing import Any

import pytest

from node_agent.journal import Journal
from node_agent.sessions import WireGuardSessions
from node_agent.wireguard import Counters
from tests.agent.conftest import peer
from vpn_core.messages import Connection, SessionEvent

KEY = str(peer(1).public_key)
AT = 1_000_000


class Interface:
    """What the agent sees of one peer over time."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal(directory / "journal", 30)
        self.sessions = WireGuardSessions(self.journal, origins=True)
        self.sessions.admitted(peer(1))

    def look(self, now: int, handshake: int, received: int = 0, sent: int = 0) -> None:
        self.see(now, [peer(1)], {KEY: Counters(handshake, received, sent, "198.51.100.7")})

    def see(self, now: int, peers: list[Connection], counters: dict[str, Counters]) -> None:
        self.sessions.observe(peers, counters, now)
        self.sessions.observed({p.connection_id: p for p in peers}, counters, now)

    def restart(self) -> None:
        self.sessions = WireGuardSessions(self.journal, origins=True)

    @property
    def events(self) -> list[SessionEvent]:
        return list(self.journal._events)

    def told(self) -> list[tuple[str, int, Any, Any]]:
        return [(e.kind, e.at, e.received_bytes, e.sent_bytes) for e in self.events]


@pytest.fixture
def interface(tmp_path: Path) -> Interface:
    return Interface(tmp_path)


def test_a_session_starts_with_a_handshake_and_ends_180_seconds_after_the_last(interface: Interface) -> None:
    interface.look(AT, 0)
    interface.look(AT + 5, AT + 3, 100, 50)
    interface.look(AT + 125, AT + 123, 1000, 500)
    interface.look(AT + 302, AT + 123, 1100, 600)
    assert len(interface.events) == 1
    interface.look(AT + 303, AT + 123, 1100, 600)

    assert interface.told() == [("start", AT + 3, None, None), ("end", AT + 303, 1100, 600)]
    start, end = interface.events
    assert end.session_id == start.session_id
    assert (end.started_at, end.ipv4, end.origin) == (AT + 3, peer(1).ipv4, "198.51.100.7")


def test_the_next_session_counts_from_zero(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)
    interface.look(AT + 180, AT, 100, 50)
    interface.look(AT + 400, AT + 399, 170, 60)
    interface.look(AT + 579, AT + 399, 170, 60)

    assert interface.told()[2:] == [("start", AT + 399, None, None), ("end", AT + 579, 70, 10)]


def test_removal_ends_the_session_with_the_last_counters(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)

    interface.sessions.removed(peer(1), Counters(AT, 300, 200, None), AT + 60)

    assert interface.told()[-1] == ("end", AT + 60, 300, 200)


def test_a_session_shorter_than_the_time_between_two_looks_is_not_lost(interface: Interface) -> None:
    """I7."""
    interface.sessions.removed(peer(1), Counters(AT, 300, 200, "198.51.100.7"), AT + 2)

    assert interface.told() == [("start", AT, None, None), ("end", AT + 2, 300, 200)]


def test_a_restarted_agent_goes_on_with_the_session(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)
    interface.restart()
    interface.look(AT + 100, AT + 90, 900, 60)
    interface.look(AT + 270, AT + 90, 900, 60)

    assert interface.told() == [("start", AT, None, None), ("end", AT + 270, 900, 60)]


def test_a_recreated_interface_does_not_end_the_session_of_a_client_that_comes_back(
    interface: Interface,
) -> None:
    interface.look(AT, AT, 100, 50)
    interface.look(AT + 5, 0, 0, 0)
    interface.look(AT + 10, AT + 8, 30, 20)
    interface.look(AT + 188, AT + 8, 30, 20)

    assert interface.told() == [("start", AT, None, None), ("end", AT + 188, 130, 70)]


def test_sessions_that_passed_while_the_agent_was_away_are_told_apart(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)
    interface.restart()
    interface.look(AT + 1000, AT + 990, 400, 90)

    assert [(kind, at) for kind, at, _, _ in interface.told()] == [
        ("start", AT),
        ("end", AT + 180),
        ("start", AT + 990),
    ]


def test_what_passes_after_the_silence_counts_for_the_new_session(interface: Interface) -> None:
    """The handshake came between the last look before the silence was long enough and this one."""
    interface.look(AT, AT, 100, 50)
    interface.look(AT + 179, AT, 100, 50)
    interface.look(AT + 184, AT + 182, 170, 60)
    interface.look(AT + 362, AT + 182, 170, 60)

    assert interface.told()[1:] == [
        ("end", AT + 180, 100, 50),
        ("start", AT + 182, None, None),
        ("end", AT + 362, 70, 10),
    ]


def test_removal_after_a_silence_ends_two_sessions(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)
    interface.restart()

    interface.sessions.removed(peer(1), Counters(AT + 300, 170, 60, None), AT + 310)

    assert interface.told()[1:] == [
        ("end", AT + 180, 100, 50),
        ("start", AT + 300, None, None),
        ("end", AT + 310, 70, 10),
    ]


def test_removal_long_after_the_last_handshake_ends_the_session_then(
    interface: Interface,
) -> None:
    interface.look(AT, AT, 100, 50)
    interface.restart()

    interface.sessions.removed(peer(1), Counters(AT, 120, 50, None), AT + 300)

    assert interface.told()[1:] == [("end", AT + 180, 120, 50)]


def test_a_peer_removed_while_the_agent_was_away_has_its_session_ended(interface: Interface) -> None:
    interface.look(AT, AT, 100, 50)
    interface.restart()

    interface.see(AT + 1000, [], {})

    assert interface.told()[-1] == ("end", AT + 180, 100, 50)


def test_a_handshake_from_the_future_counts_as_now(interface: Interface) -> None:
    interface.look(AT, AT + 5000, 100, 50)

    assert interface.told() == [("start", AT, None, None)]


def test_bytes_of_a_peer_that_the_last_look_did_not_see_count_from_zero(interface: Interface) -> None:
    interface.see(AT, [peer(1)], {})

    interface.sessions.removed(peer(1), Counters(AT + 1, 300, 200, None), AT + 2)

    assert interface.told()[-1] == ("end", AT + 2, 300, 200)
