"""All portals were away: what users notice while 50 nodes tell 10,000 journal entries and hear what is new.

``python -m benchmarks.return_of_portals`` (root) runs gunicorn and ``vpn-portal controller`` as their units
do, on SQLite and on PostgreSQL, with simulated agents over real mutual TLS, all in a network namespace that
ends with it. Apps ask ``/info``, connect and disconnect at a fixed rate: for a while as usual, then from the
moment at which the portal answers again, first after a plain restart, then after the outage. Meanwhile every
session must come into the database once, and every node must get exactly its set.
"""

import argparse
import base64
import hashlib
import http.client
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from sqlalchemy import func, insert, select

from benchmarks.stage import agents, namespace, portal, table
from benchmarks.stage.agents import Simulated
from benchmarks.stage.portal import PROFILE, Portal, look
from benchmarks.stage.processes import Used
from portal_app import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AddressUse, Connection, Node, Offer, VpnSession
from portal_app.services import connections
from tests.portal.app_user import HOST, HttpsClient, VpnApp, add_user
from vpn_core.ranges import client_addresses

#: Cuts that each node did not hear of.
MISSED = 2
LONGEST_SECONDS = 120.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP to gunicorn's socket, as nginx speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Load:
    """Apps at a fixed rate. ``taken`` are milliseconds; answers of 503 are counted, others are failures."""

    path: Path
    tokens: Sequence[str]
    per_second: float
    taken: list[float] = field(default_factory=list)
    unavailable: int = 0
    failed: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> "Load":
        ends_at = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._app, args=(token, number, ends_at))
            for number, token in enumerate(self.tokens)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def p99(self) -> float:
        ordered = sorted(self.taken)
        return ordered[int(len(ordered) * 0.99) - 1]

    def _app(self, token: str, number: int, ends_at: float) -> None:
        pause = len(self.tokens) / self.per_second
        connection = UnixConnection(self.path)
        due = time.monotonic() + pause * number / len(self.tokens)
        for call in itertools.cycle(("info", "connect", "info", "disconnect")):
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() >= ends_at:
                return
            began = time.monotonic()
            self._ask(connection, token, call)
            self.taken.append((time.monotonic() - began) * 1000)
            due += pause

    def _ask(self, connection: UnixConnection, token: str, call: str) -> None:
        key = base64.b64encode(os.urandom(32)).decode()
        form = {"profile_id": PROFILE, "public_key": key, "prefer_tcp": "no"} if call == "connect" else {}
        headers = {
            "Host": HOST, "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": HOST, "Authorization": f"Bearer {token}",
            "Accept": "application/x-wireguard-profile", "Content-Type": "application/x-www-form-urlencoded",
        }  # fmt: skip
        method = "GET" if call == "info" else "POST"
        body = urllib.parse.urlencode(form) if method == "POST" else None
        connection.request(method, f"/api/v3/{call}", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == 503:
            self.unavailable += 1
        elif answer.status not in (200, 204):
            self.failed.append(f"{call}: {answer.status} {text[:200]!r}")


@contextmanager
def web(place: Portal) -> Iterator[Path]:
    """Run gunicorn as the unit does; yield its socket once it answers."""
    path = place.directory / "portal.sock"
    words = (
        f"--bind unix:{path} --workers 2 --worker-class gthread --threads 16 --timeout 30 --keep-alive 5"
        " --worker-tmp-dir /dev/shm --no-control-socket --log-level warning portal_app.wsgi:app"
    )
    with (place.directory / "web.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *words.split()],
            stdout=log,
            stderr=log,
            env=os.environ | {"CAUSEWAY_SETTINGS": str(place.settings_file)},
        )
    try:
        ends_at = time.monotonic() + LONGEST_SECONDS
        while not _answers(path):
            assert process.poll() is None, (place.directory / "web.log").read_text()
            assert time.monotonic() < ends_at
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(30)
        path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    try:
        connection = UnixConnection(path)
        connection.request("GET", "/.well-known/vpn-user-portal", headers={"Host": HOST})
        return connection.getresponse().status < 500
    except OSError:
        return False


def authorize(place: Portal, count: int) -> list[str]:
    """Return access tokens of so many users with an app."""
    app = create_app(place.settings)
    app.test_client_class = HttpsClient
    with app.app_context():
        tokens = [
            str(VpnApp(app, add_user(f"user{n}")).authorize().tokens["access_token"]) for n in range(count)
        ]
    app.extensions["causeway"].agents.close()
    return tokens


def fill(per_node: int) -> dict[int, list[str]]:
    """Give every node so many connections in the database; return their ids."""
    made: dict[int, list[str]] = {}
    now = utc_now()
    user = add_user("load")
    with transaction() as session:
        for offer in session.scalars(select(Offer)).all():
            node = session.get_one(Node, offer.node_number)
            shares = IPv4Network(offer.wireguard["ipv4"]), IPv6Network(offer.wireguard["ipv6"])
            rows = []
            for position in range(per_node):
                ipv4, ipv6 = client_addresses(*shares, position)
                rows.append(
                    {"id": os.urandom(16).hex(), "user_id": user.id, "node_number": node.number,
                     "profile_id": PROFILE, "protocol": "wireguard", "position": position,
                     "public_key": base64.b64encode(os.urandom(32)).decode(), "ipv4": ipv4, "ipv6": ipv6,
                     "display_name": "load", "created_at": now, "expires_at": now + timedelta(days=1),
                     "generation": node.generation + position + 1}
                )  # fmt: skip
            offer.next_position = offer.allocated = per_node
            node.generation += per_node
            session.execute(insert(Connection), rows)
            kept = ("node_number", "profile_id", "protocol", "ipv4", "ipv6")
            session.execute(
                insert(AddressUse),
                [
                    {"connection_id": row["id"], "user_name": user.name, "started_at": now}
                    | {key: row[key] for key in kept}
                    for row in rows
                ],
            )
            made[node.number] = [str(row["id"]) for row in rows]
    return made


def miss(made: dict[int, list[str]]) -> dict[int, int]:
    """End some connections of every node without telling it, as portals that die at once would.

    Returns the generation that each node has to hear of.
    """
    gone = [connection_id for ids in made.values() for connection_id in ids[:MISSED]]
    with transaction() as session:
        connections.end(session, Connection.id.in_(gone), reason="test", now=utc_now())
    with transaction(read_only=True) as session:
        return {node.number: node.generation for node in session.scalars(select(Node))}


def in_step(nodes: Simulated, missed: dict[int, int], sessions: int) -> bool:
    """Tell whether each node got what it missed, and each session is known and acknowledged."""
    reconciled = look().reconciled
    if any(reconciled[number] < generation for number, generation in missed.items()):
        return False
    if any(node["unread"] for node in nodes.state().values()):
        return False
    with transaction(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(VpnSession)) == sessions


def check_sets(nodes: Simulated) -> None:
    """Every node has exactly the connections that the database has for it."""
    with transaction(read_only=True) as session:
        rows = session.execute(select(Connection.node_number, Connection.id)).all()
    for number, state in nodes.state().items():
        ids = sorted(row.id for row in rows if row.node_number == number)
        assert state["connections"] == hashlib.sha256("".join(ids).encode()).hexdigest(), number


def measure(kind: str, directory: Path, arguments: argparse.Namespace) -> list[object]:
    count, seconds = arguments.nodes, arguments.seconds
    each = arguments.entries // count // 2
    with portal.portal(kind, directory) as place:
        addresses = portal.apply_plan(count, max_nodes=64)
        made = fill(arguments.connections // count)
        tokens = authorize(place, arguments.apps)
        with agents.simulated(place.deployment, addresses) as nodes:
            with portal.controller(place), web(place) as path:
                _wait(lambda: len(look().in_step) == count)
                Load(path, tokens, arguments.rate).run(5)
                usual = Load(path, tokens, arguments.rate).run(seconds)
            with portal.controller(place), web(place) as path:
                restarted = Load(path, tokens, arguments.rate).run(seconds)
            nodes.live_on({n: [(i, PROFILE) for i in ids[MISSED:][:each]] for n, ids in made.items()})
            missed = miss(made)
            began = time.monotonic()
            with portal.controller(place) as pid, web(place) as path:
                answering = time.monotonic() - began
                returned = Load(path, tokens, arguments.rate)
                users = threading.Thread(target=returned.run, args=(seconds,))
                users.start()
                _wait(lambda: in_step(nodes, missed, each * count))
                stepped, cpu = time.monotonic() - began, Used.by(pid).own
                users.join()
                # The users' last changes are followed by sets as well.
                _wait(lambda: len(look().in_step) == count)
            check_sets(nodes)
    loads = (usual, restarted, returned)
    assert not any(load.failed for load in loads), [load.failed[:3] for load in loads]
    return [
        kind, len(usual.taken),
        *(f"{statistics.median(load.taken):.1f} / {load.p99():.1f}" for load in loads),
        f"{returned.p99() / usual.p99():.2f}", f"{returned.p99() / restarted.p99():.2f}",
        returned.unavailable, f"{answering:.1f}", f"{stepped:.1f}",
        f"{cpu:.1f}",
    ]  # fmt: skip


def _wait(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "did not come about"
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--entries", type=int, default=10_000, help="journal entries of all nodes together")
    parser.add_argument("--connections", type=int, default=10_000, help="connections of all nodes together")
    parser.add_argument("--apps", type=int, default=8)
    parser.add_argument("--rate", type=float, default=30, help="requests a second of all apps together")
    parser.add_argument("--seconds", type=float, default=30, help="how long users are watched each time")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--databases", nargs="+", default=portal.DATABASES, choices=portal.DATABASES)
    arguments = parser.parse_args()
    namespace.enter()
    rows = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        for kind in arguments.databases:
            for run in range(arguments.runs):
                rows += [measure(kind, Path(name) / f"{kind}-{run}", arguments)]
    table.show(
        (
            "database",
            "requests",
            "usual ms: median / p99",
            "after a restart ms",
            "on return ms",
            "p99 to usual",
            "p99 to a restart",
            "503 at first",
            "first answer after s",
            "all in step after s",
            "controller's CPU until then, s",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
