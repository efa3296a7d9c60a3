"""How long the pages of administration take over 100,000 users and connections and millions of sessions.

``python -m benchmarks.pages`` (root, nginx) runs nginx and gunicorn as the roles configure them, on SQLite
and on PostgreSQL, and a bare Flask ``hello`` beside them, all on one core. Each page is asked in turns with
``hello``, over a kept-alive connection each; what counts is the time to the first byte of the answer. Ten
simulated agents on the other core say what goes through the connections that a page shows.
"""

import argparse
import json
import re
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
from urllib.parse import urlencode

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
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import browser_sessions, usage

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
#: Asked by a form: who had the address of this session, which lasts.
WHO_HAD, _SESSION = "/admin/who-had-it", 77
ASKED, WARM = 40, 5
_SPREAD = timedelta(days=365)
_NODES = 10
#: Of so many sessions, the latest, it is known who had which address; and so many connections of each user
#: have ended.
_REMEMBERED, _ENDED = 1_000_000, 3
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
    "address_uses": (
        "connection_id", "user_name", "profile_id", "node_number", "protocol", "client_id", "device",
        "choice", "ipv4", "started_at", "ended_at", "end_reason",
    ),
    "refused_connects": ("user_id", "at", "device", "profile_id", "answer", "why"),
    "usage_days": (
        "profile_id", "node_number", "day", "users", "sessions", "peak_connections", "peak_users",
        "received_bytes", "sent_bytes", "clients",
    ),
    "usage_samples": ("profile_id", "node_number", "protocol", "slot", "connections", "users"),
    "audit_events": ("id", "at", "actor", "action", "details"),
}  # fmt: skip


def rows(name: str, people: int, sessions: int, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of one table; a tenth of the people is connected."""
    if name == "users":
        for n in range(people):
            yield 1000 + n, f"user{n:06}", "[]", n % 1000 == 0, now - _SPREAD - timedelta(seconds=60 * n)
    elif name == "connections":
        for n in range(people):
            made = now - timedelta(seconds=60 * n)
            yield (
                f"{n:032x}", 1000 + n, n % 10, portal.PROFILE, "openvpn", "Laptop", made,
                now + timedelta(days=90), 1,
            )  # fmt: skip
    elif name == "vpn_sessions":
        for n in range(sessions):
            began, ended = _lasted(n, people, sessions, now)
            yield (
                n % 10, f"{n:032x}", f"{n % people:032x}", f"user{n % people:06}", portal.PROFILE, "openvpn",
                _address(n), began, ended, 1_000_000 + n, 100_000 + n,
            )  # fmt: skip
    elif name == "address_uses":
        yield from _address_uses(people, sessions, now)
    elif name == "refused_connects":
        for n in range(7, people, 10):
            why = "; ".join(f"no {protocol}: node0 (full)" for protocol in ("wireguard", "openvpn"))
            yield 1000 + n, now - timedelta(minutes=n), "Laptop", portal.PROFILE, "no capacity", why
    elif name == "usage_days":
        for back in range(1, _SPREAD.days + 1):
            day = f"{now - timedelta(days=back):%Y-%m-%d}"
            for profile, node in _COUNTED:
                users = people // (1 if node == ALL_NODES else _NODES)
                clients = json.dumps({"org.eduvpn.app.windows": users // 2, "": users // 9})
                yield (
                    profile, node, day, users, 2 * users, users // 2, users // 3, users * 10**9,
                    users * 10**8, clients,
                )  # fmt: skip
    elif name == "usage_samples":
        last = usage.slot_of(now)
        kinds = [*((*one, ALL) for one in _COUNTED), *((portal.PROFILE, n, "openvpn") for n in range(_NODES))]
        for slot in range(last - usage.SAMPLES_KEPT // usage.SLOT, last + 1):
            for kind in kinds:
                yield *kind, slot, people // 10 + slot % 100, people // 12
    else:
        for n in range(people):
            yield 10_000 + n, now - _SPREAD + _SPREAD * (n / people), f"user{n:06}", "signed in", "{}"


#: What a day is counted for: each profile and node, and over all of either (``usage``).
_COUNTED = [(profile, node) for profile in (portal.PROFILE, ALL) for node in (*range(_NODES), ALL_NODES)]


def _address(session: int) -> str:
    return f"10.{session >> 16 & 127}.{session >> 8 & 255}.{session & 255}"


def _lasted(session: int, people: int, sessions: int, now: datetime) -> tuple[datetime, datetime | None]:
    began = now - _SPREAD * (session / sessions)
    return began, None if session < people // 10 else began + timedelta(hours=1)


def _address_uses(people: int, sessions: int, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Yield who had which address, and what remembers each connection that has ended (``ending``)."""
    same = "openvpn", "org.eduvpn.app.linux", "Laptop", "node0: 10 % busy, 4000 free addresses"
    for n in range(min(sessions, _REMEMBERED)):
        began, ended = _lasted(n, people, sessions, now)
        reason = None if ended is None else "disconnected"
        user = n % people
        yield (
            f"{user:032x}", f"user{user:06}", portal.PROFILE, n % _NODES, *same, _address(n), began, ended,
            reason,
        )  # fmt: skip
    for n in range(people * _ENDED):
        made = now - timedelta(days=1, seconds=n)
        yield (
            f"{10**9 + n:032x}", f"user{n % people:06}", portal.PROFILE, n % _NODES, *same, None, made,
            made + timedelta(hours=1), "disconnected",
        )  # fmt: skip


def fill(url: str, people: int, sessions: int) -> None:
    """Write all of it past the ORM. PostgreSQL looks at it once, as it does by itself; SQLite never does."""
    now = datetime.now(UTC)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as raw:
            raw.execute("PRAGMA synchronous=OFF")
            for name, columns in _TABLES.items():
                marks = ", ".join("?" * len(columns))
                statement = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - ours
                raw.execute("BEGIN")
                with _without_indexes(raw, name):
                    raw.executemany(statement, map(_plain, rows(name, people, sessions, now)))
                raw.execute("COMMIT")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as asked:
        for name, columns in _TABLES.items():
            with asked.cursor().copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows(name, people, sessions, now):
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


Form = dict[str, str]


class Asking:
    """One browser of an administrator."""

    def __init__(self, served: Site, token: str) -> None:
        self._served, self._headers = Https(served), {"Cookie": f"{SESSION_COOKIE}={token}"}

    def first_byte(self, url: str, form: Form | None = None) -> tuple[float, int]:
        """Return how long the first byte took, and how long the answer is over the wire."""
        taken, body = self._ask(url, form, {"Accept-Encoding": "gzip"})
        return taken, len(body)

    def text(self, url: str, form: Form | None = None) -> str:
        return self._ask(url, form, {})[1].decode()

    def _ask(self, url: str, form: Form | None, headers: dict[str, str]) -> tuple[float, bytes]:
        headers = headers | self._headers
        began = time.monotonic()
        if form is None:
            self._served.request("GET", url, headers=headers)
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            self._served.request("POST", url, urlencode(form), headers)
        answer = self._served.getresponse()
        taken = time.monotonic() - began
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status}")
        return taken, body


def measure(kind: str, directory: Path, people: int, sessions: int) -> list[list[object]]:
    with ExitStack() as stack:
        with on_core(0):
            place = stack.enter_context(portal.portal(kind, directory, durable=True))
            shares = portal.apply_plan(_NODES, 16, openvpn={"ipv4": "10.128.0.0/11", "ipv6": "fd43:62::/96"})
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
        found = [[kind, url, *compare(root, bare, url)] for url in urls]
        form = question(root)
        return [*found, [kind, f"{WHO_HAD}, an answer", *compare(root, bare, WHO_HAD, form)]]


def question(root: Asking) -> Form:
    """Return the form that asks who has an address now, after seeing that it is answered."""
    token = re.search(r'name="csrf_token" value="([^"]+)"', root.text(WHO_HAD))
    if token is None:
        raise SystemExit(f"{WHO_HAD}: no form")
    date, at = f"{utc_now():%Y-%m-%d %H:%M:%S}".split()
    asked = {"address": _address(_SESSION), "date": date, "time": at, "zone": "UTC", "tolerance": "60"}
    form = asked | {"csrf_token": token[1]}
    if f"user{_SESSION:06}" not in root.text(WHO_HAD, form):
        raise SystemExit(f"{WHO_HAD}: does not find who has {form['address']}")
    return form


def pages_of(app: Flask) -> Iterator[str]:
    """Yield the path of each page of administration; raises KeyError where which one is not said above."""
    paths = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()) and rule.rule != NO_PAGE:
            yield paths.build(rule.endpoint, {name: _ONE[name] for name in rule.arguments})


def compare(root: Asking, bare: Asking, url: str, form: Form | None = None) -> tuple[str, ...]:
    """Return the columns of one page: its time to the first byte, that of ``hello``, and its length."""
    for _ in range(WARM):
        root.first_byte(url, form)
        bare.first_byte("/hello")
    asked = [(root.first_byte(url, form), bare.first_byte("/hello")) for _ in range(ASKED)]
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
