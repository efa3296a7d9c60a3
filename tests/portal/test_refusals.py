"""What administrators read about a connect that was refused, or has ended."""

import json
from datetime import timedelta

import pytest
from flask import Flask
from markupsafe import escape
from sqlalchemy import select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import Forbidden, NotFound
from portal_app.models import AddressUse, Connection, Offer, Profile, RefusedConnect, User
from portal_app.services import connections, refusals
from portal_app.writing import writer
from tests.portal.app_user import VpnApp, add_user
from tests.portal.pages import send
from tests.portal.test_connect import OPENVPN, WIREGUARD
from tests.portal.test_pages import begin_use, live_connections
from tests.portal.test_people import admin, page_of


def refused() -> list[tuple[str, str, str, str | None]]:
    with transaction(read_only=True) as db:
        rows = db.scalars(select(RefusedConnect))
        return [(row.device, row.profile_id, row.answer, row.why) for row in rows]


@pytest.mark.parametrize(
    ("profile", "asked", "answer", "why"),
    [
        ("nothing", {}, 'no such "profile_id"', "there is no such profile"),
        (
            "lab",
            {"accept": OPENVPN},
            "no common VPN protocol between the app and this profile",
            "the profile offers wireguard+udp; the app takes openvpn+tcp, openvpn+udp",
        ),
        (
            "lab",
            {"public_key": None, "accept": WIREGUARD},
            "no common VPN protocol between the app and this profile",
            "the profile offers wireguard+udp; the app takes wireguard+udp and sent no WireGuard key",
        ),
    ],
)
def test_a_refused_connect_is_noted_with_its_reason(node, make_app_user, profile, asked, answer, why):
    app = make_app_user()

    assert app.connect(profile, **asked).status_code >= 400

    assert refused() == [("eduVPN for Linux", profile, answer, why)]


def test_who_lacks_a_permission_reads_no_more_than_before(node, make_app_user):
    """An administrator reads which; the app does not learn that the profile exists."""
    app = make_app_user()
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["staff"]))

    answer = app.connect("lab")

    assert (answer.status_code, answer.json) == (404, {"error": 'no such "profile_id"'})
    ((*_, why),) = refused()
    assert why == "the profile needs one of staff; the user has none"


def test_the_last_one_is_kept_and_repetitions_are_few_writes(app: Flask):
    user, now = add_user("alice"), utc_now()
    for seconds, profile in ((0, "first"), (1, "second"), (6, "third")):
        refusals.note(user.id, "app", profile, NotFound("gone"), now=now + timedelta(seconds=seconds))
        kept = {0: "first", 1: "first", 6: "third"}[seconds]
        assert [row[1] for row in refused()] == [kept]


def test_an_answer_comes_although_its_reason_cannot_be_noted(app: Flask):
    refusals.note(4711, "app", "employees", Forbidden("no"), now=utc_now())

    assert refused() == []


def test_page_of_a_user_says_how_the_last_connects_were_decided(app: Flask, node):
    """One that lasts, one that has ended, and one that was refused."""
    user = add_user("alice")
    phone = VpnApp(app, user).authorize()
    phone.connect()
    (first,) = live_connections()
    begin_use(first, "alice", 1, ended_at=utc_now())
    phone.disconnect()
    with transaction() as db:
        db.execute(update(Offer).where(Offer.profile_id == "lab").values(capacity=0))
    assert phone.connect("lab").status_code == 503
    phone.connect()

    page = admin(app).get(page_of("alice")).text
    table = page.split('id="why"')[1].split('id="history"')[0]

    assert [table.count(f">{result}<") for result in ("lasts", "has ended", "refused")] == [1, 1, 1]
    assert table.count("wireguard: preferred by the profile") == 2
    assert "no capacity: no VPN server of this profile has room at the moment" in table
    assert "no wireguard: node0 (full)" in table


def table_of_decisions(app: Flask, language: str = "en") -> str:
    page = admin(app).get(page_of("alice"), headers={"Accept-Language": language}).text
    return page.split('id="why"')[1].split('id="history"')[0]


@pytest.mark.parametrize("accept", [WIREGUARD, OPENVPN])
def test_page_of_a_user_says_how_was_decided_what_was_never_used(app: Flask, node, accept: str):
    """A configuration that never got through: no session tells of it."""
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect(accept=accept)
    (connection,) = live_connections()
    phone.disconnect()

    table = table_of_decisions(app)

    assert (table.count(">has ended<"), table.count(">lasts<")) == (1, 0)
    assert escape(connection.choice) in table


def test_page_of_a_user_says_when_openvpn_was_decided_not_when_it_was_used_last(app: Flask, node):
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect(accept=OPENVPN)
    made = utc_now() - timedelta(days=2)
    with transaction() as db:
        db.execute(update(Connection).values(created_at=made))
    (connection,) = live_connections()
    for hours in (30, 1):
        address = {"ipv4": f"10.62.0.{hours}", "started_at": utc_now() - timedelta(hours=hours)}
        begin_use(connection, "alice", hours, ended_at=utc_now(), **address)
        with transaction() as db:
            db.add(
                AddressUse(
                    connection_id=connection.id, user_name="alice", profile_id="employees", node_number=0,
                    protocol="openvpn", choice=connection.choice, ended_at=utc_now(), **address,
                )
            )  # fmt: skip
    phone.disconnect()

    table = table_of_decisions(app)

    assert table.count(">has ended<") == 1
    assert f"{made:%Y-%m-%dT%H:%M:%SZ}" in table


def test_what_no_node_admitted_is_no_connection_that_has_ended(app: Flask, node, monkeypatch):
    monkeypatch.setattr(connections, "ADMIT_SECONDS", 0.3)
    phone = VpnApp(app, add_user("alice")).authorize()
    node.mode = "refuse"
    assert phone.connect(accept=WIREGUARD).status_code == 503

    table = table_of_decisions(app)

    assert [table.count(f">{result}<") for result in ("lasts", "has ended", "refused")] == [0, 0, 1]


def test_an_answer_is_read_in_ones_own_language(app: Flask, node):
    with transaction() as db:
        db.execute(update(Offer).values(capacity=0, openvpn=[]))
    assert VpnApp(app, add_user("alice")).authorize().connect().status_code == 503

    table = table_of_decisions(app, "de")

    answer = "no capacity: no VPN server of this profile has room at the moment"
    assert answer not in table
    assert writer("de").translated(answer) in table


def test_a_user_does_not_learn_from_their_data_what_the_app_does_not(app: Flask, node):
    """That a profile exists, and how nodes are."""
    with transaction() as db:
        db.execute(update(Profile).where(Profile.profile_id == "lab").values(permissions=["board"]))
        db.execute(update(Profile).where(Profile.profile_id == "legacy").values(hidden=True))
        db.execute(update(Offer).values(capacity=0, openvpn=[]))
    for name, profile, answer in (
        ("alice", "lab", 'no such "profile_id"'),
        ("bob", "legacy", 'no such "profile_id"'),
        ("carol", "nothing", 'no such "profile_id"'),
        ("dora", "employees", "no capacity: no VPN server of this profile has room at the moment"),
    ):
        phone = VpnApp(app, add_user(name)).authorize()
        phone.connect(profile)
        found = json.loads(send(phone.browser, "/account/export").text)["last_refused_connect"]
        assert found.pop("at")
        assert found == {"device": "eduVPN for Linux", "profile_id": profile, "answer": answer}


def test_an_export_has_what_was_never_used_and_not_how_a_node_was_chosen(app: Flask, node):
    phone = VpnApp(app, add_user("alice")).authorize()
    phone.connect(accept=WIREGUARD)
    (lasting,) = live_connections()
    phone.connect(accept=WIREGUARD)

    text = send(phone.browser, "/account/export").text

    addresses = json.loads(text)["addresses"]
    assert lasting.id in [row["connection_id"] for row in addresses if row["end_reason"] == "replaced"]
    assert len(addresses) == 2
    assert "free addresses" not in text


def test_what_was_refused_goes_with_its_user(app: Flask, run):
    user = add_user("alice")
    refusals.note(user.id, "app", "employees", NotFound("gone"), now=utc_now())

    assert run("user", "delete", "alice").status == 0

    with transaction(read_only=True) as db:
        assert db.scalars(select(User)).all() == []
    assert refused() == []
