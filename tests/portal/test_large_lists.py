"""Pages over 100,000 users, connections and sessions: the database reads what they show, and none is long."""

import gzip
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import event

from portal_app import db as database_module
from portal_app.models import AuditEvent, Connection, User, VpnSession
from portal_app.settings import Settings
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import add_user, browser

pytestmark = pytest.mark.slow
COUNT = 100_000
#: Names as people have them.
NAME, DEVICE = "user{:06}@students.example.org", "Laptop of the physics department"
#: What a page may take on its way, with its style sheet and scripts as nginx sends them.
LONGEST_PAGE = 60_000
BIG = {model.__tablename__ for model in (User, Connection, VpnSession, AuditEvent)} | {"address_uses"}
#: What says that few rows are found, which may be sorted: a search, an owner, some connections.
FEW = ("\U0010ffff", "authorizations.user_id = ", "connection_id IN (")
#: Whose page, where a page is about one.
ONE = {"user_id": 1077, "number": 0, "profile_id": "employees"}
#: Beside each page as it comes: searches, filters and orders that people use.
QUERIES = {
    "admin.connections": [
        "search=user00077", "search=10.61.0.9", "sort=user", "sort=profile", "sort=node&order=desc",
        "show=all", "show=all&sort=user",
        "show=all&search=user00077", "show=all&search=user00077&sort=user", "protocol=wireguard",
        "show=all&profile=employees",
    ],
    "admin.users": [
        "search=user00077", "sort=added", "sort=added&order=desc", "state=disabled", "state=active",
    ],
    "admin.history": [
        f"user={NAME.format(77)}", "from=2026-01-01", "profile=employees", "node=0", "protocol=openvpn",
    ],
    "admin.audit": [f"actor={NAME.format(77)}", "action=signed+in", f"object={NAME.format(77)}"],
}  # fmt: skip


@pytest.fixture
def database() -> str:
    return "sqlite"


def fill(file: str, count: int) -> None:
    """Write ``count`` users, each with a connection, a session and an audit row, past the ORM."""
    now = datetime.now(UTC).replace(tzinfo=None)

    def at(number: int) -> str:
        return (now - timedelta(seconds=30 * number)).isoformat(sep=" ", timespec="microseconds")

    with sqlite3.connect(file) as raw:
        raw.executemany(
            "INSERT INTO users (id, name, permissions, is_disabled, created_at) VALUES (?, ?, '[]', ?, ?)",
            ((1000 + n, NAME.format(n), n % 1000 == 0, at(n)) for n in range(count)),
        )
        raw.executemany(
            "INSERT INTO connections (id, user_id, node_number, profile_id, protocol,"
            " display_name, created_at, expires_at, generation)"
            " VALUES (?, ?, 0, 'employees', 'openvpn', ?, ?, ?, 1)",
            ((f"{n:032x}", 1000 + n, DEVICE, at(n), at(n - 10_000_000)) for n in range(count)),
        )
        raw.executemany(
            "INSERT INTO vpn_sessions (node_number, session_id, connection_id, user_name, profile_id,"
            " protocol, ipv4, started_at, ended_at) VALUES (0, ?, ?, ?, 'employees', 'openvpn', ?, ?, ?)",
            (
                (f"{n:032x}", f"{n:032x}", NAME.format(n), f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", at(n),
                 None if n % 2 else at(n - 5))
                for n in range(count)
            ),
        )  # fmt: skip
        raw.executemany(
            "INSERT INTO address_uses (connection_id, user_name, profile_id, node_number, protocol, ipv4,"
            " started_at, ended_at) VALUES (?, ?, 'employees', 0, 'openvpn', ?, ?, ?)",
            (
                (f"{n:032x}", NAME.format(n), f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", at(n),
                 None if n % 2 else at(n - 5))
                for n in range(count)
            ),
        )  # fmt: skip
        raw.executemany(
            "INSERT INTO audit_events (at, actor, action, details) VALUES (?, ?, 'signed in', '{}')",
            ((at(n), NAME.format(n)) for n in reversed(range(count))),
        )


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect every statement that SQLite executes meanwhile, whoever gave it to the driver."""
    seen: list[str] = []

    def listen(connection: sqlite3.Connection, *_more: object) -> None:
        connection.set_trace_callback(seen.append)

    def leave(connection: sqlite3.Connection, *_more: object) -> None:
        connection.set_trace_callback(None)

    engine = database_module._engine
    assert engine is not None
    event.listen(engine, "checkout", listen)
    event.listen(engine, "checkin", leave)
    try:
        yield seen
    finally:
        event.remove(engine, "checkout", listen)
        event.remove(engine, "checkin", leave)


def reads_everything(file: str, statement: str) -> list[str]:
    """Return the steps of SQLite's plan that read a big table whole, or sort what they read of it."""
    if not statement.lstrip().upper().startswith(("SELECT", "WITH")):
        return []
    big = re.compile(rf"\b({'|'.join(BIG)})\b")
    if not big.search(statement):
        return []
    with sqlite3.connect(file) as raw:
        plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}")]
    if "LIMIT" in statement and "ORDER BY" not in statement:
        return []  # counts up to a bound, and stops there
    whole = [step for step in plan if re.match(rf"SCAN ({'|'.join(BIG)})(?! USING)", step)]
    counted = [
        step
        for step in plan
        if step.startswith("SCAN") and big.search(step) and "count(" in statement.lower()
    ]
    sorts = [
        step
        for step in plan
        if step == "USE TEMP B-TREE FOR ORDER BY" and not any(m in statement for m in FEW)
    ]
    return whole + counted + (sorts if "LIMIT" in statement else [])


def test_pages_read_what_they_show(app: Flask, node: AgentServer, settings: Settings) -> None:
    file = settings.database_url.removeprefix("sqlite:///")
    client = browser(app, add_user("root", ["admin"]))
    fill(file, COUNT)
    static = Path(app.static_folder or "")
    files = [(static / name).read_bytes() for name in ("style.css", "live.js", "icon.svg")]
    beside = sum(len(gzip.compress(content, compresslevel=1)) for content in files)
    faults = {}
    paths = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()):
            path = paths.build(rule.endpoint, {name: ONE[name] for name in rule.arguments})
            for query in ["", *QUERIES.get(rule.endpoint, [])]:
                # The first time what is kept for some seconds is counted.
                client.get(path, query_string=query)
                with statements() as seen:
                    answer = client.get(path, query_string=query)
                assert answer.status_code in (200, 303, 400), (rule.rule, query, answer.status_code)
                is_page = answer.mimetype == "text/html"
                assert not is_page or len(answer.data) + beside < LONGEST_PAGE, (rule.rule, query)
                if found := [(s, f) for s in seen if (f := reads_everything(file, s))]:
                    faults[path, query] = found
    then = f"{datetime.now(UTC) - timedelta(seconds=30 * 770):%Y-%m-%d %H:%M:%S}"
    asked = dict(zip(("date", "time"), then.split(), strict=True))
    asked |= {"address": "10.0.3.9", "zone": "UTC", "tolerance": "60"}
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/admin/who-had-it").text)
    assert token is not None
    with statements() as seen:
        answer = client.post("/admin/who-had-it", data={**asked, "csrf_token": token[1]})
    assert NAME.format(3 * 256 + 9) in answer.text
    if found := [(s, f) for s in seen if (f := reads_everything(file, s))]:
        faults["who had it", ""] = found
    assert faults == {}, "\n".join(f"{page}: {found}" for page, found in faults.items())
