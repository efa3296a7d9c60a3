"""Guessing is bounded over all portals, and nobody is locked out by it (reliability.md W9, R39, R41)."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.errors import NotFound
from portal_app.models import OneTimeLink, Throttle
from portal_app.services import passwords, sign_in, throttles, users
from portal_app.services.passwords import WeakPassword
from portal_app.settings import Settings
from tests.portal.app_user import HttpsClient
from tests.portal.pages import ATTACKER, ELSEWHERE, PASSWORD, add_account, is_signed_in, problem, send
from tests.portal.pages import sign_in as press_sign_in

LIMIT = sign_in.PER_ACCOUNT_AND_SOURCE.burst


def empty(bucket_start: str) -> None:
    with transaction() as db:
        db.execute(update(Throttle).where(Throttle.bucket.startswith(bucket_start)).values(tokens=0.0))


def guess(client: FlaskClient, count: int, source: str = ATTACKER, name: str = "alice") -> list[int]:
    return [press_sign_in(client, name, f"guess {n}", source=source).status_code for n in range(count)]


@pytest.mark.parametrize("name", ["alice", "nobody"])
def test_guesses_at_two_portals_count_together(app: Flask, settings: Settings, name: str) -> None:
    """R41; and the answer does not tell whether the account exists."""
    add_account()
    portals = [app.test_client()]
    second = create_app(settings)
    second.test_client_class = HttpsClient
    portals.append(second.test_client())

    answers = [guess(portals[n % 2], 1, name=name)[0] for n in range(LIMIT + 3)]
    assert answers == [403] * LIMIT + [429] * 3


def test_a_refused_guess_is_not_checked_and_says_when_to_come_back(client: FlaskClient) -> None:
    add_account()
    guess(client, LIMIT)

    answer = press_sign_in(client, "alice", PASSWORD, source=ATTACKER)
    assert answer.status_code == 429
    assert "Too many attempts" in problem(answer.text)
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert not is_signed_in(client)


def test_guesses_sent_at_once_pass_the_limit_together_only(app: Flask) -> None:
    """R41."""
    add_account()
    gate = threading.Barrier(12)

    def try_once(number: int) -> int:
        client = app.test_client()
        gate.wait(timeout=30)
        return guess(client, 1)[0]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(try_once, range(12)))
    assert answers.count(403) <= LIMIT
    assert set(answers) <= {403, 429}


def test_somebody_hammering_an_account_locks_out_only_their_own_address(app: Flask) -> None:
    """W9."""
    add_account()
    guess(app.test_client(), LIMIT + 2)

    assert press_sign_in(app.test_client(), source=ELSEWHERE).status_code == 303


def test_many_addresses_hammering_an_account_do_not_lock_out_a_browser_it_was_used_in(app: Flask) -> None:
    """W9."""
    add_account()
    known, strange = app.test_client(), app.test_client()
    press_sign_in(known, source=ELSEWHERE)
    send(known, "/sign-out")
    guess(app.test_client(), 1)
    empty("sign-in account:")

    assert press_sign_in(strange, source="203.0.113.77").status_code == 429
    assert press_sign_in(known, source=ELSEWHERE).status_code == 303


def test_guessing_in_a_known_browser_is_bounded_too(app: Flask) -> None:
    add_account()
    known = app.test_client()
    press_sign_in(known, source=ELSEWHERE)

    answers = guess(known, sign_in.PER_KNOWN_BROWSER.burst + 2, source=ELSEWHERE)
    assert answers == [403] * sign_in.PER_KNOWN_BROWSER.burst + [429] * 2


def test_a_browser_is_known_to_one_user_and_until_the_password_changes(app: Flask) -> None:
    add_account()
    add_account("bob")
    browser = app.test_client()
    press_sign_in(browser, source=ELSEWHERE)
    guess(app.test_client(), 1, name="bob")
    empty("sign-in account:")
    assert press_sign_in(browser, "bob", source=ELSEWHERE).status_code == 429
    users.set_password("alice", "another phrase 88", actor="test", now=utc_now() + timedelta(seconds=2))
    guess(app.test_client(), 1)
    empty("sign-in account:")

    assert press_sign_in(browser, password="another phrase 88", source=ELSEWHERE).status_code == 429


def test_a_one_time_link_gets_in_whatever_was_guessed(app: Flask) -> None:
    """W9."""
    add_account()
    guess(app.test_client(), 1)
    empty("sign-in")
    token = users.one_time_link("alice", actor="test", now=utc_now())
    client = app.test_client()

    assert set_password(client, token, "another phrase 88").status_code == 303
    assert is_signed_in(client)
    send(client, "/sign-out")
    assert press_sign_in(client, password="another phrase 88").status_code == 303


def set_password(client: FlaskClient, token: str, password: str) -> TestResponse:
    url = f"/set-password/{token}"
    return send(client, url, page=url, new_password=password, repeated_password=password)


def test_only_failures_count(client: FlaskClient) -> None:
    add_account()
    for _ in range(LIMIT + 2):
        assert press_sign_in(client, source=ELSEWHERE).status_code == 303
        client.delete_cookie("__Host-browser", domain="vpn.example.org", path="/")


def test_one_customer_with_many_ipv6_addresses_is_one_source(client: FlaskClient) -> None:
    add_account()
    answers = [guess(client, 1, source=f"2001:db8:1:2::{n}")[0] for n in range(LIMIT + 2)]

    assert answers == [403] * LIMIT + [429] * 2
    assert guess(client, 1, source="2001:db8:1:3::1") == [403]


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("", "unknown"),
        (None, "unknown"),
        ("not an address", "unknown"),
    ],
)
def test_a_source_is_an_address_or_a_customers_network(source: str | None, network: str) -> None:
    assert throttles.network(source) == network


def test_many_names_from_one_address_are_bounded(client: FlaskClient) -> None:
    guess(client, 1, name="somebody")
    with transaction() as db:
        db.execute(update(Throttle).where(Throttle.bucket.startswith("sign-in source:")).values(tokens=1.0))

    assert guess(client, 1, name="first") == [403]
    assert guess(client, 1, name="second") == [429]


def test_a_bucket_fills_again_and_never_over_its_brim(app: Flask) -> None:
    bucket = throttles.Limit("test", burst=3, refill_seconds=10).bucket("x")
    start = utc_now()

    def take(seconds: float) -> float:
        with transaction() as db:
            return throttles.take(db, [bucket], now=start + timedelta(seconds=seconds))

    assert [take(0), take(0), take(0)] == [0, 0, 0]
    assert take(0) == pytest.approx(10)
    assert take(4) == pytest.approx(6)
    assert take(10) == 0
    assert take(10) == pytest.approx(10)
    assert [take(1000), take(1000), take(1000)] == [0, 0, 0]
    assert take(1000) > 0
    # The clock of the other portal is behind: what was taken stays taken.
    assert take(900) > 0


def test_portals_whose_clocks_differ_refill_no_bucket(app: Flask) -> None:
    """R20, R41: guesses that alternate between the two pass as often as at one."""
    bucket = throttles.Limit("skewed", burst=3, refill_seconds=10).bucket("x")
    now = utc_now()
    passed = 0
    for number in range(20):
        with transaction() as db:
            passed += throttles.take(db, [bucket], now=now + timedelta(minutes=number % 2 * 10)) == 0
    # The portal that is ahead fills the bucket once, not at each turn.
    assert passed <= 2 * 3


def test_of_several_buckets_all_give_or_none(app: Flask) -> None:
    full = throttles.Limit("full", burst=5, refill_seconds=10).bucket("x")
    bare = throttles.Limit("bare", burst=1, refill_seconds=10).bucket("x")
    now = utc_now()
    with transaction() as db:
        assert throttles.take(db, [full, bare], now=now) == 0
    with transaction() as db:
        assert throttles.take(db, [full, bare], now=now) > 0

    with transaction(read_only=True) as db:
        rows = {row.bucket: row.tokens for row in db.scalars(select(Throttle))}
    assert rows == {"full:x": 4.0, "bare:x": 0.0}


def test_two_portals_share_the_last_token(app: Flask) -> None:
    """R41: at once, over separate connections."""
    bucket = throttles.Limit("race", burst=3, refill_seconds=3600).bucket("x")
    gate = threading.Barrier(10)
    now = utc_now()

    def take(_number: int) -> float:
        gate.wait(timeout=30)
        return sign_in._take([bucket], now=now)

    with ThreadPoolExecutor(10) as pool:
        waits = list(pool.map(take, range(10)))
    assert waits.count(0) == 3


def test_too_many_sign_ins_at_once_are_turned_away(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R75: hashing takes no more than its share of memory and threads."""
    add_account()
    monkeypatch.setattr(passwords, "_queue", threading.BoundedSemaphore(1))
    with passwords._turn():
        answer = press_sign_in(client)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"]

    assert press_sign_in(client).status_code == 303


def test_guessing_the_current_password_in_a_stolen_session_is_bounded(client: FlaskClient) -> None:
    add_account()
    press_sign_in(client)
    form = {"new_password": "another phrase 88", "repeated_password": "another phrase 88"}

    answers = [
        send(client, "/password", current_password=f"guess {n}", **form).status_code
        for n in range(sign_in.PER_PASSWORD_CHANGE.burst + 1)
    ]
    assert answers == [403] * sign_in.PER_PASSWORD_CHANGE.burst + [429]


def test_a_link_sets_the_password_once(app: Flask) -> None:
    """R39."""
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())
    first, second = app.test_client(), app.test_client()
    second_page = second.get(f"/set-password/{token}")
    assert set_password(first, token, "another phrase 88").status_code == 303

    assert second_page.status_code == 200
    assert second.get(f"/set-password/{token}").status_code == 404
    with pytest.raises(NotFound):
        users.redeem_link(token, "a third phrase 99", source=None, now=utc_now())
    assert press_sign_in(second, password="another phrase 88").status_code == 303


def test_head_is_a_look_and_nothing_else(app: Flask) -> None:
    """W3: it needs no token of a form, so it must not write."""
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())
    client = app.test_client()
    form = {"new_password": "another phrase 88", "repeated_password": "another phrase 88"}

    assert client.head(f"/set-password/{token}", data=form).status_code == 200

    assert client.get(f"/set-password/{token}").status_code == 200
    assert press_sign_in(client, password="another phrase 88").status_code == 403
    assert client.head("/password").status_code == 303


def test_a_link_used_twice_at_once_works_once(app: Flask) -> None:
    """R39."""
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())
    gate = threading.Barrier(4)

    def redeem(number: int) -> bool:
        password_hash = passwords.hash_password(f"phrase number {number}")
        gate.wait(timeout=30)
        try:
            users._redeem(token, password_hash, source=None, now=utc_now())
        except NotFound:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(redeem, range(4))) == [False, False, False, True]


def test_looking_at_a_link_or_choosing_badly_does_not_use_it_up(client: FlaskClient) -> None:
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())
    for _ in range(3):
        assert client.get(f"/set-password/{token}").status_code == 200
    assert set_password(client, token, "password1234").status_code == 400
    with pytest.raises(WeakPassword):
        users.redeem_link(token, "short", source=None, now=utc_now())

    assert set_password(client, token, "another phrase 88").status_code == 303


def test_a_link_ends_after_an_hour_and_with_the_next_one(client: FlaskClient) -> None:
    add_account(password=None)
    old = users.one_time_link("alice", actor="test", now=utc_now())
    token = users.one_time_link("alice", actor="test", now=utc_now() - timedelta(minutes=61))

    assert client.get(f"/set-password/{old}").status_code == 404
    assert client.get(f"/set-password/{token}").status_code == 404


def test_a_link_is_kept_as_a_hash_and_its_page_tells_nobody_its_address(client: FlaskClient) -> None:
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())

    page = client.get(f"/set-password/{token}")
    assert page.headers["Referrer-Policy"] == "strict-origin"
    assert page.headers["Cache-Control"] == "no-store"
    with transaction(read_only=True) as db:
        stored = db.scalar(select(OneTimeLink.token_hash))
    assert stored is not None
    assert token.encode() not in stored
    assert len(stored) == 32


def test_a_link_does_not_open_a_disabled_account(client: FlaskClient) -> None:
    add_account(password=None)
    token = users.one_time_link("alice", actor="test", now=utc_now())
    users.disable("alice", actor="test", now=utc_now())

    assert set_password(client, token, "another phrase 88").status_code == 403
    assert not is_signed_in(client)
