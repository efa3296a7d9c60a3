"""What the wanted set becomes, whatever arrives in whatever order."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node_agent.errors import Conflict, Refused
from node_agent.store import Changed, Store
from tests.agent.conftest import AUTHORITY, peer
from vpn_core.messages import Authority, Connection, WantedSet

NOW = 1_000_000.0
LATER = 2_000_000


def entry(number: int, generation: int, **changed: object) -> Connection:
    return replace(peer(number), generation=generation, expires_at=LATER, **changed)  # type: ignore[arg-type]


def wanted(
    generation: int, *connections: Connection, authority: Authority = AUTHORITY, confirmed: bool = False
) -> WantedSet:
    return WantedSet(authority, generation, connections, confirmed)


def serves_all(_: Connection) -> str:
    return ""


def loaded(path: Path) -> Store:
    store = Store(path, serves_all)
    store.load()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wanted"


@pytest.fixture
def store(path: Path) -> Store:
    return loaded(path)


def test_an_admission_older_than_the_cut_is_refused(store: Store) -> None:
    store.admit(AUTHORITY, entry(1, 1), NOW)
    store.cut(AUTHORITY, entry(1, 1).connection_id, 2)

    with pytest.raises(Conflict, match="cut by generation 2"):
        store.admit(AUTHORITY, entry(1, 1), NOW)

    assert store.entries == {}


def test_a_cut_that_arrives_before_its_admission_wins(store: Store) -> None:
    """R54: the first admission is withdrawn, whatever is delivered first."""
    store.cut(AUTHORITY, entry(1, 1).connection_id, 2)

    with pytest.raises(Conflict):
        store.admit(AUTHORITY, entry(1, 1), NOW)


def test_a_late_cut_leaves_a_newer_admission_alone(store: Store) -> None:
    store.admit(AUTHORITY, entry(1, 5), NOW)

    assert store.cut(AUTHORITY, entry(1, 5).connection_id, 4) == Changed()

    assert len(store.entries) == 1


def test_an_admission_twice_is_once(store: Store) -> None:
    """R56."""
    store.admit(AUTHORITY, entry(1, 1), NOW)
    store.admit(AUTHORITY, entry(1, 1), NOW)

    assert list(store.entries.values()) == [entry(1, 1)]


def test_a_set_read_earlier_neither_revives_a_cut_nor_removes_a_newer_admission(store: Store) -> None:
    """R95: a paused leader wakes up."""
    old = wanted(3, entry(1, 1), entry(2, 2))
    store.admit(AUTHORITY, entry(1, 1), NOW)
    store.admit(AUTHORITY, entry(2, 2), NOW)
    store.cut(AUTHORITY, entry(1, 1).connection_id, 4)
    store.admit(AUTHORITY, entry(3, 5), NOW)

    assert store.replace(old, NOW) == Changed()

    assert set(store.entries.values()) == {entry(2, 2), entry(3, 5)}


def test_a_set_older_than_the_one_applied_changes_nothing_and_is_reported(store: Store) -> None:
    store.replace(wanted(9, entry(1, 1)), NOW)

    assert store.replace(wanted(8, entry(2, 2)), NOW) == Changed(is_old_news=True)

    assert store.problems == ["a portal sent an older set than the one applied; is its database an old copy?"]


def test_an_admission_that_a_newer_set_lacks_is_refused(store: Store) -> None:
    store.replace(wanted(9), NOW)

    with pytest.raises(Conflict):
        store.admit(AUTHORITY, entry(1, 8), NOW)


def test_another_deployment_is_held_until_confirmed(store: Store) -> None:
    """R58: a test system restored with real certificates."""
    foreign = Authority("b" * 32, 1)
    store.replace(wanted(2, entry(1, 1)), NOW)

    with pytest.raises(Conflict, match="held"):
        store.replace(wanted(9, entry(2, 1), authority=foreign), NOW)
    with pytest.raises(Conflict, match="held"):
        store.admit(foreign, entry(2, 9), NOW)
    with pytest.raises(Conflict, match="held"):
        store.cut(foreign, entry(1, 1).connection_id, 9)
    assert "bbbbbbbb" in store.held
    assert list(store.entries.values()) == [entry(1, 1)]

    store.replace(wanted(9, entry(2, 1), authority=foreign, confirmed=True), NOW)

    assert list(store.entries.values()) == [entry(2, 1)]
    assert store.held == ""


def test_an_older_epoch_is_held(store: Store) -> None:
    store.replace(wanted(2, entry(1, 1), authority=replace(AUTHORITY, epoch=2)), NOW)

    with pytest.raises(Conflict, match="epoch 1 is older than 2"):
        store.replace(wanted(3), NOW)


def test_a_newer_epoch_is_the_new_truth_though_generations_go_backwards(store: Store) -> None:
    """R59: the database was restored from yesterday."""
    store.replace(wanted(90, entry(1, 1), entry(2, 80)), NOW)
    store.cut(AUTHORITY, entry(3, 3).connection_id, 91)
    restored = replace(AUTHORITY, epoch=2)

    store.replace(wanted(5, entry(1, 1), entry(3, 3), authority=restored), NOW)

    assert set(store.entries.values()) == {entry(1, 1), entry(3, 3)}
    assert store.generation == 5


def test_a_late_message_of_an_older_epoch_does_not_keep_the_node_held(store: Store) -> None:
    """R59: what was under way when the database was restored arrives after the new epoch's first set."""
    newer = replace(AUTHORITY, epoch=2)
    store.replace(wanted(5, authority=newer), NOW)
    with pytest.raises(Conflict, match="epoch 1 is older than 2"):
        store.admit(AUTHORITY, entry(1, 4), NOW)
    assert store.held

    store.replace(wanted(5, authority=newer), NOW)

    assert store.held == ""


def test_a_foreign_deployment_stays_held_whatever_the_own_one_says(store: Store) -> None:
    """R58: the operator is to see it."""
    store.replace(wanted(5), NOW)
    with pytest.raises(Conflict, match="held"):
        store.admit(Authority("b" * 32, 1), entry(1, 4), NOW)

    store.replace(wanted(6), NOW)

    assert "bbbbbbbb" in store.held


def test_a_set_that_removes_most_peers_is_held_until_accepted(store: Store) -> None:
    """R58: an empty database."""
    store.replace(wanted(10, *(entry(n, n) for n in range(1, 11))), NOW)

    with pytest.raises(Conflict, match="would remove 10 of 10"):
        store.replace(wanted(11), NOW)
    assert len(store.entries) == 10
    assert store.held

    changed = store.accept(NOW)

    assert changed is not None
    assert len(changed.removed) == 10
    assert store.held == ""
    assert store.accept(NOW) is None


@pytest.mark.parametrize(
    ("live", "removed", "held"), [(4, 4, True), (3, 3, False), (8, 4, False), (8, 5, True)]
)
def test_more_than_half_and_more_than_three_is_mass_removal(
    store: Store, live: int, removed: int, held: bool
) -> None:
    store.replace(wanted(20, *(entry(n, n) for n in range(1, live + 1))), NOW)
    rest = wanted(21, *(entry(n, n) for n in range(removed + 1, live + 1)))

    if held:
        with pytest.raises(Conflict):
            store.replace(rest, NOW)
    else:
        store.replace(rest, NOW)

    assert len(store.entries) == (live if held else live - removed)


def test_peers_on_the_interface_count_as_live_while_the_own_set_is_not_known(store: Store) -> None:
    """R57 with R58: the state is lost and the first thing heard is an empty set."""
    with pytest.raises(Conflict, match="would remove 10 of 10"):
        store.replace(wanted(11), NOW, observed={str(n) for n in range(10)})


def test_what_this_node_does_not_serve_is_refused_and_left_out_of_a_set(path: Path) -> None:
    store = Store(path, lambda c: "elsewhere" if c.connection_id == entry(2, 1).connection_id else "")

    with pytest.raises(Refused, match="elsewhere"):
        store.admit(AUTHORITY, entry(2, 2), NOW)
    store.replace(wanted(3, entry(1, 1), entry(2, 2)), NOW)

    assert list(store.entries.values()) == [entry(1, 1)]
    assert store.problems == ["1 connections of the last set are not served by this node"]


def test_an_address_or_key_has_one_owner_the_newest(store: Store) -> None:
    """I1."""
    store.admit(AUTHORITY, entry(1, 1), NOW)
    same_address = entry(2, 2, ipv4=entry(1, 1).ipv4)
    same_key = entry(3, 3, public_key=entry(2, 2).public_key)

    assert store.admit(AUTHORITY, same_address, NOW) == Changed([entry(1, 1)], [same_address])
    assert store.admit(AUTHORITY, same_key, NOW) == Changed([same_address], [same_key])
    with pytest.raises(Conflict):
        store.admit(AUTHORITY, entry(1, 1), NOW)

    assert list(store.entries.values()) == [same_key]


def test_what_expires_goes_without_a_portal(store: Store) -> None:
    """R52."""
    store.admit(AUTHORITY, replace(entry(1, 1), expires_at=int(NOW) + 10), NOW)
    store.admit(AUTHORITY, replace(entry(2, 2), expires_at=int(NOW) + 20), NOW)

    assert store.expire(NOW + 9) == []
    assert [c.connection_id for c in store.expire(NOW + 10)] == [entry(1, 1).connection_id]
    assert list(store.entries) == [entry(2, 2).connection_id]
    with pytest.raises(Refused, match="expired"):
        store.admit(AUTHORITY, replace(entry(3, 3), expires_at=int(NOW)), NOW)


async def test_everything_survives_a_restart(path: Path) -> None:
    store = loaded(path)
    store.replace(wanted(3, entry(1, 1), entry(2, 2)), NOW)
    await store.flush()
    store.admit(AUTHORITY, entry(4, 4), NOW)
    store.cut(AUTHORITY, entry(2, 2).connection_id, 5)
    store.set_maintenance(True)
    assert await store.flush()

    again = loaded(path)

    assert set(again.entries.values()) == {entry(1, 1), entry(4, 4)}
    assert (again.authority, again.generation, again.maintenance) == (AUTHORITY, 5, True)
    assert again.known
    assert again.problems == []
    with pytest.raises(Conflict):
        again.admit(AUTHORITY, entry(2, 2), NOW)


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "flipped"])
async def test_a_damaged_file_means_that_nothing_is_known_and_says_so(path: Path, damage: str) -> None:
    """R57."""
    store = loaded(path)
    store.replace(wanted(9, *(entry(n, n) for n in range(1, 9))), NOW)
    await store.flush()
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"\x00\xff garbage\n" * 9,
            "half": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        }[damage]
    )

    again = loaded(path)

    assert not again.known
    assert set(again.entries) == again.unsure
    assert "nothing is removed" in again.problems[0]
    assert path.with_name("wanted.damaged").exists()
    await again.flush()
    # However often the agent starts before a portal speaks.
    for _ in range(2):
        later = loaded(path)
        assert not later.known
        assert later.unsure == set(later.entries) == again.unsure
        await later.flush()
    again.replace(wanted(9, *(entry(n, n) for n in range(1, 9))), NOW)
    assert again.known
    assert again.problems == []
    assert len(again.entries) == 8


async def test_a_line_cut_short_by_a_crash_costs_only_that_line(path: Path) -> None:
    store = loaded(path)
    store.replace(wanted(1, entry(1, 1)), NOW)
    await store.flush()
    with path.open("ab") as file:
        file.write(b'0badc0de {"op":"admit","conn')

    again = loaded(path)

    assert again.known
    assert list(again.entries.values()) == [entry(1, 1)]


async def test_an_admission_appends_one_line_whatever_the_size(path: Path) -> None:
    store = loaded(path)
    store.replace(wanted(3000, *(entry(n, n) for n in range(1, 3001))), NOW)
    await store.flush()
    before = path.stat()

    store.admit(AUTHORITY, entry(4000, 4000), NOW)
    await store.flush()

    after = path.stat()
    assert after.st_ino == before.st_ino
    assert after.st_size - before.st_size < 1000


async def test_a_long_history_is_rewritten(path: Path) -> None:
    store = loaded(path)
    for generation in range(1, 6002, 2):
        store.admit(AUTHORITY, entry(1, generation), NOW)
        store.cut(AUTHORITY, entry(1, 1).connection_id, generation + 1)
        if generation % 1001 == 0:
            await store.flush()
    await store.flush()
    await store.flush()

    assert len(path.read_bytes().splitlines()) < 2100
    assert loaded(path).generation == 6002


class Deliveries(RuleBasedStateMachine):
    """A portal's history, delivered late, doubled, out of order, and to an agent that restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "wanted"
        self.store = loaded(self.path)
        self.generation = 0
        self.rows: dict[int, Connection] = {}
        self.messages: list[tuple[str, object]] = []
        self.full: WantedSet | None = None
        self.news: dict[str, tuple[int, Connection | None]] = {}

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(number=st.integers(1, 5))
    def portal_admits(self, number: int) -> None:
        if number not in self.rows:
            self.generation += 1
            self.rows[number] = entry(number, self.generation)
            self.messages.append(("admit", self.rows[number]))

    @rule(number=st.integers(1, 5))
    def portal_cuts(self, number: int) -> None:
        if number in self.rows:
            self.generation += 1
            self.messages.append(("cut", (self.rows.pop(number).connection_id, self.generation)))

    @rule()
    def controller_reads_the_set(self) -> None:
        self.messages.append(("set", wanted(self.generation, *self.rows.values(), confirmed=True)))

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def something_arrives(self, data: st.DataObject) -> None:
        kind, message = data.draw(st.sampled_from(self.messages) | st.sampled_from(self.messages[-4:]))
        try:
            if isinstance(message, Connection):
                self._remember(message.connection_id, message.generation, message)
                self.store.admit(AUTHORITY, message, NOW)
            elif isinstance(message, WantedSet):
                if self.full is None or message.generation >= self.full.generation:
                    self.full = message
                self.store.replace(message, NOW)
            elif isinstance(message, tuple):
                self._remember(message[0], message[1], None)
                self.store.cut(AUTHORITY, *message)
        except Conflict:
            assert kind == "admit"

    def _remember(self, connection_id: str, generation: int, what: Connection | None) -> None:
        if generation > self.news.get(connection_id, (0, None))[0]:
            self.news[connection_id] = (generation, what)

    @rule(torn=st.booleans())
    def agent_restarts(self, torn: bool) -> None:
        assert asyncio.run(self.store.flush())
        if torn:
            with self.path.open("ab") as file:
                file.write(b"00")
        self.store = loaded(self.path)

    @invariant()
    def the_newest_news_about_each_connection_holds(self) -> None:
        expected: dict[str, Connection] = {}
        decided = -1
        if self.full is not None:
            decided = self.full.generation
            expected = {c.connection_id: c for c in self.full.connections}
        for connection_id, (generation, what) in self.news.items():
            if generation > decided:
                expected.pop(connection_id, None)
                if what is not None:
                    expected[connection_id] = what
        assert self.store.entries == expected
        assert self.store.known == (self.full is not None)


Deliveries.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestDeliveries = Deliveries.TestCase


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from(["admit", "set", "cut"])), max_size=30
    )
)
def test_no_two_connections_ever_share_an_address_or_a_key(arrivals: list[tuple[int, int, str]]) -> None:
    """I1: also when a portal's messages contradict each other."""
    with tempfile.TemporaryDirectory() as directory:
        store = loaded(Path(directory) / "wanted")
        history: list[Connection] = []
        for generation, (number, address, kind) in enumerate(arrivals, 1):
            connection = entry(number, generation, ipv4=entry(address, 1).ipv4, ipv6=entry(address, 1).ipv6)
            history.append(connection)
            try:
                if kind == "admit":
                    store.admit(AUTHORITY, connection, NOW)
                elif kind == "cut":
                    store.cut(AUTHORITY, connection.connection_id, generation)
                else:
                    newest = {c.connection_id: c for c in history}
                    store.replace(wanted(generation, *newest.values(), confirmed=True), NOW)
            except Conflict:
                pass
            for name in ("ipv4", "ipv6", "public_key"):
                values = [getattr(c, name) for c in store.entries.values()]
                assert len(values) == len(set(values))
