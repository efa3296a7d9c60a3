"""Outage and abuse: 503 with Retry-After and never 500 (reliability.md R21, R22, R23, R28, W14, W15, W20,
I8).
"""

import dataclasses
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy
from flask import request
from sqlalchemy import select

from portal_app import db, events
from portal_app.application import create_app
from portal_app.errors import SettingsError
from portal_app.models import User
from portal_app.settings import Settings
from tests.portal.app_user import HttpsClient, add_user

PATHS = ["/api/v3/info", "/oauth/token", "/oauth/revoke", "/healthz", "/"]


@pytest.fixture
def unreachable(app, settings, tmp_path):
    """The portal while no database answers."""
    if settings.database_url.startswith("sqlite"):
        db.connect_to(f"sqlite:///{tmp_path}/no/such/directory/portal.sqlite")
    else:
        db.connect_to(f"postgresql://test@/portal?host={tmp_path}")
    return app


def ask(client, path):
    headers = {"Authorization": "Bearer x"}
    if path.startswith("/oauth"):
        form = {
            "grant_type": "refresh_token",
            "refresh_token": "x",
            "token": "x",
            "client_id": "org.eduvpn.app.linux",
        }
        return client.post(path, data=form)
    client.set_cookie("__Host-session", "x" * 43, domain="vpn.example.org", path="/", secure=True)
    return client.get(path, headers=headers)


@pytest.mark.parametrize(
    "path", ["/set-password/secret", "/set-password/x%0aINFO%20event=sign_in", "/password"]
)
def test_log_of_an_outage_has_no_path(unreachable, client, caplog, path):
    """S3, P5: a path may be a one-time link, and may hold line breaks."""
    client.set_cookie("__Host-session", "x" * 43, domain="vpn.example.org", path="/", secure=True)

    assert client.get(path).status_code == 503

    assert "GET /" in caplog.text
    assert "secret" not in caplog.text
    assert "event=sign_in" not in caplog.text


@pytest.mark.parametrize("path", PATHS)
def test_no_database_is_503_with_retry_after(unreachable, client, path):
    """R21"""
    response = ask(client, path)

    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert "sqlite" not in response.text.lower()
    assert "psycopg" not in response.text.lower()
    if path == "/":
        assert response.mimetype == "text/html"
    elif path != "/healthz":
        assert response.json.keys() == {"error"}


def test_live_probe_does_not_ask_the_database(unreachable, client):
    """R21"""
    assert client.get("/livez").status_code == 200


def test_ready_probe_says_yes_and_nothing_else(client):
    """A6"""
    response = client.get("/healthz")

    assert (response.status_code, response.text) == (200, "yes\n")


@pytest.mark.parametrize("database", ["postgresql"])
def test_restarted_database_leaves_no_broken_connection_behind(app, make_app_user, database_url):
    """R22: every pooled connection was closed by the server."""
    user = make_app_user()
    engine = sqlalchemy.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = 'portal'"
        )
    engine.dispose()

    for _ in range(3):
        assert user.info().status_code == 200


@pytest.mark.parametrize("database", ["postgresql"])
def test_read_only_database_serves_reads_and_refuses_writes(app, node, make_app_user, database_url):
    """R28: and no node is told anything new."""
    user = make_app_user()
    admin = sqlalchemy.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("ALTER DATABASE portal SET default_transaction_read_only = on")
    try:
        db.engine().dispose()
        calls = len(node.calls)
        assert user.info().status_code == 200
        for response in (user.connect(), user.refresh(), user.disconnect() if node.peers else user.connect()):
            assert response.status_code == 503
            assert response.headers["Retry-After"]
        assert len(node.calls) == calls
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql("ALTER DATABASE portal RESET default_transaction_read_only")
        admin.dispose()
        db.engine().dispose()


@pytest.mark.parametrize("database", ["postgresql"])
def test_locked_row_is_a_503_in_bounded_time_and_reads_go_on(node, make_app_user, database_url):
    """R26: within 5 s."""
    user = make_app_user()
    other = sqlalchemy.create_engine(database_url)
    with other.connect() as connection:
        connection.exec_driver_sql("SELECT id FROM users FOR UPDATE")
        begin = time.monotonic()

        response = user.connect()

        assert time.monotonic() - begin <= 5
        assert response.status_code == 503
        assert response.json == {"error": "the database is busy"}
        assert response.headers["Retry-After"]
        begin = time.monotonic()
        assert user.info().status_code == 200
        assert time.monotonic() - begin <= 1
    other.dispose()
    assert user.connect().status_code == 200


@pytest.mark.parametrize("database", ["postgresql"])
def test_deadlock_is_repeated_inside(app):
    """R30: two transactions lock the same two rows the other way round."""
    first, second = add_user("first"), add_user("second")
    both_have_one = threading.Barrier(2)
    attempts: list[int] = []

    @db.retried
    def lock(one: int, other: int) -> int:
        attempts.append(one)
        with db.connected() as connection:
            for user_id in (one, other):
                connection.execute(select(User.id).where(User.id == user_id).with_for_update())
                if len(attempts) <= 2 and user_id == one:
                    both_have_one.wait(10)
        return one

    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lock, (first.id, second.id), (second.id, first.id), timeout=30))

    assert done == [first.id, second.id]
    assert len(attempts) == 3


@pytest.mark.parametrize("host", ["evil.example.org", "vpn.example.org.evil.example", "127.0.0.1"])
@pytest.mark.parametrize("path", ["/", "/api/v3/info", "/oauth/authorize"])
def test_other_host_names_are_refused(client, host, path):
    """W14"""
    response = client.get(path, base_url=f"https://{host}")

    assert response.status_code == 400
    assert host not in response.headers.get("Location", "")


def test_forwarded_host_is_the_proxys_and_is_checked(client):
    """W15"""
    response = client.get("/api/v3/info", headers={"X-Forwarded-Host": "evil.example.org"})

    assert response.status_code == 400


def test_only_the_nearest_proxy_is_believed(app):
    """W15: what the client wrote in front of it does not count."""
    seen = []
    app.before_request(lambda: seen.append(request.remote_addr))

    app.test_client().get("/livez", headers={"X-Forwarded-For": "203.0.113.9, 192.0.2.1"})

    assert seen == ["192.0.2.1"]


def test_identity_headers_from_outside_mean_nothing(app):
    """W16"""
    response = app.test_client().get("/", headers={"Remote-User": "admin", "X-Remote-User": "admin"})

    assert response.status_code in (302, 303)


@pytest.mark.parametrize(
    ("path", "kind"), [("/api/v3/nothing", "application/json"), ("/nothing", "text/html")]
)
def test_unknown_path_is_404_in_the_language_of_its_reader(client, path, kind):
    response = client.get(path)

    assert (response.status_code, response.mimetype) == (404, kind)


@pytest.mark.parametrize("path", ["/api/v3/broken", "/broken"])
def test_bug_tells_nothing_and_is_logged(settings, caplog, path):
    """W20"""
    app = create_app(settings)
    app.test_client_class = HttpsClient

    def broken():
        raise LookupError("SELECT secret FROM somewhere")

    app.add_url_rule(path, view_func=broken)

    response = app.test_client().get(path)

    assert response.status_code == 500
    assert "secret" not in response.text
    assert "SELECT secret" in caplog.text
    app.extensions["causeway"].agents.close()
    db.engine().dispose()


def test_log_lines_cannot_be_forged(caplog):
    """P5"""
    caplog.set_level(logging.INFO)

    events.log("sign_in", user="eve\nevent=sign_in user=root", source="192.0.2.1", nothing=None)

    (record,) = caplog.records
    assert record.message == 'event=sign_in user="eve\\nevent=sign_in user=root" source=192.0.2.1'


def test_connect_is_one_line_with_its_ids_and_no_secret(node, make_app_user, caplog):
    """P1, S3"""
    caplog.set_level(logging.INFO)
    app = make_app_user()
    app.connect()

    lines = [r.message for r in caplog.records if r.message.startswith("event=connect ")]
    assert len(lines) == 1
    for part in ("user=alice", "node=node0", "profile=employees", "ipv4=10.61.0.2", "choice="):
        assert part in lines[0]
    secrets = (app.tokens["access_token"], app.tokens["refresh_token"], app.verifier)
    assert not [secret for secret in secrets if secret in caplog.text]


@pytest.mark.parametrize(
    "clients",
    [
        [{"client_id": "x"}],
        [{"client_id": "x", "redirect_uris": ["http://localhost:{PORT}/cb"]}],
        [{"client_id": "x", "redirect_uris": ["http://app.example.org/cb"]}],
        [{"client_id": "x", "redirect_uris": ["javascript:/alert(1)"]}],
        [{"client_id": "x", "redirect_uris": ["https://app.example.org/cb#fragment"]}],
        [{"client_id": "x", "redirect_uris": ["https://app.example.org:{PORT}/cb"]}],
        [{"client_id": "x", "redirect_uris": ["https://user@app.example.org/cb"]}],
        [{"client_id": "org.eduvpn.app.linux", "redirect_uris": ["https://app.example.org/cb"]}],
        [{"client_id": "x", "redirect_uris": ["https://app.example.org/cb"], "secret": "x"}],
        [{"client_id": "x", "redirect_uris": ["https://app.example.org/cb"], "client_secret": ""}],
        [{"client_id": "x", "redirect_uris": ["https://app.example.org/cb"], "scope": "admin"}],
    ],
)
@pytest.mark.parametrize("database", ["sqlite"])
def test_own_client_that_cannot_be_used_stops_the_start(settings: Settings, clients):
    with pytest.raises(SettingsError, match=r"clients\[0\]"):
        create_app(dataclasses.replace(settings, clients=clients))
    db.engine().dispose()
