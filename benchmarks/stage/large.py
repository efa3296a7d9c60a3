"""A database of many users, connections and sessions, as after a year: for the benchmark and the test of
long lists. Written past the ORM.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks.stage import portal
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import usage

_SPREAD = timedelta(days=365)
#: Of so many sessions, the latest, it is known who had which address; and so many connections of each user
#: have ended.
_REMEMBERED, _ENDED = 1_000_000, 3
#: A device's name that fills its column on a page.
_DEVICE = "Laptop of the physics department"
_APP = "org.eduvpn.app.linux"
#: Every so many people downloaded a configuration, the others use an app.
_DOWNLOADS = 10
_TABLES = {
    "users": ("id", "name", "permissions", "is_disabled", "created_at"),
    "authorizations": (
        "id", "user_id", "client_id", "scope", "authorized_at", "expires_at", "last_used_at",
    ),
    "connections": (
        "id", "user_id", "authorization_id", "node_number", "profile_id", "protocol", "display_name",
        "created_at", "expires_at", "generation",
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


@dataclass(frozen=True)
class Size:
    """How much there is: each of the ``people`` has a connection, and a tenth of them is connected.

    Nodes have the numbers from 0 on; nodes and profile are in the database already.
    """

    people: int
    sessions: int
    nodes: int
    profile: str = portal.PROFILE


def user_id(number: int) -> int:
    return 1000 + number


def user_name(number: int) -> str:
    return f"user{number:06}@students.example.org"


def address(session: int) -> str:
    """Return the address of a session, the latest one being 0."""
    return f"10.{session >> 16 & 127}.{session >> 8 & 255}.{session & 255}"


def fill(url: str, size: Size) -> None:
    """Write all of it. PostgreSQL looks at it once, as it does by itself; SQLite never does."""
    now = datetime.now(UTC)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as raw:
            raw.execute("PRAGMA synchronous=OFF")
            for name, columns in _TABLES.items():
                marks = ", ".join("?" * len(columns))
                statement = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - ours
                raw.execute("BEGIN")
                with _without_indexes(raw, name):
                    raw.executemany(statement, map(_plain, _rows(name, size, now)))
                raw.execute("COMMIT")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as asked:
        for name, columns in _TABLES.items():
            with asked.cursor().copy(f"COPY {name} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in _rows(name, size, now):
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


def _rows(name: str, size: Size, now: datetime) -> Iterator[tuple[Any, ...]]:
    people = range(size.people)
    if name == "users":
        for n in people:
            made = now - _SPREAD - timedelta(seconds=60 * n)
            yield user_id(n), user_name(n), "[]", n % 1000 == 0, made
    elif name == "authorizations":
        for n in people:
            made = now - timedelta(seconds=60 * n)
            yield _authorization(n), user_id(n), _APP, "config", made, now + timedelta(days=90), made
    elif name == "connections":
        for n in people:
            made = now - timedelta(seconds=60 * n)
            app = _authorization(n) if n % _DOWNLOADS else None
            yield (
                f"{n:032x}", user_id(n), app, n % size.nodes, size.profile, "openvpn", _DEVICE, made,
                now + timedelta(days=90), 1,
            )  # fmt: skip
    elif name == "vpn_sessions":
        for n in range(size.sessions):
            began, ended = _lasted(n, size, now)
            yield (
                n % size.nodes, f"{n:032x}", f"{n % size.people:032x}", user_name(n % size.people),
                size.profile, "openvpn", address(n), began, ended, 1_000_000 + n, 100_000 + n,
            )  # fmt: skip
    elif name == "address_uses":
        yield from _address_uses(size, now)
    elif name == "refused_connects":
        for n in people[7::10]:
            why = "; ".join(f"no {protocol}: node0 (full)" for protocol in ("wireguard", "openvpn"))
            yield user_id(n), now - timedelta(minutes=n), _DEVICE, size.profile, "no capacity", why
    elif name == "usage_days":
        for back in range(1, _SPREAD.days + 1):
            day = f"{now - timedelta(days=back):%Y-%m-%d}"
            for profile, node in _counted(size):
                users = size.people // (1 if node == ALL_NODES else size.nodes)
                clients = json.dumps({"org.eduvpn.app.windows": users // 2, "": users // 9})
                yield (
                    profile, node, day, users, 2 * users, users // 2, users // 3, users * 10**9,
                    users * 10**8, clients,
                )  # fmt: skip
    elif name == "usage_samples":
        last = usage.slot_of(now)
        of_nodes = ((size.profile, n, "openvpn") for n in range(size.nodes))
        kinds = [*((*one, ALL) for one in _counted(size)), *of_nodes]
        for slot in range(last - usage.SAMPLES_KEPT // usage.SLOT, last + 1):
            for kind in kinds:
                yield *kind, slot, size.people // 10 + slot % 100, size.people // 12
    else:
        for n in people:
            yield 10_000 + n, now - _SPREAD + _SPREAD * (n / size.people), user_name(n), "signed in", "{}"


def _authorization(number: int) -> int:
    return 10_000 + number


def _counted(size: Size) -> list[tuple[str, int]]:
    """Return what a day is counted for: each profile and node, and over all of either (``usage``)."""
    return [(profile, node) for profile in (size.profile, ALL) for node in (*range(size.nodes), ALL_NODES)]


def _lasted(session: int, size: Size, now: datetime) -> tuple[datetime, datetime | None]:
    began = now - _SPREAD * (session / size.sessions)
    return began, None if session < size.people // 10 else began + timedelta(hours=1)


def _address_uses(size: Size, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Yield who had which address, and what remembers each connection that has ended (``ending``)."""
    same = "openvpn", _APP, _DEVICE, "node0: 10 % busy, 4000 free addresses"
    for n in range(min(size.sessions, _REMEMBERED)):
        began, ended = _lasted(n, size, now)
        reason = None if ended is None else "disconnected"
        user = n % size.people
        yield (
            f"{user:032x}", user_name(user), size.profile, n % size.nodes, *same, address(n), began, ended,
            reason,
        )  # fmt: skip
    for n in range(size.people * _ENDED):
        made = now - timedelta(days=1, seconds=n)
        yield (
            f"{10**9 + n:032x}", user_name(n % size.people), size.profile, n % size.nodes, *same, None, made,
            made + timedelta(hours=1), "disconnected",
        )  # fmt: skip
