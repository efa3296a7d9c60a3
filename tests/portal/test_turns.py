"""Who comes first is served first (reliability.md R33)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from portal_app.services import connections
from portal_app.turns import Turns
from tests.portal.test_connect import rows
from tests.portal.waiting import wait_until

MANY = 3 * connections.AT_ONCE


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
            wait_until(lambda number=number: len(turns._waiting) == number + 1)
        turns.give_back()

    assert served == list(range(5))
    assert not turns.are_taken()


def test_who_waits_is_not_overtaken():
    turns = Turns(1)
    assert turns.take(0)
    with ThreadPoolExecutor(1) as waiting:
        first = waiting.submit(turns.take, 10)
        wait_until(lambda: turns._waiting)
        turns.give_back()

        assert not turns.take(0)
        assert first.result(10)


def test_turn_that_nobody_waits_for_any_more_goes_to_the_next():
    turns = Turns(1)
    assert turns.take(0)
    assert not turns.take(0.01)

    turns.give_back()

    assert turns.take(0)


@pytest.mark.parametrize("database", ["postgresql"])
def test_few_connects_are_at_an_agent_at_once_and_all_succeed(node, make_app_user, monkeypatch):
    """A node that gets hundreds of calls at once answers none of them in time, and would be kept out."""
    apps = [make_app_user(f"user{number}") for number in range(MANY)]
    inside, most, lock, go_on = 0, 0, threading.Lock(), threading.Event()
    admit = type(apps[0].app.extensions["causeway"].agents).admit

    def counted(*args, **named):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        go_on.wait(10)
        try:
            return admit(*args, **named)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(type(apps[0].app.extensions["causeway"].agents), "admit", counted)
    with ThreadPoolExecutor(MANY) as people:
        answers = [people.submit(app.connect) for app in apps]
        wait_until(lambda: len(connections._turns._waiting) == MANY - connections.AT_ONCE)
        wait_until(lambda: inside == connections.AT_ONCE)
        go_on.set()

    assert {answer.result().status_code for answer in answers} == {200}
    assert most == connections.AT_ONCE


def test_connect_whose_turn_does_not_come_is_told_to_come_again(node, make_app_user, monkeypatch):
    app = make_app_user()
    monkeypatch.setattr(connections, "_turns", Turns(0))
    monkeypatch.setattr(connections, "TURN_SECONDS", 0.01)

    answer = app.connect()

    assert answer.status_code == 503
    assert answer.json == {"error": "too many connect at once"}
    assert int(answer.headers["Retry-After"]) > 0
    assert rows() == []
