"""Who had an address when: the question, the answer, and the trace that the question leaves."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import insert, select, update
from werkzeug.test import TestResponse

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import BadRequest
from portal_app.models import AddressUse, AuditEvent, Connection, VpnSession
from portal_app.services import who_had
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import LINUX, VpnApp, add_user, browser, csrf_token
from tests.portal.commands import Done
from tests.portal.conftest import seen_up
from tests.portal.pages import elements, problem
from vpn_core.messages import Gap, Translation

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
#: In the evening, so that a zone may be on another day.
THEN = (utc_now() - timedelta(days=2)).replace(hour=22, minute=30, second=0, microsecond=0)


@pytest.fixture
def auditor(app: Flask) -> FlaskClient:
    return browser(app, add_user("olivia", ["auditor"]))


def ask(client: FlaskClient, address: str, at: datetime = THEN, **changes: str) -> TestResponse:
    form = {
        "csrf_token": csrf_token(client.get("/admin/who-had-it").text),
        "address": address,
        "date": f"{at:%Y-%m-%d}",
        "time": f"{at:%H:%M:%S}",
        "zone": "UTC",
        "tolerance": "0",
    }
    return client.post("/admin/who-had-it", data=form | changes)


def had(user: str, begin: datetime, end: datetime | None, number: int = 1, **changes: Any) -> None:
    values = {
        "connection_id": f"{number:032x}",
        "user_name": user,
        "profile_id": "employees",
        "node_number": 0,
        "protocol": "wireguard",
        "client_id": LINUX,
        "ipv4": "10.61.0.9",
        "ipv6": "fd43:61::9",
        "started_at": begin,
        "ended_at": end,
    }
    with transaction() as db:
        db.execute(insert(AddressUse).values(values | changes))


def connected(user: str, begin: datetime, end: datetime | None, number: int = 1, **changes: Any) -> None:
    values = {
        "node_number": 0,
        "session_id": f"{number:032x}",
        "connection_id": f"{number:032x}",
        "user_name": user,
        "profile_id": "employees",
        "protocol": "wireguard",
        "ipv4": "10.61.0.9",
        "ipv6": "fd43:61::9",
        "started_at": begin,
        "ended_at": end,
    }
    with transaction() as db:
        db.execute(insert(VpnSession).values(values | changes))


def people(page: TestResponse) -> list[str]:
    assert page.status_code == 200, problem(page.text)
    return [name.strip() for name in re.findall(r"<h3>([^<]+)", page.text)]


def searches() -> list[AuditEvent]:
    with transaction(read_only=True) as db:
        searched = select(AuditEvent).where(AuditEvent.action == "address searched")
        return list(db.scalars(searched.order_by(AuditEvent.id)))


@pytest.mark.parametrize(
    "address", ["10.61.0.9", " 10.61.0.9 ", "fd43:61::9", "FD43:61:0::0:9", "::ffff:10.61.0.9"]
)
def test_holder_of_then_is_found_among_those_before_and_after(auditor: FlaskClient, address: str) -> None:
    """P2."""
    had("before", THEN - 2 * HOUR, THEN - HOUR, 1)
    had("alice", THEN - HOUR + MINUTE, THEN + HOUR, 2)
    had("after", THEN + HOUR + MINUTE, None, 3)
    had("elsewhere", THEN - HOUR, None, 4, ipv4="10.61.0.90", ipv6="fd43:61::90")

    page = ask(auditor, address)
    assert people(page) == ["alice"]
    assert "Page 1 of" not in page.text


def test_answer_says_everything_that_is_known(app: Flask, node: AgentServer, auditor: FlaskClient) -> None:
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect()
    with transaction(read_only=True) as db:
        connection = db.scalars(select(Connection)).one()
    with transaction() as db:
        db.execute(update(AddressUse).values(started_at=THEN - HOUR))
        db.execute(update(Connection).values(display_name="Alice's laptop"))
    address = str(connection.ipv4)
    connected(
        "alice", THEN - MINUTE, THEN + MINUTE, connection_id=connection.id,
        ipv4=connection.ipv4, ipv6=connection.ipv6, origin="203.0.113.77",
    )  # fmt: skip
    page = ask(auditor, address).text

    for text in (
        "eduVPN for Linux", "Alice&#39;s laptop", "node0", "Employees", "WireGuard", connection.id,
        "203.0.113.77", "has it now", address, str(connection.ipv6), "22:29:00 UTC", "22:31:00 UTC", "olivia",
    ):  # fmt: skip
        assert text in page, text


def test_device_is_known_after_its_connection_has_ended(auditor: FlaskClient) -> None:
    had("alice", THEN - HOUR, THEN + MINUTE, client_id=None, device="Alice's laptop")

    assert "<small>Alice&#39;s laptop</small>" in ask(auditor, "10.61.0.9").text


@pytest.mark.parametrize("prefer_tcp", ["no", "yes"])
def test_connects_and_ends_remember_what_the_device_was_called(
    app: Flask, node: AgentServer, prefer_tcp: str
) -> None:
    """WireGuard has its record from the begin, OpenVPN from the end on."""
    phone = VpnApp(app, add_user("alice")).authorize()
    assert phone.connect(prefer_tcp=prefer_tcp).status_code == 200
    assert phone.disconnect().status_code == 204

    with transaction(read_only=True) as db:
        assert set(db.scalars(select(AddressUse.device))) == {"eduVPN for Linux"}


def test_tolerance_widens_the_time_on_both_sides(auditor: FlaskClient) -> None:
    had("before", THEN - 2 * HOUR, THEN - 4 * MINUTE, 1)
    had("after", THEN + 4 * MINUTE, None, 2)

    found = {t: people(ask(auditor, "10.61.0.9", tolerance=t)) for t in ("0", "60", "300", "1800", "3600")}

    both = ["after", "before"]
    assert found == {"0": [], "60": [], "300": both, "1800": both, "3600": both}


def test_part_of_the_second_that_was_asked_for_counts(auditor: FlaskClient) -> None:
    had("alice", THEN + timedelta(milliseconds=600), None)

    assert people(ask(auditor, "10.61.0.9")) == ["alice"]
    assert people(ask(auditor, "10.61.0.9", THEN - timedelta(seconds=1))) == []


def test_time_is_read_in_the_chosen_zone_and_said_in_both(auditor: FlaskClient) -> None:
    had("alice", THEN, THEN + MINUTE)
    tokyo = THEN + 9 * HOUR
    page = ask(auditor, "10.61.0.9", tokyo, zone="Asia/Tokyo")

    assert people(page) == ["alice"]
    assert "<option selected>Asia/Tokyo</option>" in page.text
    assert page.text.count("selected>Asia") == 1
    assert "22:30:00 UTC<" in page.text
    assert "07:30:00 UTC+09:00" in page.text
    assert people(ask(auditor, "10.61.0.9", tokyo - HOUR, zone="Asia/Tokyo")) == []


def test_time_is_read_by_its_distance_from_utc(auditor: FlaskClient) -> None:
    """As complaints write it, such as +0200: no place has to be guessed."""
    had("alice", THEN, THEN + MINUTE)
    for zone, local in (("UTC+02:00", THEN + 2 * HOUR), ("UTC-03:30", THEN - 3.5 * HOUR)):
        page = ask(auditor, "10.61.0.9", local, zone=zone)
        assert people(page) == ["alice"]
        assert f"<option selected>{zone}</option>" in page.text
        assert f"{local:%H:%M:%S} {zone}" in page.text
    assert [row.details["zone"] for row in searches()] == ["UTC+02:00", "UTC-03:30"]


def test_distances_from_utc_are_in_their_order(auditor: FlaskClient) -> None:
    page = auditor.get("/admin/who-had-it").text
    shown = re.findall(r"<option>(UTC[+-][0-9:]+)</option>", page)

    assert (shown[0], shown[-1]) == ("UTC-12:00", "UTC+14:00")
    assert {"UTC+01:00", "UTC+05:30", "UTC+05:45", "UTC-09:30"} < set(shown)
    moments = [who_had.moments("2026-11-22", "12:00:00", zone)[0] for zone in shown]
    assert moments == sorted(moments, reverse=True)


def test_local_time_that_came_twice_is_two_moments() -> None:
    """In the night of 26 October 2025 clocks in Amsterdam went from 3:00 back to 2:00."""
    found = who_had.moments("2025-10-26", "02:30:00", "Europe/Amsterdam")

    assert found == (datetime(2025, 10, 26, 0, 30, tzinfo=UTC), datetime(2025, 10, 26, 1, 30, tzinfo=UTC))
    question = who_had.Question("10.61.0.9", found, MINUTE)
    spans = [(f"{first:%H:%M:%S}", f"{last:%H:%M:%S}") for first, last in question.spans]
    assert spans == [("00:29:00", "00:31:00"), ("01:29:00", "01:31:00")], "and nothing between them"


def test_local_time_that_never_was_is_refused() -> None:
    with pytest.raises(BadRequest, match="did not exist in Europe/Amsterdam"):
        who_had.moments("2026-03-29", "02:30", "Europe/Amsterdam")


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "alice"}, "is not an address"),
        ({"address": ""}, "is not an address"),
        ({"address": "10.61.0.9:51820"}, "is not an address"),
        ({"address": "10.61.0.0/24"}, "is not an address"),
        ({"address": "<script>"}, "is not an address"),
        ({"date": "22-11-2026"}, "cannot be read"),
        ({"date": "0001-01-01"}, "cannot be read"),
        ({"date": "9999-12-31"}, "cannot be read"),
        ({"time": "25:00"}, "cannot be read"),
        ({"time": "10:00+02:00"}, "cannot be read"),
        ({"zone": "Mars/Olympus"}, "time zone is not known"),
        ({"zone": "../../etc/passwd"}, "time zone is not known"),
        ({"zone": ""}, "time zone is not known"),
        ({"zone": "UTC+15:00"}, "time zone is not known"),
        ({"zone": "UTC+02:60"}, "time zone is not known"),
        ({"zone": "+02:00"}, "time zone is not known"),
        ({"tolerance": "86400"}, "Choose a tolerance"),
        ({"date": "2100-01-01"}, "in the future"),
    ],
)
def test_what_cannot_be_asked_is_said_and_no_search(
    auditor: FlaskClient, changes: dict[str, str], said: str
) -> None:
    had("victor", THEN - HOUR, None)
    page = ask(auditor, **{"address": "10.61.0.9"} | changes)

    assert page.status_code == 400
    assert said in problem(page.text)
    assert "victor" not in page.text
    assert searches() == []


def test_nobody_and_too_long_ago_are_said(auditor: FlaskClient) -> None:
    assert "Nobody had this address" in ask(auditor, "10.61.0.9").text
    old = ask(auditor, "10.61.0.9", utc_now() - timedelta(days=31)).text
    assert "Records are kept for 30 days" in old
    assert "Records are kept" not in ask(auditor, "10.61.0.9").text

    had("alice", utc_now() - timedelta(days=60), None)
    assert people(ask(auditor, "10.61.0.9", utc_now() - timedelta(days=31))) == ["alice"]


def test_an_openvpn_address_is_not_mixed_with_the_others_of_its_connection(auditor: FlaskClient) -> None:
    for number, (address, begin) in enumerate((("10.62.0.2", THEN - HOUR), ("10.62.0.3", THEN))):
        fields = {"protocol": "openvpn", "ipv4": address, "ipv6": None, "connection_id": "c" * 32}
        had("alice", begin, begin + HOUR, number, **fields)
        connected("alice", begin, begin + HOUR, number, **fields)
    page = ask(auditor, "10.62.0.2", THEN - MINUTE, tolerance="300").text

    connections = page.partition("<dt>Connected</dt>")[2].partition("</dl>")[0]
    assert connections.count("<dd>") == 1
    assert "21:30:00 UTC" in connections


def test_people_are_found_by_where_they_came_from(auditor: FlaskClient) -> None:
    origin = {"origin": "2001:db8::77"}
    had("alice", THEN - HOUR, None, 1)
    connected("alice", THEN - MINUTE, THEN + MINUTE, 1, **origin)
    connected("bob", THEN - 2 * HOUR, THEN - HOUR, 2, **origin)
    connected("carol", THEN - HOUR, None, 3, origin="2001:db8::78")
    page = ask(auditor, "2001:DB8:0::77")

    assert people(page) == ["alice"]
    assert "eduVPN for Linux" in page.text


def test_reserved_but_not_in_use_is_said(auditor: FlaskClient) -> None:
    had("alice", THEN - HOUR, THEN + HOUR)
    connected("alice", THEN - HOUR, THEN - 30 * MINUTE)

    assert "it was not connected" in ask(auditor, "10.61.0.9").text


def test_each_search_is_an_audit_row_with_its_question_and_how_many_it_found(auditor: FlaskClient) -> None:
    had("alice", THEN - HOUR, None)
    ask(auditor, "10.61.0.9", THEN + 9 * HOUR, zone="Asia/Tokyo", tolerance="300")
    ask(auditor, "10.61.0.10")

    first, second = searches()
    assert (first.actor, first.object, first.source) == ("olivia", "10.61.0.9", "127.0.0.1")
    assert first.details == {
        "at": [f"{THEN:%Y-%m-%dT%H:%M:%SZ}"],
        "zone": "Asia/Tokyo",
        "tolerance_seconds": 300,
        "found": 1,
    }
    assert (second.object, second.details["found"]) == ("10.61.0.10", 0)


def test_no_audit_row_no_answer(auditor: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    had("alice", THEN - HOUR, None)

    def fail(*_args: Any, **_details: Any) -> None:
        raise RuntimeError("full")

    monkeypatch.setattr("portal_app.services.audit.recording", fail)
    page = ask(auditor, "10.61.0.9")
    assert page.status_code == 500
    assert "alice" not in page.text


def test_opening_the_page_searches_nothing_whatever_its_address_says(auditor: FlaskClient) -> None:
    had("alice", THEN - HOUR, None)
    page = auditor.get("/admin/who-had-it", query_string={"address": "10.61.0.9", "date": f"{THEN:%Y-%m-%d}"})

    assert "alice" not in page.text
    assert searches() == []


def test_only_who_may_search_may_ask(app: Flask) -> None:
    had("alice", THEN - HOUR, None)
    for name, permissions in (("user", []), ("helpdesk", ["helpdesk"])):
        client = browser(app, add_user(name, permissions))
        assert client.get("/admin/who-had-it").status_code == 403
        token = csrf_token(client.get("/").text)
        page = client.post("/admin/who-had-it", data={"csrf_token": token, "address": "10.61.0.9"})
        assert page.status_code == 403
    admin = browser(app, add_user("root", ["admin"]))
    assert admin.post("/admin/who-had-it", data={"address": "10.61.0.9"}).status_code == 403, "no CSRF token"
    assert searches() == []
    assert people(ask(admin, "10.61.0.9")) == ["alice"]


def test_hostile_names_are_only_text_in_the_answer(auditor: FlaskClient) -> None:
    """W6."""
    hostile = "<script>alert(1)</script>\"'><img src=x>{{7*7}}&"
    had(hostile, THEN - HOUR, None, client_id=hostile, profile_id=hostile[:60])
    connected(hostile, THEN - HOUR, None, origin="<b>x</b>")
    page = ask(auditor, "10.61.0.9")

    assert people(page)
    assert not list(elements(page.text, "script", "img", "b"))
    assert "&lt;script&gt;" in page.text


def test_more_holders_than_can_be_shown_are_cut_and_it_is_said(
    auditor: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(who_had, "MOST_HOLDERS", 2)
    for number in range(3):
        had(f"user{number}", THEN + number * MINUTE, THEN + (number + 1) * MINUTE, number)
    page = ask(auditor, "10.61.0.9", tolerance="1800")

    assert people(page) == ["user2", "user1"]
    assert "smaller tolerance" in page.text


def test_a_long_answer_comes_in_pages_that_are_short(auditor: FlaskClient) -> None:
    """60 kB with the files of the page, as every page (``test_large_lists.py``)."""
    for number in range(who_had.MOST_HOLDERS):
        had(f"user{number}", THEN, THEN + HOUR, number, device="Laptop of the physics department")
        for use in range(who_had.MOST_SESSIONS):
            session = {"session_id": f"{number}-{use}", "origin": "2001:db8:1234:5678:1234:5678:1234:5678"}
            connected(f"user{number}", THEN, THEN + HOUR, number, **session)
    found: list[str] = []
    place: dict[str, str] = {}
    while True:
        page = ask(auditor, "10.61.0.9", zone="Europe/Amsterdam", tolerance="3600", **place)
        first = len(found) + 1
        found += people(page)
        numbers = f"Page {len(searches())} of 50, holders {first} to {len(found)} of {who_had.MOST_HOLDERS}"
        assert f"<p><strong>{numbers}</strong></p>" in page.text, "on paper, too"
        assert "print each of its pages" in page.text
        assert len(page.data) < 52_000
        if "Next" not in page.text:
            break
        (number,) = re.findall(r'name="page" value="([0-9]+)">Next', page.text)
        place = {"page": number}
    assert sorted(found) == sorted(f"user{number}" for number in range(who_had.MOST_HOLDERS))
    assert {row.details["found"] for row in searches()} == {who_had.MOST_HOLDERS}
    assert [row.details.get("page") for row in searches()] == [None, *range(2, 51)], "to go on is said"


def test_command_asks_the_same_and_leaves_the_same_trace(run: Callable[..., Done]) -> None:
    had("before", THEN - 2 * HOUR, THEN - HOUR, 1, end_reason="expired")
    had("alice", THEN - HOUR + MINUTE, None, 2)
    connected("alice", THEN - MINUTE, THEN + MINUTE, 2, origin="203.0.113.77")
    tokyo = THEN + 9 * HOUR
    times = (
        ["--at", f"{THEN:%Y-%m-%dT%H:%M:%S}"],
        ["--at", f"{tokyo:%Y-%m-%dT%H:%M:%S}", "--zone", "Asia/Tokyo"],
        ["--at", f"{tokyo:%Y-%m-%dT%H:%M:%S}+09:00"],
        ["--at", f"{THEN - 2 * HOUR - 3 * MINUTE:%Y-%m-%dT%H:%M:%S}", "--tolerance", "200"],
    )

    found = [run("address", "10.61.0.9", "--json", *words) for words in ([], *times)]

    assert [[row["user"] for row in json.loads(done.out)["holders"]] for done in found] == [
        ["alice", "before"], ["alice"], ["alice"], ["alice"], ["before"],
    ]  # fmt: skip
    latest, earlier = json.loads(found[0].out)["holders"]
    assert (latest["until"], earlier["end_reason"]) == (None, "expired")
    assert [session["origin"] for session in latest["sessions"]] == ["203.0.113.77"]
    (came,) = json.loads(run("address", "203.0.113.77", "--json").out)["holders"]
    assert came["user"] == "alice"
    assert [row.actor for row in searches()] == ["cli"] * 6
    assert [row.details["found"] for row in searches()] == [2, 1, 1, 1, 1, 1]


def test_command_speaks_to_people_too(run: Callable[..., Done]) -> None:
    had("alice", THEN - HOUR, None)

    assert re.match(r"alice  \S+ - now  employees wireguard  0+1\n", run("address", "10.61.0.9").out)
    assert run("address", "10.61.0.10").out == "nobody\n"
    old = run("address", "10.61.0.9", "--at", f"{utc_now() - timedelta(days=40):%Y-%m-%d}")
    assert "kept for 30 days" in old.error
    assert old.status == 2


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alice"], "is not an address"),
        (["10.61.0.9", "--at", "yesterday"], "--at: 'yesterday' is no time"),
        (["10.61.0.9", "--at", "9999-12-31T23:00:00+00:00"], "cannot be read"),
        (["10.61.0.9", "--at", "2100-01-01"], "in the future"),
        (["10.61.0.9", "--at", "2026-01-01", "--zone", "Mars/Olympus"], "time zone is not known"),
        (["10.61.0.9", "--at", "2026-01-01", "--tolerance", "-1"], "--tolerance: from 0"),
        (["10.61.0.9", "--tolerance", "60"], "--tolerance: only with --at"),
        (["10.61.0.9", "--zone", "Asia/Tokyo"], "--zone: only with --at"),
        (["10.61.0.9", "--at", "2026-01-01T10:00:00+01:00", "--zone", "Asia/Tokyo"], "has a zone already"),
    ],
)
def test_command_says_what_is_wrong_and_searches_nothing(
    run: Callable[..., Done], words: list[str], said: str
) -> None:
    done = run("address", *words)

    assert (done.status, done.out) == (1, "")
    assert said in done.error
    assert searches() == []


LOGGED = pytest.mark.parametrize("settings_changes", [{"log_nat": True}], ids=["nat is logged"])
PUBLIC = "192.0.2.1"


def sent(node: AgentServer, client: str, at: datetime, seconds: int | None = 60, protocol: int = 6) -> None:
    """Let a node tell that a client's flow left it from the public address and port 40000."""
    began_at = int(at.timestamp())
    ended_at = None if seconds is None else began_at + seconds
    assert node.translations is not None
    node.translations[PUBLIC, 40000].append(Translation(client, protocol, began_at, ended_at))


@LOGGED
def test_public_address_and_port_lead_to_who_had_the_address_behind_it_then(
    node: AgentServer, auditor: FlaskClient
) -> None:
    """Of those who had it one after the other, and of flows before and after, those of that moment."""
    had("earlier", THEN - 3 * HOUR, THEN - 2 * HOUR, 1)
    had("alice", THEN - HOUR, THEN + HOUR, 2)
    had("later", THEN + 2 * HOUR, None, 3)
    sent(node, "10.61.0.9", THEN - 20 * MINUTE, 30 * 60)
    sent(node, "10.61.0.9", THEN - 2 * HOUR - 30 * MINUTE)

    answer = ask(auditor, PUBLIC, port="40000")
    page = answer.text

    assert people(answer) == ["alice"]
    assert "Who had 192.0.2.1, port 40000" in page
    assert "TCP" in page
    assert "Nobody had" in ask(auditor, PUBLIC, port="40001").text
    first, _ = searches()
    assert (first.object, first.details["port"], first.details["found"]) == (PUBLIC, 40000, 1)


@LOGGED
def test_each_who_used_the_port_is_named(node: AgentServer, auditor: FlaskClient) -> None:
    """Towards different places the kernel gives one port to several."""
    had("alice", THEN - HOUR, None, 1)
    had("bob", THEN - HOUR, None, 2, ipv4="10.61.0.10", ipv6="fd43:61::10")
    sent(node, "10.61.0.9", THEN - MINUTE, None)
    sent(node, "fd43:61::10", THEN - 2 * MINUTE, None, protocol=17)

    assert people(ask(auditor, PUBLIC, port="40000")) == ["alice", "bob"]


@LOGGED
def test_a_node_that_is_silent_or_keeps_no_log_is_named(
    make_nodes: Callable[..., list[AgentServer]], auditor: FlaskClient
) -> None:
    silent, without, older, young = make_nodes(4)
    silent.mode, without.translations, older.is_older = "silent", None, True
    young.nat_log_begins = int((THEN + HOUR).timestamp())

    page = ask(auditor, PUBLIC, port="40000").text

    assert "begins after the time that was asked for: node3" in page
    assert "These nodes did not answer, and are not in the result: node0" in page
    assert "These nodes keep no log of NAT: node1, node2" in page


@LOGGED
def test_a_gap_in_a_log_is_told(
    make_nodes: Callable[..., list[AgentServer]], auditor: FlaskClient, run: Callable[..., Done]
) -> None:
    with_gap, _ = make_nodes(2)
    then = int(THEN.timestamp())
    with_gap.nat_log_gaps = (Gap(then - 600, then + 600),)
    words = ["address", PUBLIC, "--port", "40000", "--json", "--at"]

    page = ask(auditor, PUBLIC, port="40000").text
    done, after = (run(*words, f"{at:%Y-%m-%dT%H:%M:%S}") for at in (THEN, THEN + HOUR))

    assert "has a gap at this time, so somebody may be missing from the result: node0<" in page
    assert "Nobody had" not in page
    assert (done.status, json.loads(done.out)["with_gap"]) == (2, ["node0"])
    assert "vpn-portal: the log of NAT has a gap at the time that was asked for: node0\n" in done.error
    assert (after.status, json.loads(after.out)["with_gap"], after.error) == (0, [], "")


@LOGGED
def test_a_client_whose_person_is_forgotten_is_told(
    node: AgentServer, auditor: FlaskClient, run: Callable[..., Done]
) -> None:
    """Not as nobody: a node may keep its log for longer than the portal keeps who had which address."""
    at = THEN - timedelta(days=38)
    sent(node, "10.61.0.9", at, 60)
    words = ["address", PUBLIC, "--port", "40000", "--at", f"{at:%Y-%m-%dT%H:%M:%S}"]

    page, done, parsed = ask(auditor, PUBLIC, at, port="40000").text, run(*words), run(*words, "--json")

    for text in (
        "Not known any more",
        "<code>10.61.0.9</code>",
        "node0",
        "TCP",
        "Records are kept for 30 days",
    ):
        assert text in page, text
    assert "Nobody had" not in page
    assert done.out.startswith("client 10.61.0.9 of node0, person not known any more  TCP ")
    (one,) = json.loads(parsed.out)["unnamed"]
    assert (one["client"], one["flow"]["protocol"]) == ("10.61.0.9", "TCP")
    assert (done.status, parsed.status) == (2, 2)


@LOGGED
def test_who_asks_while_all_nodes_are_down_is_not_told_nobody(
    make_nodes: Callable[..., list[AgentServer]], auditor: FlaskClient, run: Callable[..., Done]
) -> None:
    """Those that are known to be down are not waited for. One that holds back answers."""
    down, held = make_nodes(2)
    seen_up(down.number, THEN, failing_since=utc_now(), error="node0: no answer")
    seen_up(held.number, utc_now(), failing_since=utc_now() - HOUR, error="held: other deployment")
    words = ["address", PUBLIC, "--port", "40000", "--at", f"{THEN:%Y-%m-%dT%H:%M:%S}"]

    page, done, parsed = ask(auditor, PUBLIC, port="40000").text, run(*words), run(*words, "--json")

    assert "These nodes did not answer, and are not in the result: node0<" in page
    assert "Nobody had" not in page
    assert down.calls == []
    assert len(held.calls) == 3
    assert (done.status, done.out) == (2, "nobody found\n")
    assert (parsed.status, json.loads(parsed.out)["silent"]) == (2, ["node0"])


@LOGGED
@pytest.mark.parametrize("port", ["x", "-1", "65536", "1e3", "٣", "000000999999", "000080"])
def test_what_is_no_port_is_told(node: AgentServer, auditor: FlaskClient, port: str) -> None:
    answer = ask(auditor, PUBLIC, port=port)

    assert answer.status_code == 400
    assert problem(answer.text) == "A port is a number from 0 to 65535."


def test_where_nat_is_not_logged_nobody_is_asked_for_a_port(node: AgentServer, auditor: FlaskClient) -> None:
    had("alice", THEN - HOUR, None)

    assert 'name="port"' not in auditor.get("/admin/who-had-it").text
    assert people(ask(auditor, "10.61.0.9", port="40000")) == ["alice"]
    assert not any(path.startswith("/n/translations") for _, path in node.calls)


@LOGGED
def test_command_line_asks_for_a_port(node: AgentServer, run: Callable[..., Done]) -> None:
    had("alice", THEN - HOUR, None)
    sent(node, "10.61.0.9", THEN - MINUTE)
    at = f"{THEN:%Y-%m-%dT%H:%M:%S}"

    done = run("address", PUBLIC, "--port", "40000", "--at", at, "--json")

    (found,) = json.loads(done.out)["holders"]
    assert (found["user"], found["flow"]["protocol"]) == ("alice", "TCP")
    assert (done.status, json.loads(done.out)["is_whole"]) == (0, True)
    assert "alice" in run("address", PUBLIC, "--port", "40000", "--at", at).out
    assert "--port: only with --at" in run("address", PUBLIC, "--port", "40000").error
    assert "--port: from 0 to 65535" in run("address", PUBLIC, "--port", "70000", "--at", at).error


@LOGGED
def test_users_read_that_nat_is_logged(app: Flask) -> None:
    page = browser(app, add_user("alice")).get("/account").text

    assert "from which of its ports, but not where it went, for 7 days after the end." in page
    assert re.search(r"kept with it\.\s+The last connect that was refused is kept as long", page)
    assert "What you do on the network is not recorded." not in page


def test_users_read_that_nothing_of_what_they_do_is_recorded(app: Flask) -> None:
    page = browser(app, add_user("alice")).get("/account").text

    assert "What you do on the network is not recorded." in page
