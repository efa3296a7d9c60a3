"""Two portal processes on one PostgreSQL, through real gunicorn (reliability.md R33, R35, R37; I1, I4, I5,
I8).
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import urllib3
from sqlalchemy import select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AddressUse, Connection, Offer, RefreshToken
from portal_app.oauth.server import challenge_of
from portal_app.services import authorizations
from tests.portal.app_user import HOST, LINUX, add_user, public_key
from tests.portal.commands import write_settings
from tests.portal.waiting import wait_until

START_SECONDS = 30
CONNECTS = 120
AT_ONCE = 32


class PortalProcess:
    """One gunicorn as the unit starts it, on a port that the kernel chose."""

    def __init__(self, settings: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--threads", "8",
                 "--worker-class", "gthread", "portal_app.wsgi:app"],
                env=os.environ | {"CAUSEWAY_SETTINGS": str(settings)},
                stdout=stream, stderr=stream,
            )  # fmt: skip
        self.url = self._wait()

    def _wait(self) -> str:
        ends_at = time.monotonic() + START_SECONDS
        while time.monotonic() < ends_at and self._process.poll() is None:
            for line in self.log.read_text().splitlines():
                if "Listening at: " in line:
                    url = line.split("Listening at: ")[1].split()[0]
                    if self._is_ready(url):
                        return url
            time.sleep(0.05)
        raise RuntimeError(self.log.read_text())

    def _is_ready(self, url: str) -> bool:
        try:
            return (
                urllib3.request("GET", f"{url}/healthz", headers={"Host": HOST}, retries=False).status == 200
            )
        except urllib3.exceptions.HTTPError:
            return False

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_SECONDS)


@pytest.fixture
def database() -> str:
    return "postgresql"


@pytest.fixture
def portals(app, settings, tmp_path):
    file = tmp_path / "settings.toml"
    write_settings(settings, file)
    started = [PortalProcess(file, tmp_path / f"portal{number}.log") for number in range(2)]
    yield started
    for portal in started:
        portal.stop()


@pytest.fixture
def http():
    with urllib3.PoolManager(maxsize=AT_ONCE, block=True, retries=False) as pool:
        yield pool


def tokens_of(name: str) -> authorizations.Tokens:
    challenge = "c" * 43
    code = authorizations.create(
        add_user(name), LINUX, scope="config", redirect_uri="x:/y", code_challenge=challenge, now=utc_now()
    )
    return authorizations.redeem_code(
        code, client_id=LINUX, redirect_uri="x:/y", code_challenge=challenge, now=utc_now()
    )


def post(http, portal, path, fields, **headers):
    return http.request_encode_body(
        "POST", portal.url + path, fields=fields, encode_multipart=False,
        headers={"Host": HOST, "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"} | headers,
    )  # fmt: skip


def connect(http, portal, token, profile_id="lab"):
    fields = {"profile_id": profile_id, "public_key": public_key()}
    return post(http, portal, "/api/v3/connect", fields, Authorization=f"Bearer {token}")


def rows():
    with transaction(read_only=True) as db:
        return db.scalars(select(Connection)).all()


def test_connects_at_once_over_two_portals_get_distinct_addresses(make_nodes, portals, http):
    """R33: no address twice, no answer of 500 and above; I4: the nodes know exactly what is live."""
    agents = make_nodes(2)
    tokens = [tokens_of(f"user{number}").access_token for number in range(CONNECTS)]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda pair: connect(http, portals[pair[0] % 2], pair[1]), enumerate(tokens)))

    assert Counter(answer.status for answer in answers) == {200: CONNECTS}
    addresses = [line for a in answers for line in a.data.decode().splitlines() if line.startswith("Address")]
    assert len(set(addresses)) == CONNECTS
    by_node = {agent.number: agent.peers for agent in agents}
    for number, peers in by_node.items():
        assert {row.id for row in rows() if row.node_number == number} == peers
    with transaction(read_only=True) as db:
        allocated = db.scalars(select(Offer.allocated).where(Offer.profile_id == "lab")).all()
        assert sum(allocated) == CONNECTS
        assert len(db.scalars(select(AddressUse.id).where(AddressUse.ended_at.is_(None))).all()) == CONNECTS


def test_one_authorization_at_two_portals_at_once_holds_one_connection(make_nodes, portals, http):
    """R35, I5: and the device limit of a user is never exceeded."""
    agents = make_nodes(2)
    token = tokens_of("alice").access_token

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: connect(http, portals[number % 2], token), range(12)))

    # 409: what a later one of them ended before the node had heard of it.
    assert {answer.status for answer in answers} <= {200, 409}
    (row,) = rows()
    wait_until(lambda: set().union(*(agent.peers for agent in agents)) == {row.id}, seconds=5)


def test_refresh_token_used_at_both_portals_at_once_leaves_one_chain_or_none(portals, http):
    """R37"""
    for number in range(5):
        token = tokens_of(f"user{number}").refresh_token
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": LINUX}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda p: post(http, p, "/oauth/token", form), portals * 2))  # noqa: B023
        assert {answer.status for answer in answers} <= {200, 400}
    with transaction(read_only=True) as db:
        living = db.scalars(select(RefreshToken.authorization_id).where(RefreshToken.used_at.is_(None))).all()
    assert len(living) == len(set(living))


def test_code_used_at_both_portals_at_once_succeeds_at_most_once(portals, http):
    """R36"""
    verifier = "v" * 43
    for number in range(5):
        code = authorizations.create(
            add_user(f"user{number}"), LINUX, scope="config", redirect_uri="x:/y",
            code_challenge=challenge_of(verifier), now=utc_now(),
        )  # fmt: skip
        form = {"grant_type": "authorization_code", "code": code, "client_id": LINUX, "redirect_uri": "x:/y",
                "code_verifier": verifier}  # fmt: skip
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda p: post(http, p, "/oauth/token", form), portals))  # noqa: B023
        assert sorted(answer.status for answer in answers) == [200, 400]


def test_three_accept_lines_are_read_as_one(make_nodes, portals):
    """Spec 7.1: the library of the apps sends three header lines, and this is the real web server."""
    make_nodes(1)
    token = tokens_of("alice").access_token
    connection = HTTPConnection(urlsplit(portals[0].url).netloc)
    body = urlencode({"profile_id": "employees", "public_key": public_key()})
    connection.putrequest("POST", "/api/v3/connect", skip_host=True)
    for name, value in (
        ("Host", HOST), ("Authorization", f"Bearer {token}"), ("Content-Length", str(len(body))),
        ("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "text/html"),
        ("Accept", "application/x-openvpn-profile"), ("Accept", "application/x-unknown"),
    ):  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders(body.encode())

    response = connection.getresponse()

    assert (response.status, response.headers["Content-Type"]) == (200, "application/x-openvpn-profile")
    response.read()
    connection.close()
