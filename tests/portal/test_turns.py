"""Who comes first is served first (reliability.md R33)."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select

from portal_app.agents import ADMISSIONS_AT_ONCE, Admissions, Agents
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Connection, NodeStatus
from portal_app.services import connections
from portal_app.turns import Turns
from tests.portal.conftest import seen_up
from tests.portal.waiting import wait_until

MANY = 2 * ADMISSIONS_AT_ONCE


def test_turns_are_given_in_the_order_of_asking():
    turns, served = Turns(1), []
    assert turns.take(0)

    def wait(number: int) -> None:
        assert turns.take(10)
        served.append(number)
        turns.give_back()

    with ThreadPoolExecutor(5) as waiting:
        for number in range(5):
            waiting.submit(wait, number)
            wait_until(lambda number=number: turns.waiting() == number + 1)
        turns.give_back()

    assert served == list(range(5))
    assert not turns.are_taken()


def test_who_waits_is_not_overtaken():
    turns = Turns(1)
    assert turns.take(0)
    with ThreadPoolExecutor(1) as waiting:
        first = waiting.submit(turns.take, 10)
        wait_until(turns.waiting)
        turns.give_back()

        assert not turns.take(0)
        assert first.result(10)


def test_turn_that_nobody_waits_for_any_more_goes_to_the_next():
    turns = Turns(1)
    assert turns.take(0)
    assert not turns.take(0.01)

    turns.give_back()

    assert turns.take(0)


@pytest.fixture
def apps(make_app_user):
    return [make_app_user(f"user{number}") for number in range(MANY)]


@pytest.fixture
def at_agents(app, monkeypatch):
    """Who is at an agent to admit somebody; nobody gets on before ``go_on``."""
    seen = SimpleNamespace(inside=Counter(), most=Counter(), lock=threading.Lock(), go_on=threading.Event())
    call = Agents._call

    def counted(self, node, method, path, *rest, **named):
        if method != "PUT":
            return call(self, node, method, path, *rest, **named)
        with seen.lock:
            seen.inside[node.number] += 1
            seen.most[node.number] = max(seen.most[node.number], seen.inside[node.number])
        seen.go_on.wait(10)
        try:
            return call(self, node, method, path, *rest, **named)
        finally:
            with seen.lock:
                seen.inside[node.number] -= 1

    monkeypatch.setattr(Agents, "_call", counted)
    yield seen
    seen.go_on.set()


@pytest.mark.parametrize("database", ["postgresql"])
def test_few_connects_are_at_an_agent_at_once_and_all_succeed(node, apps, at_agents):
    """A node that gets hundreds of calls at once answers none of them in time, and would be kept out."""
    admissions = apps[0].app.extensions["causeway"].agents._admissions
    with ThreadPoolExecutor(MANY) as people:
        answers = [people.submit(app.connect) for app in apps]
        wait_until(lambda: admissions.waiting(0) == MANY - ADMISSIONS_AT_ONCE)
        wait_until(lambda: at_agents.inside[0] == ADMISSIONS_AT_ONCE)
        at_agents.go_on.set()

    assert {answer.result().status_code for answer in answers} == {200}
    assert at_agents.most[0] == ADMISSIONS_AT_ONCE


@pytest.mark.parametrize("database", ["postgresql"])
def test_those_who_wait_for_a_silent_node_go_elsewhere_with_the_first(make_nodes, apps):
    """Each of them would else wait for it once more (R42)."""
    silent, good = make_nodes(2)
    silent.mode = "silent"
    # Nobody takes the good one first.
    seen_up(
        1, utc_now() + timedelta(minutes=2), info={"rel_load_average": [100, 100, 100], "o_client_count": 0}
    )
    with ThreadPoolExecutor(MANY) as people:
        answers = list(people.map(lambda app: app.connect(), apps))

    assert {answer.status_code for answer in answers} == {200}
    assert len(good.peers) == MANY
    assert 0 < [method for method, _path in silent.calls].count("PUT") <= ADMISSIONS_AT_ONCE


@pytest.mark.parametrize("database", ["postgresql"])
def test_node_without_a_turn_in_time_is_not_called_silent(node, make_app_user, monkeypatch):
    """It may be well: whoever has more time asks it."""
    app = make_app_user()
    agents = app.app.extensions["causeway"].agents
    monkeypatch.setattr(agents, "_admissions", Admissions(at_once=0))
    monkeypatch.setattr(connections, "BUDGET_SECONDS", 0.5)

    answer = app.connect()

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    with transaction(read_only=True) as db:
        assert db.scalar(select(func.count(Connection.id))) == 0
        assert db.scalar(select(NodeStatus.suspect_until)) is None


@pytest.mark.parametrize("database", ["postgresql"])
def test_node_that_had_no_time_to_answer_is_not_called_silent(node, make_app_user, monkeypatch):
    app = make_app_user()
    node.mode = "silent"
    monkeypatch.setattr(connections, "BUDGET_SECONDS", 0.5)

    answer = app.connect()

    assert answer.status_code == 503
    with transaction(read_only=True) as db:
        assert db.scalar(select(NodeStatus.suspect_until)) is None
