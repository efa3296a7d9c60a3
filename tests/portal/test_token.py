"""The token and revocation endpoints (spec api-v3.md, section 4; RFC 7009)."""

import base64
import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import (
    AccessToken,
    Authorization,
    AuthorizationCode,
    Base,
    RefreshToken,
    User,
)
from portal_app.services import authorizations
from tests.portal.app_user import VpnApp, add_user


@pytest.fixture
def device(app):
    return VpnApp(app, add_user("alice"))


def count(table: type[Base]) -> int:
    with transaction(read_only=True) as db:
        return int(db.scalar(select(func.count()).select_from(table)) or 0)


def later(table, column, by: timedelta) -> None:
    """Let what was written have happened that much earlier."""
    with transaction() as db:
        for row in db.scalars(select(table)):
            if getattr(row, column) is not None:
                setattr(row, column, getattr(row, column) - by)


def test_code_is_changed_for_tokens(device):
    """O14: and the answer stays in no cache and no referrer; test_outage.py shows that no log has it."""
    response = device.redeem(device.code())

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert response.json["token_type"] == "bearer"
    assert response.json["expires_in"] == 3600
    # 256 random bits, and nothing of them in the database (O6, O11).
    assert len(base64.urlsafe_b64decode(response.json["refresh_token"] + "=")) == 32
    with transaction(read_only=True) as db:
        stored = db.scalars(select(RefreshToken.token_hash)).one()
    assert stored == authorizations.hashed(response.json["refresh_token"])


WRONG = "w" * 43


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"grant_type": None}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "invalid_request"),
        ({"grant_type": "client_credentials"}, 400, "invalid_request"),
        ({"code": None}, 400, "invalid_request"),
        ({"code": "with\nline"}, 400, "invalid_request"),
        ({"code": "unknown"}, 400, "invalid_grant"),
        ({"redirect_uri": None}, 400, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:53212/callback"}, 400, "invalid_request"),
        ({"client_id": None}, 400, "invalid_request"),
        ({"client_id": "org.eduvpn.app.windows"}, 400, "invalid_request"),
        ({"client_id": "org.example.unknown"}, 401, "invalid_client"),
        ({"code_verifier": None}, 400, "invalid_request"),
        ({"code_verifier": "short"}, 400, "invalid_request"),
        ({"code_verifier": "x" * 129}, 400, "invalid_request"),
        ({"code_verifier": "ü" * 50}, 400, "invalid_request"),
        ({"code_verifier": WRONG}, 400, "invalid_grant"),
        ({"code": ["a", "b"]}, 400, "invalid_request"),
        ({"code": "x" * 5000}, 400, "invalid_request"),
    ],
)
def test_wrong_code_request_is_answered_with_its_row(device, changes, status, error):
    """O8, O16, O17"""
    code = device.code()

    response = device.redeem(**({"code": code} | changes))

    assert (response.status_code, response.json["error"]) == (status, error)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"
    if status == 401:
        assert response.headers["WWW-Authenticate"] == 'Basic realm="OAuth"'
    # What was wrong did not use the code up, nor end anything.
    assert device.redeem(code).status_code == 200


def test_verifier_of_another_request_does_not_fit(device):
    first = device.code()
    device.code()

    assert device.redeem(first).json["error"] == "invalid_grant"


def test_code_expires(device):
    """O6"""
    code = device.code()
    later(AuthorizationCode, "expires_at", timedelta(seconds=60))

    assert device.redeem(code).json["error"] == "invalid_grant"


def test_second_use_of_a_code_ends_what_the_first_gave(node, device):
    """O7, R17"""
    code = device.code()
    device.tokens = device.redeem(code).json
    device.connect()

    response = device.redeem(code)

    assert (response.status_code, response.json["error"]) == (400, "invalid_grant")
    assert device.info().status_code == 401
    assert device.refresh().json["error"] == "invalid_grant"
    assert node.peers == set()
    assert count(Authorization) == count(RefreshToken) == count(AccessToken) == count(AuthorizationCode) == 0


def in_parallel(calls):
    """Run calls at the same moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))
    results = [None] * len(calls)

    def run(index, call):
        barrier.wait()
        results[index] = call()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def fresh_client(device):
    return VpnApp(device.app, device.user, verifier=device.verifier, tokens=device.tokens)


def test_code_redeemed_several_times_at_once_gives_at_most_one_success_that_lasts(device):
    """R36"""
    code = device.code()
    devices = [fresh_client(device) for _ in range(4)]

    responses = in_parallel([lambda d=d: d.redeem(code) for d in devices])

    assert sum(r.status_code == 200 for r in responses) <= 1
    assert {r.json.get("error") for r in responses} <= {None, "invalid_grant"}
    assert count(Authorization) == 0


def test_refresh_rotates(device):
    """O9"""
    first = device.authorize().tokens

    response = device.refresh()

    assert response.status_code == 200
    assert response.json["refresh_token"] != first["refresh_token"]
    assert response.json["access_token"] != first["access_token"]
    device.tokens = response.json
    assert device.info().status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"refresh_token": None}, 400, "invalid_request"),
        ({"refresh_token": "a\tb"}, 400, "invalid_request"),
        ({"refresh_token": "unknown"}, 400, "invalid_grant"),
        ({"refresh_token": "1.abc.def.ghi"}, 400, "invalid_grant"),
        ({"client_id": "org.example.unknown"}, 401, "invalid_client"),
        ({"client_id": "org.eduvpn.app.windows"}, 400, "invalid_grant"),
        ({"scope": "admin"}, 400, "invalid_request"),
    ],
)
def test_wrong_refresh_request_is_answered_with_its_row(device, changes, status, error):
    device.authorize()

    response = device.refresh(**changes)

    assert (response.status_code, response.json["error"]) == (status, error)
    assert device.refresh(scope="config").status_code == 200


def test_access_token_is_no_refresh_token_and_the_other_way_round(device):
    """O10"""
    tokens = device.authorize().tokens

    assert device.refresh(tokens["access_token"]).json["error"] == "invalid_grant"
    device.tokens = tokens | {"access_token": tokens["refresh_token"]}
    assert device.info().status_code == 401


def test_lost_answer_is_repaired_once_within_the_grace_time(device):
    """R16"""
    first = device.authorize().tokens
    lost = device.refresh(first["refresh_token"]).json

    again = device.refresh(first["refresh_token"])

    assert again.status_code == 200
    device.tokens = again.json
    assert device.info().status_code == 200
    # What was lost is dead, so one chain lives.
    device.tokens = lost
    assert device.info().status_code == 401
    device.tokens = again.json
    assert device.refresh().status_code == 200


@pytest.mark.parametrize(
    "replayed", ["third time", "after grace", "successor used", "dead successor", "grandparent"]
)
def test_any_other_reuse_ends_the_authorization_and_its_tunnel(node, device, replayed):
    """O9, R16"""
    first = device.authorize().tokens["refresh_token"]
    second = device.refresh(first).json
    device.tokens, token = second, first
    if replayed == "third time":
        device.tokens = device.refresh(first).json
    elif replayed == "after grace":
        later(RefreshToken, "used_at", timedelta(seconds=31))
    elif replayed == "successor used":
        device.tokens = device.refresh().json
    elif replayed == "dead successor":
        device.tokens, token = device.refresh(first).json, second["refresh_token"]
    elif replayed == "grandparent":
        device.tokens = device.refresh().json
        device.tokens = device.refresh().json
    assert device.connect().status_code == 200
    assert node.peers

    response = device.refresh(token)

    assert (response.status_code, response.json["error"]) == (400, "invalid_grant")
    assert device.info().status_code == 401
    assert device.refresh().json["error"] == "invalid_grant"
    assert node.peers == set()
    assert count(Authorization) == 0


def test_refresh_token_used_several_times_at_once_leaves_one_living_chain_or_none(device):
    """R37"""
    device.authorize()
    devices = [fresh_client(device) for _ in range(4)]

    responses = in_parallel([d.refresh for d in devices])

    assert {r.json.get("error") for r in responses} <= {None, "invalid_grant"}
    with transaction(read_only=True) as db:
        living = db.scalars(select(RefreshToken).where(RefreshToken.used_at.is_(None))).all()
    assert len(living) <= 1
    assert len(living) == count(Authorization)


def test_refresh_after_the_session_ended_is_invalid_grant(device):
    device.authorize()
    later(Authorization, "expires_at", timedelta(days=91))

    assert device.refresh().json["error"] == "invalid_grant"
    assert device.info().status_code == 401


@pytest.mark.parametrize("settings_changes", [{"session_expiry_seconds": 600}])
def test_access_token_ends_with_the_session_and_refreshing_does_not_move_it(device):
    tokens = device.authorize().tokens
    assert 595 <= tokens["expires_in"] <= 600
    with transaction(read_only=True) as db:
        expires_at = db.scalars(select(Authorization.expires_at)).one()
    device.refresh()
    with transaction(read_only=True) as db:
        assert db.scalars(select(Authorization.expires_at)).one() == expires_at


@pytest.mark.parametrize("settings_changes", [{"session_expiry_seconds": 100 * 366 * 86400}])
def test_session_ends_no_later_than_the_client_ca(device):
    device.authorize()
    with transaction(read_only=True) as db:
        expires_at = db.scalars(select(Authorization.expires_at)).one()
    assert expires_at == device.app.extensions["causeway"].signer.not_after


@pytest.mark.parametrize("change", ["disabled", "access permission lost"])
@pytest.mark.parametrize("settings_changes", [{"access_permissions": ["vpn"]}])
def test_tokens_die_with_the_account(app, change):
    """O19"""
    device = VpnApp(app, add_user("alice", ["vpn"])).authorize()
    with transaction() as db:
        db.execute(
            update(User).values({"is_disabled": True} if change == "disabled" else {"permissions": []})
        )

    assert device.info().status_code == 401
    assert device.refresh().json["error"] == "invalid_grant"


def test_tokens_of_a_client_that_is_gone_are_worth_nothing(device):
    """O19"""
    device.authorize()
    del device.app.extensions["causeway"].clients[device.client_id]

    assert device.info().status_code == 401
    assert device.refresh().json["error"] == "invalid_client"


def test_content_type_other_than_a_form_is_refused(device):
    response = device.http.post("/oauth/token", json={"grant_type": "refresh_token"})

    assert (response.status_code, response.json["error"]) == (400, "invalid_request")


def test_huge_body_is_refused(device):
    assert device.http.post("/oauth/token", data={"code": "x" * 200_000}).status_code == 413


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
def test_revocation_of_either_token_ends_the_authorization_and_its_tunnel(node, device, which):
    """O12"""
    device.authorize().connect()

    response = device.http.post(
        "/oauth/revoke", data={"token": device.tokens[which], "client_id": device.client_id}
    )

    assert response.status_code == 200
    assert device.info().status_code == 401
    assert device.refresh().json["error"] == "invalid_grant"
    assert node.peers == set()


def test_revocation_of_an_unknown_or_foreign_token_changes_nothing(device):
    device.authorize()
    for token, client_id in (
        ("unknown", device.client_id),
        (device.tokens["refresh_token"], "org.eduvpn.app.ios"),
    ):
        response = device.http.post("/oauth/revoke", data={"token": token, "client_id": client_id})
        assert response.status_code == 200
    assert device.info().status_code == 200


def test_revocation_needs_a_token_and_a_known_client(device):
    for data, status in (
        ({"client_id": device.client_id}, 400),
        ({"token": "x", "client_id": "unknown"}, 401),
    ):
        assert device.http.post("/oauth/revoke", data=data).status_code == status


SECRET = {
    "client_id": "org.example.server",
    "redirect_uris": ["https://app.example.org/cb"],
    "client_secret": "s3cr:t +",
}


@pytest.mark.parametrize("settings_changes", [{"clients": [SECRET]}])
def test_confidential_client_proves_its_secret_by_http_basic(app):
    user = VpnApp(app, add_user(), client_id="org.example.server", redirect_uri="https://app.example.org/cb")
    code = user.code()

    def redeem(secret):
        credentials = base64.b64encode(f"org.example.server:{secret}".encode()).decode()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": user.redirect_uri,
                "code_verifier": user.verifier}  # fmt: skip
        return user.http.post("/oauth/token", data=form, headers={"Authorization": f"Basic {credentials}"})

    assert user.redeem(code).json["error"] == "invalid_client"
    assert redeem("wrong").json["error"] == "invalid_client"
    assert redeem("s3cr%3At+%2B").status_code == 200


def test_no_script_of_another_site_is_let_in(device):
    """O18"""
    device.authorize()
    for path in ("/oauth/token", "/api/v3/info"):
        response = device.http.options(path, headers={"Origin": "https://evil.example.org"})
        assert response.status_code == 405
        assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]


def test_moment_of_use_is_kept(device):
    device.authorize()
    with transaction(read_only=True) as db:
        assert utc_now() - db.scalars(select(Authorization.last_used_at)).one() < timedelta(minutes=1)
