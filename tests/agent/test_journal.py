"""Sessions reach a portal once, whatever crashes (R51, R97)."""

from pathlib import Path

import pytest

from node_agent.journal import Journal, OpenSession
from node_agent.records import RecordFile
from tests.agent.conftest import peer
from vpn_core.messages import Events


def loaded(path: Path, days: int = 30) -> Journal:
    journal = Journal(path, days)
    journal.load()
    return journal


def session(number: int, at: int = 1000) -> OpenSession:
    connection = peer(number)
    return OpenSession(
        session_id=f"{number:032x}",
        connection_id=connection.connection_id,
        profile_id="employees",
        protocol="wireguard",
        started_at=at,
        ipv4=connection.ipv4,
        ipv6=connection.ipv6,
        origin=None,
        last_at=at,
    )


def kinds(events: Events) -> list[tuple[int, str]]:
    return [(e.sequence, e.kind) for e in events.events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def test_events_are_kept_until_they_are_acknowledged(path: Path) -> None:
    journal = loaded(path)
    first = session(1)
    journal.start(peer(1), first)
    journal.end(first, 1100)
    journal.start(peer(2), session(2))
    await journal.flush()
    assert kinds(journal.read(0)) == [(1, "start"), (2, "end"), (3, "start")]

    journal.acknowledge(2)

    assert kinds(journal.read(2)) == [(3, "start")]
    assert journal.read(2).first == 3
    await journal.flush()
    again = loaded(path)
    assert kinds(again.read(0)) == [(3, "start")]
    assert again.journal_id == journal.journal_id


async def test_a_number_is_never_given_twice(path: Path) -> None:
    """Also when everything was acknowledged before the restart."""
    journal = loaded(path)
    journal.start(peer(1), session(1))
    await journal.flush()
    journal.acknowledge(1)
    await journal.flush()

    again = loaded(path)
    again.start(peer(2), session(2))
    await again.flush()

    assert kinds(again.read(1)) == [(2, "start")]
    assert again.head == 2


async def test_what_is_not_on_disk_is_not_given_out(path: Path) -> None:
    """A crash would give its number to another event."""
    journal = loaded(path)
    await journal.flush()
    journal.start(peer(1), session(1))

    assert kinds(journal.read(0)) == []
    assert journal.head == 0

    await journal.flush()
    assert kinds(journal.read(0)) == [(1, "start")]


async def test_open_sessions_survive_a_restart_with_their_counters(path: Path) -> None:
    journal = loaded(path)
    running = session(1)
    journal.start(peer(1), running)
    running.count(500, 700)
    journal.touch(running)
    journal.mark()
    await journal.flush()
    journal.acknowledge(1)
    await journal.flush()

    again = loaded(path)

    assert list(again.open.values()) == [running]


async def test_a_damaged_journal_keeps_what_is_readable_under_a_new_id(path: Path) -> None:
    journal = loaded(path)
    for number in range(1, 9):
        journal.start(peer(number), session(number))
    await journal.flush()
    data = path.read_bytes()
    spot = len(data) - 100
    path.write_bytes(data[:spot] + b"\xff" + data[spot + 1 :])

    again = loaded(path)

    assert again.journal_id != journal.journal_id
    assert [e.sequence for e in again.read(0).events] == list(range(1, 8))
    assert "sessions may be missing" in again.problems[0]


async def test_old_events_are_dropped_and_the_gap_shows(path: Path) -> None:
    journal = loaded(path, days=1)
    journal.start(peer(1), session(1, at=1000))
    journal.start(peer(2), session(2, at=80_000))
    await journal.flush()

    journal.forget_old(1000 + 86_401)

    assert journal.read(0).first == 2
    assert kinds(journal.read(0)) == [(2, "start")]


async def test_an_answer_has_a_thousand_events_at_most(path: Path) -> None:
    journal = loaded(path)
    for number in range(1, 1502):
        journal.start(peer(number), session(number))
    await journal.flush()

    assert len(journal.read(0).events) == 1000
    assert [e.sequence for e in journal.read(1000).events] == list(range(1001, 1502))


async def test_a_full_disk_delays_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R72."""
    journal = loaded(path)
    await journal.flush()

    def full(self: RecordFile, records: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "_append", full)
        patch.setattr(RecordFile, "_replace", full)
        journal.start(peer(1), session(1))
        assert not await journal.flush()
        assert journal.problems == ["cannot save journal: No space left on device"]
        assert kinds(journal.read(0)) == []

    monkeypatch.setattr("node_agent.records.RETRY_SECONDS", 0)
    assert await journal.flush()
    assert kinds(journal.read(0)) == [(1, "start")]
    assert journal.problems == []
    assert kinds(loaded(path).read(0)) == [(1, "start")]


def test_counters_that_begin_anew_are_added() -> None:
    running = session(1)

    running.count(100, 10)
    running.count(150, 20)
    running.count(30, 5)

    assert (running.received_bytes, running.sent_bytes) == (180, 25)


@pytest.mark.parametrize("lines", [1, 2])
async def test_a_session_whose_start_a_power_cut_tore_is_told_once(path: Path, lines: int) -> None:
    """R97: whichever part of the append reached the disk, the agent goes on with this session."""
    journal = loaded(path)
    await journal.flush()
    whole = path.read_bytes().count(b"\n")
    journal.start(peer(1), session(1))
    await journal.flush()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: whole + lines]))

    again = loaded(path)
    again.end(again.open[session(1).session_id], 1100)
    await again.flush()

    assert [(e.session_id, e.started_at or e.at) for e in again.read(0).events[-1:]] == [
        (session(1).session_id, 1000)
    ]
