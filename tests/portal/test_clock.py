"""R20: the time that counts where portals share a database, whatever the clock of a portal's host shows."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update

from portal_app import clock, login
from portal_app.controller.loop import Controller
from portal_app.db import connect_to, connected, transaction
from portal_app.models import AccessToken, BrowserSession
from portal_app.services import checks
from tests.portal.app_user import VpnApp
from tests.portal.pages import add_account, sign_in

DAY = timedelta(days=1)
postgresql = pytest.mark.parametrize("database", ["postgresql"])


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Set this host's clock that far from the true time, as from one moment to the next."""

    def to(off: timedelta) -> None:
        monkeypatch.setattr(clock, "own", lambda: datetime.now(UTC) + off)

    return to


def ask_database() -> None:
    with connected(read_only=True) as db:
        db.execute(select(1))


def close(one: datetime, other: datetime) -> bool:
    return abs(one - other) < timedelta(minutes=1)


@postgresql
@pytest.mark.parametrize("off", [-DAY, DAY, timedelta(minutes=-10), timedelta(minutes=10)])
def test_the_database_s_clock_counts_where_a_portal_s_is_wrong(app: Flask, set_clock: Any, off: timedelta):
    ask_database()
    set_clock(off)

    assert close(clock.utc_now(), datetime.now(UTC))
    finding = checks.clocks({})
    assert (finding.passed, str(finding.remark)) == (
        False,
        f"{abs(off)} away from the database's clock, which counts instead;"
        " set up time synchronisation on this host",
    )


@postgresql
def test_a_process_asks_before_it_first_goes_by_its_own_clock(app: Flask, settings: Any, set_clock: Any):
    """The first request to each process of a portal, and each command."""
    connect_to(settings.database_url)
    set_clock(DAY)

    assert close(clock.utc_now(), datetime.now(UTC))


@postgresql
def test_a_database_that_is_away_from_the_start_shows_no_time(app: Flask, set_clock: Any):
    connect_to("postgresql://causeway@127.0.0.1:1/nowhere")
    set_clock(-DAY)

    assert close(clock.utc_now(), datetime.now(UTC) - DAY)


@postgresql
def test_clocks_a_little_apart_are_no_fault(app: Flask, set_clock: Any):
    ask_database()
    set_clock(timedelta(seconds=-3))

    assert clock.utc_now() < datetime.now(UTC) - timedelta(seconds=2)
    assert checks.clocks({}).passed


@postgresql
def test_the_database_s_clock_is_read_again(app: Flask, monkeypatch: pytest.MonkeyPatch):
    ask_database()
    clock.follow(datetime.now(UTC) - DAY)
    assert close(clock.utc_now(), datetime.now(UTC) - DAY)
    now = clock._since_boot()
    monkeypatch.setattr(clock, "_since_boot", lambda: now + clock.OLD_SECONDS + 1)

    ask_database()

    assert close(clock.utc_now(), datetime.now(UTC))


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_single_host_has_one_clock(app: Flask, set_clock: Any):
    ask_database()
    set_clock(-DAY)

    assert close(clock.utc_now(), datetime.now(UTC) - DAY)
    assert checks.clocks({}).passed


@postgresql
def test_a_portal_a_day_behind_grants_nothing_longer(make_app_user: Callable[..., VpnApp], set_clock: Any):
    app = make_app_user()
    assert app.info().status_code == 200
    with transaction() as db:
        db.execute(update(AccessToken).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))
        db.execute(update(BrowserSession).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))
    set_clock(-DAY)

    assert app.info().status_code == 401
    assert app.browser.get("/devices").status_code == 303


@pytest.mark.parametrize(("seconds", "passes"), [(-59, True), (0, True), (50, True), (70, False)])
@pytest.mark.parametrize("database", ["sqlite"])
def test_a_form_of_a_portal_whose_clock_is_a_little_ahead_is_taken(
    app: Flask, set_clock: Any, seconds: int, passes: bool
):
    set_clock(timedelta(seconds=seconds))
    with app.test_request_context("/", headers={"Cookie": f"{login.SESSION_COOKIE}=x"}):
        token = login._csrf_serializer().dumps(login._browser_key())
        set_clock(timedelta())

        assert login._is_our_token(str(token)) is passes


@postgresql
def test_people_sign_in_at_a_portal_whose_clock_is_wrong(app: Flask, set_clock: Any):
    add_account()
    ask_database()
    set_clock(timedelta(minutes=-10))

    client = app.test_client()
    sign_in(client)

    set_clock(timedelta())
    assert client.get("/devices").status_code == 200


@postgresql
def test_a_controller_reports_its_clock(
    app: Flask, settings: Any, set_clock: Any, caplog: pytest.LogCaptureFixture
):
    ask_database()
    set_clock(-DAY)
    caplog.set_level(logging.WARNING)
    controller = Controller(settings)

    controller._introduce()

    assert "event=clock_wrong" in caplog.text
    assert "seconds_behind=86400" in caplog.text
