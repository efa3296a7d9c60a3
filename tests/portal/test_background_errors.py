"""What fails in the background can be read by an administrator, and writing it makes nothing worse."""

from datetime import timedelta

from sqlalchemy import select

from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.controller.housekeeping import Job
from portal_app.controller.loop import Controller
from portal_app.db import transaction
from portal_app.errors import BadRequest, Unavailable
from portal_app.models import BackgroundError, PeriodicJob
from portal_app.services import background_errors, retention
from tests.portal.test_pages import signed_in
from tests.portal.waiting import wait_until

SECRET = "hunter2"


def fail(error):
    try:
        raise error
    except type(error) as raised:
        background_errors.note("request", raised)


def rows():
    with transaction(read_only=True) as db:
        return list(db.scalars(select(BackgroundError).order_by(BackgroundError.key)))


def test_view_that_raises_is_seen_without_its_text(app, client, monkeypatch):
    def broken(*_args, **_named):
        return {}[SECRET]

    app.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setitem(app.view_functions, "sign_in.page", broken)
    assert client.get("/sign-in").status_code == 500
    background_errors.flush()

    (row,) = rows()
    assert (row.part, row.count) == ("request", 1)
    assert row.message.startswith("KeyError")
    assert SECRET not in row.message + row.key


def test_job_that_raises_is_seen_and_the_next_one_runs(app, settings):
    ran = []

    def broken(_now):
        raise ValueError(SECRET)

    agents = Agents(settings)
    controller = Controller(settings, agents=agents)
    controller._jobs = [
        Job("expire", timedelta(seconds=10), broken),
        Job("drain", timedelta(seconds=10), ran.append),
    ]
    controller._start_jobs()
    wait_until(lambda: not controller._jobs_running)
    agents.close()
    background_errors.flush()

    (row,) = rows()
    assert row.part == "job expire"
    assert row.message.startswith("ValueError in portal_app/controller/loop.py:")
    assert SECRET not in row.message + row.key
    with transaction(read_only=True) as db:
        assert db.get(PeriodicJob, "expire").error == "ValueError"
    assert len(ran) == 1


def test_repeated_fault_is_one_row_that_counts(app):
    for _ in range(2):
        for _ in range(3):
            fail(ValueError(SECRET))
        background_errors.flush()

    (row,) = rows()
    assert row.count == 6
    assert row.first_seen_at < row.last_seen_at


def test_values_of_our_own_errors_are_not_kept(app):
    fail(BadRequest("no user %(name)s", name=SECRET))
    background_errors.flush()

    (row,) = rows()
    assert row.message == "BadRequest"


def test_only_so_many_kinds_are_kept(app, monkeypatch):
    monkeypatch.setattr(background_errors, "MOST_KINDS", 3)
    for name in ("One", "Two", "Three", "Four", "Five"):
        fail(type(name, (Exception,), {})())
        background_errors.flush()

    assert {row.message for row in rows()} == {"Three", "Four", "Five"}


def test_old_ones_are_forgotten(app):
    fail(ValueError())
    background_errors.flush()
    now = utc_now()
    retention.prune(retention=timedelta(days=90), now=now + timedelta(days=29))
    assert len(rows()) == 1
    retention.prune(retention=timedelta(days=90), now=now + timedelta(days=31))
    assert rows() == []


def test_nothing_is_written_before_its_time(app):
    fail(ValueError())
    assert rows() == []


def test_outage_of_the_database_is_no_fault(app):
    fail(Unavailable("the database does not answer"))
    assert background_errors._pending == {}


def test_write_that_fails_raises_nothing(app, monkeypatch, caplog):
    def down(*_args):
        raise Unavailable(SECRET)

    monkeypatch.setattr(background_errors, "_write", down)
    fail(ValueError())
    background_errors.flush()

    assert background_errors._pending == {}
    assert "not written down: Unavailable" in caplog.text
    assert SECRET not in caplog.text


def test_what_is_noted_is_written_by_itself(app, monkeypatch, start_writer):
    monkeypatch.setattr(background_errors, "_start_writer", start_writer)
    monkeypatch.setattr(background_errors, "EVERY_SECONDS", 0.2)
    fail(ValueError(SECRET))
    wait_until(lambda: [row.count for row in rows()] == [1])
    fail(ValueError(SECRET))
    fail(ValueError(SECRET))
    wait_until(lambda: [row.count for row in rows()] == [3])
    # The thread ends when nothing more comes.
    wait_until(lambda: background_errors._writer is None)


def test_overview_and_system_page_say_it(app, node):
    fail(ValueError(SECRET))
    background_errors.flush()
    client = signed_in(app, "root", ["admin"])

    assert "Something failed in the background within the last day." in client.get("/admin/").text
    page = client.get("/admin/system").text
    assert "What failed in the last 30 days" in page
    assert "ValueError" in page


def test_system_page_says_that_nothing_failed(app, node):
    page = signed_in(app, "root", ["admin"]).get("/admin/system").text
    assert "No background errors in the last 30 days." in page
