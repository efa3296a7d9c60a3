"""History and audit log: filters, pages, files, and who may read them."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from markupsafe import escape
from sqlalchemy import insert, select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AuditEvent, VpnSession
from portal_app.services import audit, exports, history, usage
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import add_user, browser, csrf_token
from tests.portal.pages import PASSWORD, add_account, elements, problem, sign_in

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def auditor(app: Flask) -> FlaskClient:
    return browser(app, add_user("olivia", ["auditor"]))


def add_sessions(*changes: dict[str, Any]) -> None:
    rows = [
        {
            "node_number": 0,
            "session_id": f"{number:032x}",
            "connection_id": f"{number:032x}",
            "user_name": "alice",
            "profile_id": "employees",
            "protocol": "wireguard",
            "ipv4": "10.61.0.9",
            "ipv6": None,
            "origin": None,
            "started_at": NOON + timedelta(minutes=number),
            "ended_at": NOON + timedelta(minutes=number + 90),
            "received_bytes": 1536,
            "sent_bytes": 3 * 2**20,
        }
        | change
        for number, change in enumerate(changes)
    ]
    with transaction() as db:
        db.execute(insert(VpnSession), rows)


def listed(client: FlaskClient, **query: str) -> list[str]:
    page = client.get("/admin/history", query_string=query)
    assert page.status_code == 200, problem(page.text)
    return _users(page.text)


def _users(page: str) -> list[str]:
    return re.findall(r'data-label="User">(?:<a [^>]*>)?([^<]+)', page)


def export(client: FlaskClient, url: str, **form: str) -> Any:
    names = {"history": history_fields, "audit": audit_fields}["history" if "history" in url else "audit"]
    fields = dict.fromkeys(names, "") | {"csrf_token": csrf_token(client.get("/").text)}
    return client.post(url, data=fields | form)


history_fields = ("user", "profile", "node", "protocol", "from", "to")
audit_fields = ("actor", "action", "object", "from", "to")


def audit_rows(action: str) -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        return list(db.scalars(select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.id)))


def test_history_is_newest_first_and_says_how_much(node: AgentServer, auditor: FlaskClient) -> None:
    add_sessions(
        {"user_name": "first"},
        {"user_name": "last", "ended_at": None, "received_bytes": None},
        {"user_name": None},
    )
    page = auditor.get("/admin/history").text

    assert listed(auditor) == ["unknown", "last", "first"]
    for text in (
        "<span>Employees<br>",
        "1.5 KiB",
        "3.0 MiB",
        "2 hours",
        "10.61.0.9",
        "node0",
        "WireGuard",
        "20 Nov 2026, 12:00",
    ):
        assert text in page, text
    assert "connected" in page


def test_bytes_of_a_session_go_the_same_way_on_every_page(node: AgentServer, auditor: FlaskClient) -> None:
    """What a node received came from the user."""
    alice = add_user("alice")
    add_sessions({"user_name": "alice", "received_bytes": 1536, "sent_bytes": 3 * 2**20})
    history, user = auditor.get("/admin/history").text, auditor.get(f"/admin/users/{alice.id}").text

    assert re.search(r'data-label="From user ↑"[^>]*><span class="size">1\.5 KiB<', history)
    assert re.search(r'data-label="To user ↓"[^>]*><span class="size">3\.0 MiB<', history)
    assert re.search(
        r"1\.5 KiB <[^>]+>↑</span><[^>]+>from user<.*3\.0 MiB <[^>]+>↓</span><[^>]+>to user<", user
    )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"user": "bob"}, ["bob"]),
        ({"user": "bo"}, []),
        ({"user": "BOB"}, []),
        ({"profile": "lab"}, ["carol"]),
        ({"node": "1"}, ["dave"]),
        ({"protocol": "openvpn"}, ["erin"]),
        ({"from": "2026-11-21"}, ["frank"]),
        ({"to": "2026-11-19"}, ["grace"]),
        ({"from": "2026-11-20", "to": "2026-11-20", "profile": "lab"}, ["carol"]),
        ({"user": "bob", "profile": "lab"}, []),
        ({"profile": "gone"}, []),
        ({"user": "x' OR 1=1 --"}, []),
    ],
)
def test_filters_of_the_address_narrow_the_history(
    auditor: FlaskClient, query: dict[str, str], found: list[str]
) -> None:
    add_sessions(
        {"user_name": "bob"},
        {"user_name": "carol", "profile_id": "lab"},
        {"user_name": "dave", "node_number": 1},
        {"user_name": "erin", "protocol": "openvpn"},
        {"user_name": "frank", "started_at": NOON + DAY},
        {"user_name": "grace", "started_at": NOON - DAY},
    )
    assert listed(auditor, **query) == found


def test_day_has_its_begin_and_not_its_end(auditor: FlaskClient) -> None:
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    add_sessions(
        {"user_name": "begin", "started_at": midnight},
        {"user_name": "end", "started_at": midnight + DAY},
        {"user_name": "late", "started_at": midnight + DAY - timedelta(microseconds=1)},
    )
    assert listed(auditor, **{"from": "2026-11-20", "to": "2026-11-20"}) == ["late", "begin"]


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("url", ["/admin/history", "/admin/audit"])
@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"to": "0000-01-01"},
        {"from": "2026-11-21", "to": "2026-11-20"},
        {"to": "9999-12-31"},
    ],
)
def test_days_that_cannot_be_read_are_said(auditor: FlaskClient, url: str, query: dict[str, str]) -> None:
    page = auditor.get(url, query_string=query)

    assert page.status_code == 400
    assert problem(page.text)


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    "path", ["history", "statistics", "connections", "connections?show=all", "statistics.csv"]
)
@pytest.mark.parametrize("name", ["nod0", "-1", "٣", "9" * 30, "<b>"])
def test_a_node_that_there_is_not_is_said_on_every_page(
    node: AgentServer, auditor: FlaskClient, path: str, name: str
) -> None:
    """Nothing is shown: it would be taken for that node's."""
    add_sessions({})
    usage.count_day(NOON.date(), retention=30 * DAY, now=NOON + DAY)
    path, _, show = path.partition("?")
    query = {"node": name, "period": "year"} | ({"show": "all"} if show else {})
    page = auditor.get(f"/admin/{path}", query_string=query)

    assert page.status_code == 400
    assert f"There is no node “{escape(name)}”. The page Nodes has their names." in page.text
    assert not list(elements(page.text, "table", "dl", "figure", "b"))
    if not path.endswith(".csv"):
        assert problem(page.text)
        assert name in [option["value"] for option in elements(page.text, "option") if "selected" in option]


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("path", ["statistics", "connections"])
@pytest.mark.parametrize("asked", ["node0", "0"])
def test_a_node_is_asked_for_by_its_name_or_its_number(
    node: AgentServer, auditor: FlaskClient, path: str, asked: str
) -> None:
    page = auditor.get(f"/admin/{path}", query_string={"node": asked})

    assert page.status_code == 200
    assert "0" in [option["value"] for option in elements(page.text, "option") if "selected" in option]


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_protocol_that_cannot_be_is_said(auditor: FlaskClient) -> None:
    page = auditor.get("/admin/history", query_string={"protocol": "x"})

    assert (page.status_code, bool(problem(page.text))) == (400, True)


@pytest.mark.parametrize(
    "filters", [{}, {"user": "alice"}, {"profile": "employees"}, {"protocol": "wireguard"}]
)
def test_pages_of_the_history_lose_and_repeat_nothing(
    auditor: FlaskClient, monkeypatch: pytest.MonkeyPatch, filters: dict[str, str]
) -> None:
    """Also where many sessions began at once."""
    monkeypatch.setattr("portal_app.services.paging.PAGE_SIZE", 3)
    add_sessions(*({"started_at": NOON + timedelta(minutes=n // 4)} for n in range(10)))
    url: str | None = f"/admin/history?{'&'.join(f'{k}={v}' for k, v in filters.items())}"
    sizes = []
    while url:
        page = auditor.get(url).text
        sizes.append(len(_users(page)))
        url = next((str(e["href"]) for e in elements(page, "a") if e.get("rel") == "next"), None)

    assert sizes == [3, 3, 3, 1]


def test_history_as_csv_has_what_is_filtered(node: AgentServer, auditor: FlaskClient) -> None:
    add_sessions({"origin": "203.0.113.7"}, {"user_name": "bob"}, {"ended_at": None, "received_bytes": None})
    file = export(auditor, "/admin/history/export", user="alice")
    rows = list(csv.reader(io.StringIO(file.text)))

    assert file.mimetype == "text/csv"
    assert file.headers["Content-Disposition"].startswith('attachment; filename="sessions-')
    assert rows[0][:5] == ["user", "profile", "node", "protocol", "connection"]
    assert [row[0] for row in rows[1:]] == ["alice", "alice"]
    assert rows[2][7:] == [
        "203.0.113.7", "2026-11-20T12:00:00Z", "2026-11-20T13:30:00Z", "5400", "1536", str(3 * 2**20),
    ]  # fmt: skip
    assert rows[1][9:12] == ["", "", ""], "not over yet"
    (event,) = audit_rows("history exported")
    assert (event.actor, event.details) == ("olivia", {"filters": {"user": "alice"}})


@pytest.mark.parametrize("begin", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "|x", "\uff1d1"])
def test_no_cell_is_a_formula(begin: str) -> None:
    """W23."""
    (line,) = exports.csv_lines(["name"], [[begin]], lambda row: row, most=9)

    assert list(csv.reader(io.StringIO(line, newline="")))[1] == [f"'{begin}"]


def test_numbers_and_other_texts_are_as_they_are() -> None:
    cells = [1, 0, None, "a=b", 'say "x", y;z', "line\nbreak", "émile"]
    (line,) = exports.csv_lines(["name"], [cells], lambda row: row, most=9)

    assert list(csv.reader(io.StringIO(line, newline="")))[1] == [
        "1", "0", "", "a=b", 'say "x", y;z', "line\nbreak", "émile",
    ]  # fmt: skip


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(("most", "rows", "is_cut"), [(10, 10, False), (9, 9, True), (4, 4, True)])
def test_file_is_read_in_parts_and_says_where_it_was_cut(
    monkeypatch: pytest.MonkeyPatch, most: int, rows: int, is_cut: bool
) -> None:
    monkeypatch.setattr(exports, "_PART", 4)
    add_sessions(*({"started_at": NOON} for _ in range(10)))
    lines = list(csv.reader(io.StringIO("".join(history.lines(history.Filter(), most=most)))))

    sessions = [line for line in lines[1:] if len(line) > 1]
    assert len({line[4] for line in sessions}) == len(sessions) == rows
    assert (lines[-1][0].startswith(f"Cut after {most} rows")) is is_cut
    acts = [json.loads(line) for line in audit.json_lines(audit.Filter(), most=0)]
    assert acts in ([], [{"cut_after": 0}])


@pytest.mark.parametrize("url", ["/admin/history/export", "/admin/audit/export"])
def test_only_who_may_search_gets_a_file_and_only_by_a_form_of_ours(app: Flask, url: str) -> None:
    for name, permissions in (("user", []), ("helpdesk", ["helpdesk"])):
        client = browser(app, add_user(name, permissions))
        assert export(client, url, format="csv").status_code == 403
    admin = browser(app, add_user("root", ["admin"]))
    assert admin.post(url, data=dict.fromkeys(history_fields, "")).status_code == 403
    assert admin.get(url).status_code == 405
    assert audit_rows("history exported") + audit_rows("audit log exported") == []
    assert export(admin, url, format="csv").status_code == 200


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("change", [{"from": "x"}, {"node": "x"}, {"format": "exe"}])
def test_bad_filters_give_no_file(auditor: FlaskClient, change: dict[str, str]) -> None:
    url = "/admin/audit/export" if "format" in change else "/admin/history/export"

    assert export(auditor, url, **change).status_code == 400
    assert audit_rows("history exported") + audit_rows("audit log exported") == []


def record(action: str, at: datetime = NOON, **values: Any) -> None:
    details = values.pop("details", {})
    with transaction() as db:
        audit.record(db, action, now=at, **{"actor": "root"} | values, **details)


def acts(client: FlaskClient, **query: str) -> list[str]:
    page = client.get("/admin/audit", query_string=query)
    assert page.status_code == 200, problem(page.text)
    return [part.partition("<")[0] for part in page.text.split('<td data-label="What">')[1:]]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["third", "second", "first"]),
        ({"actor": "bob"}, ["second"]),
        ({"action": "first"}, ["first"]),
        ({"object": "node0"}, ["third"]),
        ({"from": "2026-11-21"}, ["third"]),
        ({"to": "2026-11-19"}, ["first"]),
        ({"actor": "bo"}, []),
        ({"action": "never"}, []),
    ],
)
def test_filters_of_the_address_narrow_the_audit_log(
    auditor: FlaskClient, query: dict[str, str], found: list[str]
) -> None:
    record("first", NOON - DAY)
    record("second", actor="bob", object="alice")
    record("third", NOON + DAY, object="node0")

    assert acts(auditor, **query) == found


def test_actions_to_choose_from_are_those_of_the_log(auditor: FlaskClient) -> None:
    for action in ("user added", "node.drain", "user added", "app approved"):
        record(action)
    page = auditor.get("/admin/audit").text
    choices = [
        str(e["value"])
        for e in elements(page.partition('name="action"')[2].partition("</select>")[0], "option")
    ]

    assert choices == ["", "app approved", "node.drain", "user added"]


def test_details_of_an_act_can_be_read(auditor: FlaskClient) -> None:
    record("plan.apply", details={"changes": ["a", "b"], "cut": 0, "none": None, "by": {"x": 1}})
    record("long", details={"changes": ["profile employees: routes"] * 20})
    page = auditor.get("/admin/audit").text

    for text in ("changes:</span> a, b", "cut:</span> 0", "by:</span> x: 1"):
        assert text in page
    assert "none:" not in page
    assert page.count('<details class="why">') == 1


def test_hostile_acts_and_sessions_are_only_text(auditor: FlaskClient) -> None:
    """W6."""
    hostile = "<script>alert(1)</script>\"'><img src=x>{{7*7}}&"
    record(hostile, actor=hostile, object=hostile, source=hostile, details={"<b>": hostile, "x": [hostile]})
    add_sessions({"user_name": hostile, "profile_id": hostile[:60], "origin": "<b>x</b>"})
    for url in ("/admin/audit", "/admin/history"):
        pages = [
            auditor.get(url),
            auditor.get(url, query_string=dict.fromkeys([*history_fields, *audit_fields], hostile)),
        ]
        for page in pages:
            assert not list(elements(page.text, "script", "img", "b")), url
        assert "&lt;script&gt;" in pages[0].text
        assert "49" not in pages[0].text


def test_audit_log_as_csv_and_as_json_lines(auditor: FlaskClient) -> None:
    record("first", actor="=cmd()", object="node0", source="203.0.113.7", details={"cut": 3})
    record("other", NOON - DAY)
    table = export(auditor, "/admin/audit/export", action="first", format="csv")
    lines = export(auditor, "/admin/audit/export", action="first", format="jsonl")

    rows = list(csv.reader(io.StringIO(table.text)))
    assert rows[1:] == [["2026-11-20T12:00:00Z", "'=cmd()", "first", "node0", "203.0.113.7", '{"cut": 3}']]
    assert [json.loads(line) for line in lines.text.splitlines()] == [
        {
            "at": "2026-11-20T12:00:00Z",
            "actor": "=cmd()",
            "action": "first",
            "object": "node0",
            "source": "203.0.113.7",
            "details": {"cut": 3},
        }
    ]
    assert lines.mimetype == "application/x-ndjson"
    exported = audit_rows("audit log exported")
    assert [e.details["filters"] for e in exported] == [
        {"action": "first", "format": "csv"},
        {"action": "first", "format": "jsonl"},
    ]


def test_sign_ins_are_acts_also_those_that_failed(app: Flask) -> None:
    """P1."""
    add_account()
    client = app.test_client()
    assert sign_in(client, password="no such phrase 1", source="203.0.113.9").status_code == 403
    assert sign_in(client, "my secret typed here", source="203.0.113.9").status_code == 403
    assert sign_in(client, source="203.0.113.9").status_code == 303

    failed, succeeded = audit_rows("sign-in failed"), audit_rows("signed in")
    assert [(e.actor, e.object, e.source) for e in failed] == [
        ("visitor", "alice", "203.0.113.9"),
        ("visitor", None, "203.0.113.9"),
    ], "what was typed as a name may be a password"
    assert [(e.actor, e.object, e.source) for e in succeeded] == [("alice", "alice", None)]
    assert PASSWORD not in str([(e.details, e.object) for e in failed + succeeded])


@pytest.mark.parametrize("settings_changes", [{"log_origins": True}])
def test_where_a_sign_in_came_from_is_kept_if_the_settings_say_so(app: Flask) -> None:
    """P3."""
    add_account()
    sign_in(app.test_client(), source="203.0.113.9")

    assert [e.source for e in audit_rows("signed in")] == ["203.0.113.9"]


def test_flood_of_wrong_passwords_does_not_flood_the_log(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal_app.services.passwords.is_right", lambda *_args: False)
    for number in range(50):
        sign_in(app.test_client(), f"nobody{number}", source=f"203.0.113.{number}")

    assert len(audit_rows("sign-in failed")) <= 31


def test_session_that_is_not_over_lasts_until_now(auditor: FlaskClient) -> None:
    add_sessions({"started_at": utc_now() - timedelta(hours=3), "ended_at": None})

    assert "3 hours" in auditor.get("/admin/history").text
