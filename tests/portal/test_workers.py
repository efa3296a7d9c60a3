"""Lanes: threads for one kind of the controller's work."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from portal_app.controller.workers import Lane
from tests.portal.waiting import wait_until

SECONDS = 20


@pytest.fixture
def make_lane() -> Iterator[Callable[[int], Lane]]:
    made: list[Lane] = []

    def make(most: int) -> Lane:
        made.append(Lane("test", most))
        return made[-1]

    yield make
    for lane in made:
        lane.stop()
        lane.join(SECONDS)


def test_work_that_waits_holds_up_no_other(make_lane):
    """R98: all of them are under way at once."""
    lane, together = make_lane(30), threading.Barrier(31)
    for _ in range(30):
        lane.submit(lambda: together.wait(SECONDS))

    together.wait(SECONDS)


def test_threads_are_at_most_so_many_and_used_again(make_lane):
    lane, go_on = make_lane(2), threading.Event()
    names: list[str] = []
    all_done = threading.Semaphore(0)

    def work() -> None:
        assert go_on.wait(SECONDS)
        names.append(threading.current_thread().name)
        all_done.release()

    for _ in range(10):
        lane.submit(work)
    go_on.set()

    assert all(all_done.acquire(timeout=SECONDS) for _ in range(10))
    assert set(names) <= {"test-0", "test-1"}


def test_one_after_the_other_needs_one_thread(make_lane):
    lane = make_lane(8)
    names: list[str] = []

    for number in range(1, 6):
        lane.submit(lambda: names.append(threading.current_thread().name))
        wait_until(lambda n=number: len(names) == n and lane._idle == 1)

    assert names == ["test-0"] * 5


def test_what_fails_leaves_its_thread_at_work(make_lane, caplog):
    lane, done = make_lane(1), threading.Event()

    def fail() -> None:
        raise RuntimeError("broken")

    lane.submit(fail)
    lane.submit(done.set)

    assert done.wait(SECONDS)
    assert "broken" in caplog.text


def test_end_waits_for_all_threads_together(make_lane):
    """R2: a process that ends has so much time, however many of its threads hang."""
    lane, started, go_on = make_lane(4), threading.Barrier(5), threading.Event()

    def hang() -> None:
        started.wait(SECONDS)
        assert go_on.wait(SECONDS)

    for _ in range(4):
        lane.submit(hang)
    started.wait(SECONDS)
    lane.stop()
    begin = time.monotonic()

    lane.join(0.5)

    assert 0.5 <= time.monotonic() - begin < 1
    go_on.set()


def test_what_waits_is_dropped_at_the_end(make_lane):
    lane, started, go_on, dropped = make_lane(1), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert go_on.wait(SECONDS)

    lane.submit(work)
    lane.submit(dropped.set)
    assert started.wait(SECONDS)
    lane.stop()
    go_on.set()
    lane.join(SECONDS)

    assert not dropped.is_set()
