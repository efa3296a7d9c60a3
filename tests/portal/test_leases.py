"""Addresses: constant steps, no two owners, none lost (reliability.md I1, R31, R33, R34)."""

import random
import threading
import time
from collections import Counter
from statistics import quantiles

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, event, select, update

from portal_app import db as database_module
from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import NoCapacity
from portal_app.models import AddressUse, Base, Connection, FreeAddress, Node, Offer
from portal_app.services import connections, leases, nodes
from portal_app.services.choice import choose
from portal_app.statements import Statement, run, run_together
from tests.portal.app_user import VpnApp, add_user, public_key
from tests.portal.conftest import apply_plan, seen_up
from tests.portal.waiting import wait_until

CAPACITY = 4


def set_capacity(capacity: int) -> None:
    with transaction() as db:
        db.execute(update(Offer).values(capacity=capacity))


def wanted(key: str | None = None) -> connections.Wanted:
    return connections.Wanted("lab", key or public_key(), frozenset({"wireguard+udp"}))


class Addresses(RuleBasedStateMachine):
    """Two nodes with few addresses; whatever happens, each address has one owner or waits."""

    @initialize()
    def begin(self) -> None:
        with transaction() as db:
            for table in (AddressUse, Connection, FreeAddress):
                db.execute(delete(table))
            db.execute(update(Offer).values(next_position=0, allocated=0, capacity=CAPACITY))
        self.held: dict[int, set[int]] = {0: set(), 1: set()}
        self.waiting: dict[int, list[int]] = {0: [], 1: []}
        self.fresh = {0: 0, 1: 0}

    @rule(number=st.sampled_from([0, 1]))
    def take(self, number: int) -> None:
        with transaction() as db:
            nodes.lock(db, {number})
            lease = leases.take(db, number, "lab")
        if lease is None:
            assert len(self.held[number]) == CAPACITY
            return
        assert lease.position not in self.held[number]
        if self.fresh[number] < CAPACITY:
            assert lease.position == self.fresh[number]
            self.fresh[number] += 1
        else:
            assert lease.position == self.waiting[number].pop(0), "the longest waiting comes first"
        self.held[number].add(lease.position)

    @rule(number=st.sampled_from([0, 1]), data=st.data())
    def give_back(self, number: int, data: st.DataObject) -> None:
        if not self.held[number]:
            return
        position = data.draw(st.sampled_from(sorted(self.held[number])))
        with transaction() as db:
            nodes.lock(db, {number})
            run_together(db, list(leases.giving_back([leases.Returned(number, "lab", position, utc_now())])))
        self.held[number].remove(position)
        self.waiting[number].append(position)

    @invariant()
    def counters_tell_the_truth(self) -> None:
        with transaction(read_only=True) as db:
            for number in (0, 1):
                offer = db.get_one(Offer, (number, "lab"))
                assert offer.allocated == len(self.held[number])
                waiting = db.scalars(
                    select(FreeAddress.position)
                    .where(FreeAddress.node_number == number)
                    .order_by(FreeAddress.id)
                ).all()
                assert list(waiting) == self.waiting[number]


def test_every_address_has_one_owner_or_waits(app):
    """I1, with any sequence of takes and returns."""
    apply_plan({0: "127.1.1.1", 1: "127.1.1.2"})
    run_state_machine_as_test(
        Addresses,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def at_once(calls):
    barrier = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(index, call):
        barrier.wait()
        try:
            results[index] = call()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def connect_in(app, user, key=None):
    holder = connections.Holder(
        user.id, user.name, [], "org.eduvpn.app.linux", None, utc_now().replace(year=2100)
    )

    def call():
        with app.app_context():
            return connections.connect(holder, wanted(key), now=utc_now())

    return call


def test_as_many_winners_as_addresses(make_nodes, app):
    """R34: 32 callers for 10 addresses on two nodes."""
    make_nodes(2)
    set_capacity(5)
    users = [add_user(f"user{number}") for number in range(32)]

    results = at_once([connect_in(app, user) for user in users])

    won = [r for r in results if isinstance(r, connections.Issued)]
    lost = [r for r in results if not isinstance(r, connections.Issued)]
    assert len(won) == 10
    assert all(isinstance(r, NoCapacity) and "no capacity" in str(r) for r in lost), lost
    with transaction(read_only=True) as db:
        owners = Counter(map(tuple, db.execute(select(Connection.node_number, Connection.ipv4))))
        assert set(owners.values()) == {1}
        assert set(db.scalars(select(Offer.allocated).where(Offer.profile_id == "lab"))) == {5}


@pytest.mark.parametrize("database", ["sqlite"])
def test_fifty_writers_at_once_on_sqlite(node, app):
    """R31: none fails, and 99 % are over within 3 s."""
    users = [add_user(f"user{number}") for number in range(50)]
    took = []

    def timed(connect):
        def call():
            begin = time.monotonic()
            try:
                return connect()
            finally:
                took.append(time.monotonic() - begin)

        return call

    results = at_once([timed(connect_in(app, user)) for user in users])

    assert [r for r in results if not isinstance(r, connections.Issued)] == []
    assert len(node.peers) == 50
    assert quantiles(took, n=100, method="inclusive")[-1] <= 3


def test_device_limit_holds_under_parallel_connects(node, app, make_app_user):
    """R40"""
    first = make_app_user()
    devices = [VpnApp(app, first.user).authorize() for _ in range(8)]

    responses = at_once([device.connect for device in devices])

    assert {r.status_code for r in responses} <= {200, 409}
    with transaction(read_only=True) as db:
        living = set(db.scalars(select(Connection.id)))
    assert len(living) == 3
    wait_until(lambda: node.peers == living)


def test_several_connects_of_one_authorization_leave_one(node, app, make_app_user):
    """R35, I5"""
    first = make_app_user()
    copies = [VpnApp(app, first.user, tokens=first.tokens) for _ in range(6)]

    responses = at_once([copy.connect for copy in copies])

    assert {r.status_code for r in responses} <= {200, 409}
    with transaction(read_only=True) as db:
        living = set(db.scalars(select(Connection.id)))
    assert len(living) == 1
    wait_until(lambda: node.peers == living, seconds=5)


def test_nothing_survives_a_revocation_that_races_with_connects(node, app, make_app_user):
    """R38, I3"""
    first = make_app_user()
    copies = [VpnApp(app, first.user, tokens=first.tokens) for _ in range(4)]

    def revoke():
        form = {"token": first.tokens["refresh_token"], "client_id": first.client_id}
        return first.http.post("/oauth/revoke", data=form)

    responses = at_once([copies[0].connect, copies[1].connect, revoke, copies[2].connect, copies[3].connect])

    assert {r.status_code for r in responses} <= {200, 401, 409}
    assert first.connect().status_code == 401
    with transaction(read_only=True) as db:
        assert db.scalars(select(Connection.id)).all() == []
    wait_until(lambda: node.peers == set())


@pytest.fixture
def statements_of(monkeypatch):
    """Count what a call sends to the database."""

    def statements_of(call) -> int:
        count = 0

        def counted(*_args):
            nonlocal count
            count += 1

        translated = Statement.text

        def counted_text(*args):
            counted()
            return translated(*args)

        event.listen(database_module.engine(), "before_cursor_execute", counted)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(Statement, "text", counted_text)
                call()
        finally:
            event.remove(database_module.engine(), "before_cursor_execute", counted)
        assert count > 5
        return count

    return statements_of


def test_connect_takes_the_same_steps_however_many_connections_there_are(node, app, statements_of):
    """I1 at constant cost: as many statements with 2,000 connections as with none."""
    connect_in(app, add_user("nobody"))()  # what is looked up once
    user = add_user("first")
    before = statements_of(connect_in(app, user))
    other = add_user("other")
    now = utc_now()
    with transaction() as db:
        row = {"user_id": other.id, "node_number": 0, "profile_id": "lab", "protocol": "wireguard"}
        row |= {"display_name": "x", "created_at": now, "expires_at": now}
        rows = [
            row
            | {"id": f"{n:032x}", "public_key": public_key(), "position": n, "generation": n}
            | {"ipv4": f"10.63.{n // 256}.{n % 256}", "ipv6": f"fd43:99::{n:x}"}
            for n in range(1000, 3000)
        ]
        db.execute(Base.metadata.tables["connections"].insert(), rows)

    assert statements_of(connect_in(app, add_user("second"))) == before
    assert before <= 16


def test_generations_of_a_node_are_handed_out_once(app):
    """The counter that decides which news is later (design.md, "Agent API")."""
    apply_plan({0: "127.1.1.1"})

    @retried
    def take():
        with transaction() as db:
            return nodes.next_generation(db, 0)

    taken = at_once([take] * 20)

    assert sorted(taken) == list(range(min(taken), min(taken) + 20))


def test_wanted_set_has_what_is_live_and_the_generation_of_the_last_change(node, app):
    users = [add_user(f"user{n}") for n in range(3)]
    issued = [connect_in(app, user)() for user in users]
    with transaction() as db:
        ended = connections.end(db, Connection.id == issued[0].connection_id, reason="test", now=utc_now())
    connections.tell(ended)

    with transaction(read_only=True) as db:
        found = nodes.wanted_set(db, 0)
        assert found.generation == db.get_one(Node, 0).generation == ended[0].cut.generation

    assert {c.connection_id for c in found.connections} == {i.connection_id for i in issued[1:]} == node.peers
    assert {c.generation for c in found.connections} < set(range(found.generation))


def test_busy_nodes_and_full_ones_are_chosen_less_often(app):
    """Weighted choice: free addresses times idle CPU."""
    apply_plan({number: f"127.1.1.{number + 1}" for number in range(3)})
    seen_up(0)
    seen_up(1, info={"rel_load_average": [90, 90, 90], "o_client_count": 0})
    seen_up(2)
    with transaction() as db:
        db.execute(update(Offer).where(Offer.node_number == 2).values(allocated=Offer.capacity - 1))
    rng, first, evenly = random.Random(1), Counter(), Counter()  # noqa: S311 - the same each time
    with transaction(read_only=True) as db:
        rows = run(db, *nodes.offering("lab"))
    for _ in range(300):
        first[choose(rows, "wireguard", utc_now(), rng=rng).candidates[0].node.number] += 1
        at_random = choose(rows, "wireguard", utc_now(), selection="random", rng=rng).candidates
        evenly[at_random[0].node.number] += 1

    assert len(at_random) == 3
    assert first[0] > 10 * first[1]
    assert first[2] < 10
    assert min(evenly[n] for n in range(3)) > 60
