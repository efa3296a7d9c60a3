"""Statistics: what is sampled and counted, and what the page makes of it."""

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from portal_app.clock import utc_now
from portal_app.controller import housekeeping
from portal_app.db import engine, is_postgresql, transaction
from portal_app.errors import Unavailable
from portal_app.models import AddressUse, AuditEvent, UsageDay, UsageSample, VpnSession
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import audit, retention, usage, usage_history
from portal_app.settings import Settings
from portal_app.views import charts
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import LINUX, add_user, browser
from tests.portal.pages import elements
from tests.portal.plans import watching

pytestmark = pytest.mark.usefixtures("app")
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
FRIDAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def add_sessions(*changes: dict[str, Any]) -> None:
    rows = [
        {
            "node_number": 0,
            "session_id": f"{number:032x}",
            "connection_id": f"{number:032x}",
            "user_name": "alice",
            "profile_id": "employees",
            "protocol": "wireguard",
            "started_at": NOON,
            "ended_at": None,
            "received_bytes": None,
            "sent_bytes": None,
        }
        | change
        for number, change in enumerate(changes)
    ]
    with transaction() as db:
        db.execute(insert(VpnSession), rows)


def samples() -> dict[tuple[str, int, str], tuple[int, int]]:
    with transaction(read_only=True) as db:
        return {
            (s.profile_id, s.node_number, s.protocol): (s.connections, s.users)
            for s in db.scalars(select(UsageSample))
        }


def days() -> dict[tuple[str, int], UsageDay]:
    with transaction(read_only=True) as db:
        return {(d.profile_id, d.node_number): d for d in db.scalars(select(UsageDay))}


def count_day(day: date, retention: timedelta = 90 * DAY, late: timedelta = HOUR) -> bool:
    """Count a day as long after its end as ``late``."""
    return usage.count_day(day, retention=retention, now=usage.bounds(day)[1] + late)


def test_sample_counts_connections_and_different_users_of_each_part_and_of_all() -> None:
    add_sessions(
        {},
        {"node_number": 1},
        {"user_name": "bob", "protocol": "openvpn"},
        {"profile_id": "lab"},
        {"user_name": None, "profile_id": "lab"},
        {"user_name": "gone", "ended_at": NOON},
    )
    assert usage.sample(NOON)

    assert samples() == {
        ("employees", 0, "wireguard"): (1, 1),
        ("employees", 0, "openvpn"): (1, 1),
        ("employees", 1, "wireguard"): (1, 1),
        ("lab", 0, "wireguard"): (2, 1),
        ("employees", 0, ALL): (2, 2),
        ("employees", 1, ALL): (1, 1),
        ("lab", 0, ALL): (2, 1),
        ("employees", ALL_NODES, ALL): (3, 2),
        ("lab", ALL_NODES, ALL): (2, 1),
        (ALL, 0, ALL): (4, 2),
        (ALL, 1, ALL): (1, 1),
        (ALL, ALL_NODES, ALL): (5, 2),
    }


def test_there_is_one_sample_in_five_minutes_also_of_nobody() -> None:
    assert [usage.sample(NOON + n * MINUTE) for n in range(6)] == [True, False, False, False, False, True]

    assert samples() == {(ALL, ALL_NODES, ALL): (0, 0)}
    assert usage.time_of(usage.slot_of(NOON + 4 * MINUTE)) == NOON


def test_day_is_counted_once_when_it_is_over() -> None:
    add_sessions({"ended_at": NOON + HOUR})
    midnight = datetime(2026, 11, 21, tzinfo=UTC)

    count_days = partial(usage.count_days, retention=30 * DAY)
    before = [count_days(midnight - MINUTE) for _ in range(8)]
    assert before == [1] * 7 + [0], "the days before, one at a time"
    assert count_days(midnight + 59 * MINUTE) == 0, "what nodes tell late is waited for"
    assert count_days(midnight + HOUR) == 1
    assert count_days(midnight + HOUR) == 0
    with transaction(read_only=True) as db:
        total = db.get_one(UsageDay, (ALL, ALL_NODES, "2026-11-20"))
    assert (total.users, total.sessions) == (1, 1)


def test_a_day_that_cannot_be_counted_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, counted, count_day = datetime(2026, 11, 21, 2, tzinfo=UTC), 0, usage.count_day

    def too_large(day: date, **values: Any) -> bool:
        if day.isoformat() == "2026-11-15":
            raise Unavailable("the database does not answer")
        return count_day(day, **values)

    monkeypatch.setattr(usage, "count_day", too_large)
    while counted < 6:
        assert usage.count_days(now, retention=30 * DAY) == 1
        counted += 1
    with pytest.raises(Unavailable):
        usage.count_days(now, retention=30 * DAY)


def test_day_adds_up_what_was_on_it_and_nothing_else() -> None:
    begin, end = usage.bounds(FRIDAY)
    amount = {"received_bytes": 100, "sent_bytes": 10}
    add_sessions(
        {"ended_at": NOON + HOUR} | amount,
        {"ended_at": NOON + HOUR, "node_number": 1} | amount,
        {"user_name": "bob", "started_at": begin - DAY, "ended_at": begin + HOUR} | amount,
        {"user_name": "carol", "profile_id": "lab", "ended_at": end + HOUR} | amount,
        {"user_name": "dave", "started_at": begin - DAY, "ended_at": begin - MINUTE} | amount,
        {"user_name": "erin", "started_at": end} | amount,
        {"user_name": None, "started_at": begin - 3 * DAY},
    )
    assert count_day(FRIDAY)

    found = {key: (d.users, d.sessions, d.received_bytes, d.sent_bytes) for key, d in days().items()}
    assert found == {
        ("employees", 0): (2, 1, 200, 20),
        ("employees", 1): (1, 1, 100, 10),
        ("employees", ALL_NODES): (2, 2, 300, 30),
        ("lab", 0): (1, 1, 0, 0),
        ("lab", ALL_NODES): (1, 1, 0, 0),
        (ALL, 0): (3, 2, 200, 20),
        (ALL, 1): (1, 1, 100, 10),
        (ALL, ALL_NODES): (3, 3, 300, 30),
    }


def test_peak_of_a_day_is_its_highest_sample_or_unknown() -> None:
    begin, end = usage.bounds(FRIDAY)
    add_sessions({"ended_at": NOON + HOUR}, {"profile_id": "lab", "ended_at": NOON + HOUR})
    count_day(FRIDAY)
    assert days()[ALL, ALL_NODES].peak_connections is None
    with transaction() as db:
        db.execute(UsageDay.__table__.delete())
        for moment, connections in ((begin - MINUTE, 9), (begin, 2), (NOON, 3), (end, 9)):
            for profile_id in (ALL, "employees"):
                values = {
                    "profile_id": profile_id, "node_number": ALL_NODES, "protocol": ALL,
                    "slot": usage.slot_of(moment), "connections": connections, "users": connections - 1,
                }  # fmt: skip
                db.execute(insert(UsageSample).values(values))
    count_day(FRIDAY)

    peaks = {key: (d.peak_connections, d.peak_users) for key, d in days().items()}
    assert peaks[ALL, ALL_NODES] == peaks["employees", ALL_NODES] == (3, 2)
    assert peaks["lab", ALL_NODES] == (0, 0), "there were samples, and it was in none"


def test_connections_of_a_day_are_counted_by_app() -> None:
    ended = {"ended_at": NOON + HOUR}
    add_sessions(ended, ended, ended | {"protocol": "openvpn", "connection_id": "c" * 32}, ended)
    uses = [
        {"connection_id": f"{0:032x}", "client_id": LINUX, "protocol": "wireguard"},
        {"connection_id": f"{1:032x}", "client_id": None, "protocol": "wireguard"},
        {"connection_id": "c" * 32, "client_id": LINUX, "protocol": "openvpn"},
        {"connection_id": "c" * 32, "client_id": LINUX, "protocol": "openvpn", "started_at": NOON - DAY},
        {"connection_id": "d" * 32, "client_id": "idle", "protocol": "wireguard"},
    ]
    same = {"user_name": "alice", "profile_id": "employees", "node_number": 0, "started_at": NOON}
    with transaction() as db:
        db.execute(insert(AddressUse), [same | use for use in uses])
    count_day(FRIDAY)

    assert days()[ALL, ALL_NODES].clients == days()["employees", 0].clients == {LINUX: 2, "": 1}


def test_samples_are_forgotten_after_eight_days_and_days_never() -> None:
    now = utc_now()
    for age in (timedelta(), 7 * DAY, 8 * DAY + 5 * MINUTE):
        usage.sample(now - age)
    count_day(date(2020, 1, 1))
    gone = retention.prune(retention=30 * DAY, now=now)

    assert gone == {"usage_samples": 1}
    with transaction(read_only=True) as db:
        assert db.scalar(select(func.count()).select_from(UsageSample)) == 2
        assert db.scalar(select(func.count()).select_from(UsageDay)) == 1


def test_days_are_forgotten_after_as_long_as_is_set(settings: Settings) -> None:
    now = utc_now()
    for age in (399, 400, 401):
        count_day((now - age * DAY).date())

    housekeeping.prune(replace(settings, statistics_retention_days=400), now)

    with transaction(read_only=True) as db:
        kept = set(db.scalars(select(UsageDay.day)))
    assert kept == {f"{(now - age * DAY).date()}" for age in (399, 400)}


def test_acts_are_forgotten_after_as_long_as_is_set_but_not_before_what_they_are_about(
    settings: Settings,
) -> None:
    now = utc_now()
    with transaction() as db:
        for age in (29, 31, 89, 91):
            audit.record(db, "signed in", actor="alice", object=str(age), now=now - age * DAY)

    def kept() -> list[str]:
        with transaction(read_only=True) as db:
            return sorted(db.scalars(select(AuditEvent.object).where(AuditEvent.actor == "alice")))

    housekeeping.prune(replace(settings, audit_retention_days=90), now)
    assert kept() == ["29", "31", "89"]
    housekeeping.prune(replace(settings, audit_retention_days=1), now)
    assert kept() == ["29"]


def point_at(points: list[usage_history.Point], moment: datetime) -> tuple[int | None, int | None]:
    (found,) = (p for p in points if p.begin <= moment < p.end)
    return found.connections, found.users


def test_points_know_nobody_from_unknown() -> None:
    add_sessions({}, {"user_name": "bob"})
    usage.sample(NOON)
    with transaction() as db:
        db.execute(update(VpnSession).where(VpnSession.user_name == "bob").values(ended_at=NOON))
    usage.sample(NOON + 5 * MINUTE)
    period = usage_history.PERIODS["day"]
    with transaction(read_only=True) as db:
        everything, nobody = (
            usage_history.points(
                db,
                usage_history.read_days(db, period, profile_id, ALL_NODES, now=NOON + HOUR),
                now=NOON + HOUR,
            )
            for profile_id in (ALL, "lab")
        )

    assert len(everything) == 96
    assert point_at(everything, NOON) == (2, 2), "the highest"
    assert point_at(nobody, NOON) == (0, 0)
    assert point_at(everything, NOON + 30 * MINUTE) == point_at(nobody, NOON + 30 * MINUTE) == (None, None)


def test_a_day_that_was_counted_without_a_profile_had_nobody_there() -> None:
    """In what days add up to as in each of them; of days that nobody counted nothing is known."""
    period, yesterday = usage_history.PERIODS["week"], (NOON - DAY).date()
    count_day(yesterday)
    with transaction(read_only=True) as db:
        days = usage_history.read_days(db, period, "lab", ALL_NODES, now=NOON)

    total, clients = usage_history.summary(days)
    assert (total.users, total.sessions, dict(clients)) == (0, 0, {})
    assert [t.users for t in usage_history.traffic(days)] == [None] * 6 + [0]


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(("name", "count"), [("day", 96), ("week", 84), ("month", 30), ("year", 52)])
def test_periods_end_now_or_yesterday(name: str, count: int) -> None:
    period = usage_history.PERIODS[name]
    with transaction(read_only=True) as db:
        days = usage_history.read_days(db, period, ALL, ALL_NODES, now=NOON)
        points = usage_history.points(db, days, now=NOON)

    assert len(points) == count
    assert {p.end - p.begin for p in points} == {period.point}
    last = points[-1]
    assert last.begin <= NOON < last.end if period.is_of_samples else last.end == usage.bounds(FRIDAY)[0]


@pytest.fixture
def viewer(app: Flask) -> FlaskClient:
    return browser(app, add_user("hedda", ["helpdesk"]))


def count_yesterday(retention: timedelta = 30 * DAY) -> None:
    yesterday = utc_now() - DAY
    ended = {"started_at": yesterday, "ended_at": yesterday, "received_bytes": 2**20, "sent_bytes": 0}
    add_sessions(ended, ended | {"user_name": "bob"}, {"started_at": yesterday})
    usage.sample(utc_now())
    count_day(yesterday.date(), retention)


def test_statistics_show_now_and_before_as_charts_and_as_numbers(
    node: AgentServer, viewer: FlaskClient
) -> None:
    count_yesterday()
    for period in ("day", "week", "month", "year"):
        page = viewer.get("/admin/statistics", query_string={"period": period}).text

        drawings = list(elements(page, "svg"))
        named = [e for e in drawings if e.get("role") == "img"]
        assert len(named) == (1 if period == "day" else 2)
        ids = set(re.findall(r'id="([^"]+)"', page))
        for drawing in named:
            assert set(str(drawing["aria-labelledby"]).split()) <= ids
        assert "1.0 MiB" in page or "2.0 MiB" in page
        assert page.count("<table>") >= len(named)
        assert "Employees" in page
        assert "alice" not in page
        assert len(page.encode()) < 60_000


@pytest.mark.parametrize(
    ("settings_changes", "said"),
    [({}, "are kept for ever."), ({"statistics_retention_days": 400}, "are kept for 400 days.")],
)
def test_statistics_say_how_long_counts_are_kept(viewer: FlaskClient, said: str) -> None:
    assert said in viewer.get("/admin/statistics").text


def test_nothing_counted_is_said(viewer: FlaskClient) -> None:
    assert "Nothing was counted in this time yet" in viewer.get("/admin/statistics").text


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    "query",
    [
        {"period": "<b>"},
        {"profile": "<script>alert(1)</script>"},
        {"node": "99999"},
        {"profile": "x" * 999},
    ],
)
def test_what_is_not_there_is_an_empty_page_and_file(viewer: FlaskClient, query: dict[str, str]) -> None:
    count_yesterday()
    page = viewer.get("/admin/statistics", query_string=query)

    assert page.status_code == 200
    assert not list(elements(page.text, "script", "b"))
    assert viewer.get("/admin/statistics.csv", query_string=query).status_code == 200


def test_statistics_as_csv_have_the_numbers(viewer: FlaskClient) -> None:
    count_yesterday()
    file = viewer.get("/admin/statistics.csv", query_string={"period": "month", "profile": "employees"})
    rows = list(csv.DictReader(io.StringIO(file.text)))

    assert file.mimetype == "text/csv"
    assert len(rows) == 30
    last = rows[-1]
    assert (last["different_users"], last["sessions"], last["received_bytes"]) == ("2", "3", str(2 * 2**20))
    assert rows[0]["different_users"] == ""


def test_statistics_are_not_for_users(app: Flask) -> None:
    client = browser(app, add_user("user"))
    for url in ("/admin/statistics", "/admin/statistics.csv"):
        assert client.get(url).status_code == 403


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    ("highest", "step", "top"),
    [
        (0, 1, 4), (3, 1, 4), (5, 1, 8), (37, 1, 40), (41, 1, 48), (101, 1, 120), (400, 1, 400),
        (401, 1, 480), (1300, 1, 1600), (1500, 1024, 2048),
    ],
)  # fmt: skip
def test_axis_ends_at_a_round_number_above_everything(highest: float, step: float, top: float) -> None:
    chart = charts.line_chart([charts.Series("x", [highest])], ["now"], str, step=step)

    assert chart.rows[-1].label == str(float(top))


@pytest.mark.parametrize("database", ["sqlite"])
def test_line_has_a_gap_where_nothing_is_known() -> None:
    chart = charts.line_chart([charts.Series("x", [1, 2, None, 3])], list("abcd"), str)

    (line,) = chart.lines
    assert [len(part.split("L")) for part in line.path.split("M")[1:]] == [2, 2]
    assert line.area.count("Z") == 2


@pytest.mark.parametrize("database", ["sqlite"])
def test_bars_are_as_long_as_their_share_of_the_longest() -> None:
    assert [b.share for b in charts.bars([("a", 4), ("b", 1), ("c", 0)], str)] == [100, 25, 0]
    assert [b.share for b in charts.bars([("a", 0)], str)] == [0]


@pytest.mark.parametrize("database", ["postgresql"])
def test_counting_a_large_day_may_take_longer_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, days = [], usage._days

    def noted(db: Session, day: date) -> list[dict[str, Any]]:
        asked.append(db.scalar(text("SHOW statement_timeout")))
        return days(db, day)

    monkeypatch.setattr(usage, "_days", noted)
    assert count_day(FRIDAY)
    assert asked == ["30s"]


def test_ticks_are_where_their_days_begin() -> None:
    """A point each six hours, from noon on the 20th."""
    days = ["20"] * 2 + [str(day) for day in range(21, 28) for _ in range(4)]
    chart = charts.line_chart([charts.Series("x", [1] * len(days))], days, str)

    unit = (chart.right - chart.left) / (len(days) - 1)
    assert [(round((tick.at - chart.left) / unit), tick.label) for tick in chart.columns] == [
        (0, "20"), (6, "22"), (14, "24"), (22, "26"),
    ]  # fmt: skip


def test_a_first_day_of_few_hours_has_no_label_that_runs_into_the_next() -> None:
    """Points of two hours: the 20th is nearly over as the chart begins."""
    days = ["20 Nov"] * 2 + [f"{day} Nov" for day in range(21, 28) for _ in range(12)]
    chart = charts.line_chart([charts.Series("x", [1] * len(days))], days, str)

    assert [tick.label for tick in chart.columns] == ["22 Nov", "24 Nov", "26 Nov"]


def lived(user: str | None, begin: timedelta, end: timedelta | None) -> dict[str, Any]:
    """One session, whose times are before the end of Friday."""
    over = usage.bounds(FRIDAY)[1]
    return {"user_name": user, "started_at": over - begin, "ended_at": None if end is None else over - end}


def test_users_of_the_last_days_are_counted_once_each() -> None:
    add_sessions(
        lived("alice", HOUR, None),
        lived("alice", 3 * DAY, 2 * DAY),
        lived("bob", 9 * DAY, 7 * DAY - HOUR),  # began before, and went on
        lived("bob", 8 * DAY, 8 * DAY - HOUR),
        lived("carol", 12 * DAY, 11 * DAY),
        lived("dave", 40 * DAY, 31 * DAY),
        lived("erin", 40 * DAY, None),
        lived(None, HOUR, None),
        lived("frank", -HOUR, None),
    )
    assert count_day(FRIDAY)

    counted = days()
    everything = counted.pop((ALL, ALL_NODES))
    assert (everything.users_of_7_days, everything.users_of_30_days) == (3, 4)
    assert {row.users_of_7_days for row in counted.values()} == {None}


@pytest.mark.parametrize(
    ("days_kept", "late", "counted_users"),
    [
        # Of thirty days the first hour is forgotten when they are over, so 29 are counted.
        (30, HOUR, (1, 2)),
        (30, DAY + HOUR, (1, None)),
        (31, HOUR, (1, 3)),
        (37, 6 * DAY, (1, 3)),
        (14, HOUR, (1, 1)),
        (14, 3 * DAY, (1, None)),
        (14, 7 * DAY, (None, None)),
        (7, HOUR, (None, None)),
        (1, HOUR, (None, None)),
    ],
)
def test_only_days_of_which_all_sessions_are_kept_are_counted(
    days_kept: int, late: timedelta, counted_users: tuple[int | None, int | None]
) -> None:
    add_sessions(
        lived("alice", HOUR, None),
        lived("bob", 29 * DAY, 29 * DAY - MINUTE),
        lived("carol", 30 * DAY - MINUTE, 30 * DAY - 2 * MINUTE),
    )
    retention.prune(retention=days_kept * DAY, now=usage.bounds(FRIDAY)[1] + late)
    assert count_day(FRIDAY, days_kept * DAY, late)

    everything = days()[ALL, ALL_NODES]
    assert (everything.users_of_7_days, everything.users_of_30_days) == counted_users
    assert everything.users == 1


def test_a_count_of_users_that_takes_too_long_costs_the_day_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    users_between = usage.users_between

    def slow(db: Session, begin: datetime, end: datetime) -> int:
        if end - begin > 7 * DAY:
            if not is_postgresql(db):
                raise Unavailable("the database does not answer")
            db.execute(text("SELECT pg_sleep(3)"))
        return users_between(db, begin, end)

    monkeypatch.setattr(usage, "users_between", slow)
    monkeypatch.setattr(usage, "_COUNT_SECONDS", 1)
    add_sessions(lived("alice", HOUR, None))
    assert count_day(FRIDAY)

    everything = days()[ALL, ALL_NODES]
    assert (everything.users, everything.users_of_7_days, everything.users_of_30_days) == (1, 1, None)
    assert "users of 30 days until 2026-11-21 are not counted: the database does not answer" in caplog.text


@pytest.mark.parametrize("database", ["sqlite"])
def test_users_of_the_last_days_are_looked_up_name_by_name() -> None:
    add_sessions(lived("alice", HOUR, None))
    with watching(engine())() as found, transaction(read_only=True) as db:
        assert usage.users_between(db, NOON - 7 * DAY, NOON + DAY) == 1
    assert found == []


@pytest.mark.parametrize(
    ("settings_changes", "shown"),
    [
        ({}, ["7", "29"]),
        ({"retention_days": 31}, ["7", "30"]),
        ({"retention_days": 14}, ["7", "13"]),
        ({"retention_days": 8}, ["7"]),
        ({"retention_days": 7}, []),
    ],
)
def test_statistics_show_the_users_of_as_many_days_as_are_known(
    viewer: FlaskClient, settings: Settings, shown: list[str]
) -> None:
    count_yesterday(settings.retention_days * DAY)
    page = viewer.get("/admin/statistics").text

    assert re.findall(r"Different users in ([0-9]+) days</dt><dd>2</dd>", page) == shown
    assert "Different users in" not in viewer.get("/admin/statistics", query_string={"node": "0"}).text


def test_statistics_leave_out_the_users_of_days_that_are_unknown(viewer: FlaskClient) -> None:
    count_yesterday()
    with transaction() as db:
        db.execute(update(UsageDay).values(users_of_7_days=None))
    page = viewer.get("/admin/statistics").text

    assert re.findall(r"Different users in ([0-9]+) days", page) == ["29"]
