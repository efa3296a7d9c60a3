"""How long the pages of administration take over 100,000 users and connections and millions of sessions.

``python -m benchmarks.pages`` (root, nginx) runs nginx and gunicorn as the roles configure them, on SQLite
and on PostgreSQL, and a bare Flask ``hello`` beside them, all on one core. Each page is asked in turns with
``hello``, over a kept-alive connection each; what counts is the time to the first byte of the answer. Ten
simulated agents on the other core say what goes through the connections that a page shows.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from flask import Flask

from benchmarks.stage import agents, namespace, portal, table
from benchmarks.stage.apps import Https
from benchmarks.stage.processes import on_core
from benchmarks.stage.web import Site, portal_and_hello
from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import SESSION_COOKIE
from portal_app.models import User
from portal_app.services import browser_sessions

#: Beside each page as it comes: the search that an administrator makes most.
SEARCHES = {
    "/admin/connections": "search=user00077",
    "/admin/users": "search=user00077",
    "/admin/history": "user=user000777",
    "/admin/audit": "actor=user000777",
}
#: Which one of them, where a page is about one.
_ONE = {"number": 0, "profile_id": portal.PROFILE, "user_id": 1077}
#: Asks about what was chosen in a list before.
NO_PAGE = "/admin/connections/end"
ASKED, WARM = 40, 5
_SPREAD = timedelta(days=365)
_TABLES = {
    "users": ("id", "name", "permissions", "is_disabled", "created_at"),
    "connections": (
        "id", "user_id", "node_number", "profile_id", "protocol", "display_name", "created_at", "expires_at",
        "generation",
    ),
    "vpn_sessions": (
        "node_number", "session_id", "connection_id", "user_name", "profile_id", "protocol", "ipv4",
        "started_at", "ended_at", "received_bytes", "sent_bytes",
    ),
    "audit_events": ("id", "at", "actor", "action", "details"),
}  # fmt: skip


def rows(name: str, people: int, sessions: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of one table; a tenth of the people is connected."""
    now = datetime.now(UTC)
    if name == "users":
        for n in range(people):
            yield 1000 + n, f"user{n:06}", "[]", n % 1000 == 0, now - timedelta(seconds=60 * n)
    elif name == "connections":
        for n in range(people):
            made = now - timedelta(seconds=60 * n)
            yield (
                f"{n:032x}", 1000 + n, n % 10, portal.PROFILE, "openvpn", "Laptop", made,
                now + timedelta(days=90), 1,
            )  # fmt: skip
    elif name == "vpn_sessions":
        for n in range(sessions):
            began = now - _SPREAD * (n / sessions)
            ended = None if n < people // 10 else began + timedelta(hours=1)
            yield (
                n % 10, f"{n:032x}", f"{n % people:032x}", f"user{n % people:06}", portal.PROFILE, "openvpn",
                f"10.{n >> 16 & 127}.{n >> 8 & 255}.{n & 255}", began, ended, 1_000_000 + n, 100_000 + n,
            )  # fmt: skip
    else:
        for n in range(people):
            yield 100 + n, now - _SPREAD + _SPREAD * (n / people), f"user{n:06}", "signed in", "{}"


def fill(url: str, people: int, sessions: int) -> None:
    """Write all of it past the ORM. PostgreSQL looks at it once, as it does by itself; SQLite never does."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as raw:
            raw.execute("PRAGMA synchronous=OFF")
            for name, columns in _TABLES.items():
                marks = ", ".join("?" * len(columns))
                statement = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - ours
                raw.execute("BEGIN")
                with _without_indexes(raw, name):
                    raw.executemany(statement, map(_plain, rows(name, people, sessions)))
                raw.execute("COMMIT")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as asked:
        for name, columns in _TABLES.items():
            with asked.cursor().copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows(name, people, sessions):
                    copy.write_row(row)
        asked.execute("VACUUM ANALYZE")


@contextmanager
def _without_indexes(raw: sqlite3.Connection, table_name: str) -> Iterator[None]:
    """Sorted at the end, the indexes of millions of rows take minutes less."""
    found = raw.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL",
        (table_name,),
    ).fetchall()
    for name, _sql in found:
        raw.execute(f'DROP INDEX "{name}"')
    yield
    for _name, sql in found:
        raw.execute(sql)


def _plain(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(
        v.replace(tzinfo=None).isoformat(" ", "microseconds") if isinstance(v, datetime) else v for v in row
    )


class Asking:
    """One browser of an administrator."""

    def __init__(self, served: Site, token: str) -> None:
        self._served, self._headers = Https(served), {"Cookie": f"{SESSION_COOKIE}={token}"}

    def first_byte(self, url: str) -> tuple[float, int]:
        """Return how long the first byte took, and how long the answer is over the wire."""
        began = time.monotonic()
        self._served.request("GET", url, headers=self._headers | {"Accept-Encoding": "gzip"})
        answer = self._served.getresponse()
        taken = time.monotonic() - began
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status}")
        return taken, len(body)


def measure(kind: str, directory: Path, people: int, sessions: int) -> list[list[object]]:
    with ExitStack() as stack:
        with on_core(0):
            place = stack.enter_context(portal.portal(kind, directory, durable=True))
            shares = portal.apply_plan(10, 16, openvpn={"ipv4": "10.128.0.0/11", "ipv6": "fd43:62::/96"})
            began = time.monotonic()
            fill(place.settings.database_url, people, sessions)
            print(f"{kind}: filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            app = create_app(place.settings)
            with transaction() as db:
                admin = User(name="root", permissions=["admin"], created_at=utc_now())
                db.add(admin)
                db.flush()
                token = browser_sessions.begin(db, admin, longest=timedelta(hours=12), now=utc_now())
            served, hello = stack.enter_context(
                portal_and_hello(directory, place.deployment, place.settings_file)
            )
        stack.enter_context(on_core(1))
        addresses = {share["number"]: share["agent_address"] for share in shares}
        stack.enter_context(agents.simulated(place.deployment, addresses))
        root, bare = Asking(served, token), Asking(hello, token)
        pages = list(pages_of(app))
        urls = sorted([*pages, *(f"{page}?{query}" for page, query in SEARCHES.items() if page in pages)])
        return [[kind, url, *compare(root, bare, url)] for url in urls]


def pages_of(app: Flask) -> Iterator[str]:
    """Yield the path of each page of administration; raises KeyError where which one is not said above."""
    paths = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()) and rule.rule != NO_PAGE:
            yield paths.build(rule.endpoint, {name: _ONE[name] for name in rule.arguments})


def compare(root: Asking, bare: Asking, url: str) -> tuple[str, ...]:
    """Return the columns of one page: its time to the first byte, that of ``hello``, and its length."""
    for _ in range(WARM):
        root.first_byte(url)
        bare.first_byte("/hello")
    asked = [(root.first_byte(url), bare.first_byte("/hello")) for _ in range(ASKED)]
    page_ms = [page[0] * 1000 for page, _hello in asked]
    hello_ms = [hello[0] * 1000 for _page, hello in asked]
    return (
        f"{statistics.median(page_ms):.1f}",
        f"{max(page_ms):.1f}",
        f"{statistics.median(hello_ms):.2f}",
        f"{statistics.median(page_ms) / statistics.median(hello_ms):.1f}",
        f"{asked[-1][0][1] / 1000:.1f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=100_000, help="users, each with a connection")
    parser.add_argument("--sessions", type=int, default=10_000_000)
    parser.add_argument("--databases", nargs="+", default=portal.DATABASES, choices=portal.DATABASES)
    options = parser.parse_args(arguments)
    namespace.enter()
    found: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        for kind in options.databases:
            found += measure(kind, directory / kind, options.people, options.sessions)
    table.show(
        (
            "database",
            "page",
            "first byte ms, median",
            "longest",
            "hello ms",
            "times hello",
            "kB over the wire",
        ),
        found,
    )


if __name__ == "__main__":
    main()
