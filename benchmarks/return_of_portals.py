"""All portals were away: what users notice while 50 nodes tell 10,000 journal entries and hear what is new.

``python -m benchmarks.return_of_portals`` (root, nginx) runs nginx and gunicorn as the roles configure them
and ``vpn-portal controller``, on SQLite and on PostgreSQL, with simulated agents over real mutual TLS, all in
a network namespace that ends with it. Apps ask ``/info``, connect and disconnect at a fixed rate, each time
from the moment at which the portal answers: as usual, after a plain restart, after the outage, and as usual
again. Meanwhile every session must come into the database once, and every node must get exactly its set.
"""

import argparse
import base64
import hashlib
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPException
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from sqlalchemy import func, insert, select, update

from benchmarks.stage import agents, namespace, portal, table
from benchmarks.stage.agents import Simulated
from benchmarks.stage.apps import App, apps
from benchmarks.stage.portal import PROFILE, Portal, look
from benchmarks.stage.processes import Used
from benchmarks.stage.web import Site, site
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AddressUse, Connection, Node, NodeStatus, Offer, User, VpnSession
from portal_app.services import connections
from tests.portal.app_user import HOST
from vpn_core.ranges import client_addresses

#: Cuts that each node did not hear of.
MISSED = 2
LONGEST_SECONDS = 120.0
PORT = 8440
WARM_SECONDS = 10.0


@dataclass
class Load:
    """What apps at a fixed rate noticed: milliseconds of each request, from when it was due. Answers of 503
    are counted only, others are failures.
    """

    taken: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.taken + other.taken, self.refused + other.refused, self.failed + other.failed)

    def p99(self) -> float:
        ordered = sorted(self.taken)
        return ordered[int(len(ordered) * 0.99) - 1]

    def __str__(self) -> str:
        return f"{statistics.median(self.taken):.1f} / {self.p99():.1f}"


def use(asking: Sequence[App], per_second: float, seconds: float) -> Load:
    """Let the apps ask so many requests a second together, each app another kind at a time."""
    load, began, pause = Load(), time.monotonic(), len(asking) / per_second

    def go_on(app: App, number: int) -> None:
        app.hang_up()
        due = began + number / per_second
        calls = itertools.cycle((app.info, app.connect, app.info, app.disconnect))
        for call in itertools.islice(calls, number % 4, None):
            if due >= began + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                good = call()
            except (OSError, HTTPException):
                app.hang_up()
                good, app.status = False, 0
            if good:
                load.taken.append((time.monotonic() - due) * 1000)
            load.refused += app.status == 503
            load.failed += not good and app.status != 503
            due += pause

    threads = [threading.Thread(target=go_on, args=(app, number)) for number, app in enumerate(asking)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


@contextmanager
def running(place: Portal, asking: Sequence[App], name: str) -> Iterator[int]:
    """Run controller and web server; yield the controller's process id once an app is answered."""
    with (
        portal.controller(place) as pid,
        site(
            place.directory / name, place.deployment, host=HOST, port=PORT,
            application="portal_app.wsgi:app", CAUSEWAY_SETTINGS=str(place.settings_file),
        ),
    ):  # fmt: skip
        asking[0].hang_up()
        assert asking[0].info()
        yield pid


def fill(per_node: int) -> dict[int, list[str]]:
    """Give every node so many connections in the database; return their ids."""
    made: dict[int, list[str]] = {}
    now = utc_now()
    with transaction() as session:
        user = User(name="load", permissions=[], created_at=now)
        session.add(user)
        session.flush()
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
    """End some connections of every node without telling it, as portals that die at once would, and let what
    is known of the nodes be old.

    Returns the generation that each node has to hear of.
    """
    gone = [connection_id for ids in made.values() for connection_id in ids[:MISSED]]
    with transaction() as session:
        connections.end(session, Connection.id.in_(gone), reason="test", now=utc_now())
        session.execute(update(NodeStatus).values(answered_at=utc_now() - timedelta(hours=1)))
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
    count, each = arguments.nodes, arguments.entries // arguments.nodes // 2
    with portal.portal(kind, directory, durable=True) as place:
        addresses = {s["number"]: s["agent_address"] for s in portal.apply_plan(count, max_nodes=64)}
        made = fill(arguments.connections // count)
        served = Site(HOST, PORT, place.deployment.server_ca.pair.certificate, {})
        with (
            agents.simulated(place.deployment, addresses) as nodes,
            apps(arguments.apps, served, served) as asking,
        ):

            def watch() -> Load:
                return use(asking, arguments.rate, arguments.seconds)

            with running(place, asking, "usual"):
                _wait(lambda: len(look().in_step) == count)
                use(asking, arguments.rate, WARM_SECONDS)
                usual = watch()
            with running(place, asking, "restarted"):
                restarted = watch()
            nodes.live_on({n: [(i, PROFILE) for i in ids[MISSED:][:each]] for n, ids in made.items()})
            missed = miss(made)
            began = time.monotonic()
            with running(place, asking, "returned") as pid, ThreadPoolExecutor(1) as users:
                answering, watched = time.monotonic() - began, users.submit(watch)
                _wait(lambda: in_step(nodes, missed, each * count))
                stepped, cpu = time.monotonic() - began, Used.by(pid).own
                returned = watched.result()
                usual += watch()
                # The users' last changes are followed by sets as well.
                _wait(lambda: len(look().in_step) == count)
            check_sets(nodes)
    return [
        kind, usual, restarted, returned,
        f"{returned.p99() / usual.p99():.2f}", f"{restarted.p99() / usual.p99():.2f}",
        returned.refused, usual.refused + sum(load.failed for load in (usual, restarted, returned)),
        f"{answering:.1f}", f"{stepped:.1f}", f"{cpu:.1f}",
    ]  # fmt: skip


def _wait(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LONGEST_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, "did not come about"
        time.sleep(0.5)


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
        Path(name).chmod(0o711)  # nginx's processes pass through
        for kind in arguments.databases:
            for run in range(arguments.runs):
                rows.append(measure(kind, Path(name) / f"{kind}-{run}", arguments))
                print(*rows[-1], file=sys.stderr, flush=True)
    table.show(
        (
            "database",
            "usual ms: median / p99",
            "after a restart",
            "after the outage",
            "its p99 to the usual",
            "that of a restart",
            "503 at first",
            "failed",
            "first answer after s",
            "all in step after s",
            "controller's CPU until then, s",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
