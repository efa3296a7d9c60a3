"""Pages over 100,000 users, connections and sessions: the database reads what they show, and none is long."""

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy
from flask import Flask
from sqlalchemy import func, select

from benchmarks.stage import large
from portal_app import db
from portal_app.models import Base, VpnSession
from portal_app.settings import Settings
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import add_user, browser, csrf_token
from tests.portal.certificates import Deployment
from tests.portal.conftest import PROFILES, apply_plan, seen_up, start_agent
from tests.portal.plans import watching

pytestmark = [pytest.mark.slow, pytest.mark.long]
SIZE = large.Size(people=100_000, sessions=100_000, nodes=60, profile="employees")
#: What a page may take on its way, with its style sheet and scripts as nginx sends them.
LONGEST_PAGE = 60_000
#: So often each page is asked before it counts.
TRIES = {"sqlite": 1, "postgresql": 6}
#: Whose page, where a page is about one.
ONE = {"user_id": large.user_id(77), "number": 0, "profile_id": "employees"}
#: Beside each page as it comes: searches, filters and orders that people use.
QUERIES = {
    "admin.connections": [
        "search=user00077", "search=10.0.0.9", "sort=user", "sort=profile", "sort=node&order=desc",
        "show=all", "show=all&sort=user",
        "show=all&search=user00077", "show=all&search=user00077&sort=user", "protocol=wireguard",
        "show=all&profile=employees",
    ],
    "admin.users": [
        "search=user00077", "sort=added", "sort=added&order=desc", "state=disabled", "state=active",
    ],
    "admin.history": [
        f"user={large.user_name(77)}", "from=2026-01-01", "profile=employees", "node=0", "protocol=openvpn",
    ],
    "admin.audit": [
        f"actor={large.user_name(77)}", "action=signed+in", f"object={large.user_name(77)}",
    ],
    # Behind the fiftieth node, and up to it.
    "admin.nodes": ["after=WzQ5XQ"],
    "admin.profile": ["after=Wy0xLDQ5LCJ3aXJlZ3VhcmQiXQ"],
    "admin.statistics": ["period=year", "period=month&after=WzQ5XQ", "before=WzUwXQ"],
}  # fmt: skip


@pytest.fixture
def database_url(
    database: str, sqlite_template: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """A database that no other test has to empty."""
    if database == "sqlite":
        file = tmp_path / "portal.sqlite"
        file.write_bytes(sqlite_template.read_bytes())
        yield f"sqlite:///{file}"
        return
    url = sqlalchemy.make_url(request.getfixturevalue("postgresql_url"))
    admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE large")
    made = url.set(database="large").render_as_string()
    engine = db.make_engine(made)
    Base.metadata.create_all(engine)
    engine.dispose()
    yield made
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE large WITH (FORCE)")
    admin.dispose()


def test_pages_read_what_they_show(
    app: Flask, agent_servers: list[AgentServer], deployment: Deployment, settings: Settings, database: str
) -> None:
    agent_servers.append(start_agent(deployment, 0))
    profiles = {"employees": PROFILES["employees"]}
    others = {n: f"192.0.2.{n}" for n in range(1, SIZE.nodes)}
    apply_plan({0: agent_servers[0].address} | others, profiles, max_nodes=64)
    for number in range(SIZE.nodes):
        seen_up(number)
    client = browser(app, add_user("root", ["admin"]))
    large.fill(settings.database_url, SIZE)
    watch = watching(db.engine())
    with watch() as found, db.connected(read_only=True) as reading:
        reading.execute(select(func.count()).select_from(VpnSession)).all()
    assert len(found) == 1, "a whole table is noticed"
    static = Path(app.static_folder or "")
    files = [(static / name).read_bytes() for name in ("style.css", "live.js", "icon.svg")]
    beside = sum(len(gzip.compress(content, compresslevel=1)) for content in files)
    faults, too_long = {}, {}
    paths = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()):
            path = paths.build(rule.endpoint, {name: ONE[name] for name in rule.arguments})
            for query in ["", *QUERIES.get(rule.endpoint, [])]:
                # The first time what is kept for some seconds is counted, and PostgreSQL plans a prepared
                # statement the first five times for its values, and from then on for any.
                for _ in range(TRIES[database]):
                    client.get(path, query_string=query)
                with watch() as found:
                    answer = client.get(path, query_string=query)
                assert answer.status_code in (200, 303, 400), (rule.rule, query, answer.status_code)
                is_page = answer.mimetype == "text/html"
                if is_page and len(answer.data) + beside >= LONGEST_PAGE:
                    too_long[path, query] = len(answer.data) + beside
                if found:
                    faults[path, query] = found
    date, at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}".split()
    asked = {"address": large.address(777), "date": date, "time": at, "zone": "UTC", "tolerance": "60"}
    token = csrf_token(client.get("/admin/who-had-it").text)
    for _ in range(TRIES[database]):
        client.post("/admin/who-had-it", data={**asked, "csrf_token": token})
    with watch() as found:
        answer = client.post("/admin/who-had-it", data={**asked, "csrf_token": token})
    assert large.user_name(777) in answer.text
    if found:
        faults["who had it", ""] = found
    assert too_long == {}
    assert faults == {}, "\n".join(f"{page}: {found}" for page, found in faults.items())
