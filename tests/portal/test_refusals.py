"""What administrators read about a connect that was refused, or has ended."""

from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import Forbidden, NotFound
from portal_app.models import Offer, Profile, RefusedConnect, User
from portal_app.services import refusals
from tests.portal.app_user import VpnApp, add_user
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


def test_what_was_refused_goes_with_its_user(app: Flask, run):
    user = add_user("alice")
    refusals.note(user.id, "app", "employees", NotFound("gone"), now=utc_now())

    assert run("user", "delete", "alice").status == 0

    with transaction(read_only=True) as db:
        assert db.scalars(select(User)).all() == []
    assert refused() == []
