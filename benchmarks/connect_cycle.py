"""Connect + disconnect through nginx, gunicorn, the agent and ``wg`` of the deployed single host.

``python -m benchmarks.connect_cycle`` needs a converged lab (``make lab``). It fills the node with
connections up to each size, runs the same number of cycles at each, and prints one table: wall time, server
CPU and failures per cycle. The ratio of one run counts, not the milliseconds of one machine. What it made is
removed at the end.
"""

import argparse
import base64
import http.client
import json
import os
import ssl
import statistics
import threading
import time
import urllib.parse
from dataclasses import dataclass

from portal_app.verification.browser import App, Browser
from tests.e2e.hosts import read_deployment

UNITS = ("nginx", "vpn-portal", "vpn-portal-controller", "vpn-node-agent", "causeway-wireguard")
PREFIX = "bench-"


@dataclass(frozen=True)
class Row:
    existing: int
    concurrency: int
    cycles: int
    failures: int
    per_second: float
    median_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]


class Lab:
    """The converged single host."""

    def __init__(self) -> None:
        deployment = read_deployment("single_host")
        self.url, self.ca_file = deployment.portal_url, deployment.ca_file
        self._deployment, self._server = deployment, deployment.host("portals")

    def limit_requests(self, rate: int | None) -> None:
        """Let one address ask more often than nginx allows; None puts the role's own limit back."""
        words = [] if rate is None else ["-e", json.dumps({"web_frontend_api_rate": rate})]
        done = self._deployment.playbook("portal", "--tags", "web_frontend", *words, log="bench-limits")
        if done.returncode != 0:
            raise SystemExit(done.stdout[-2000:])

    def run(self, command: str, stdin: str = "") -> str:
        return self._server.run(command, stdin=stdin).stdout

    def python(self, program: str, *arguments: str) -> str:
        """Run a program with the portal's interpreter as the portal's user."""
        words = " ".join(("runuser -u causeway-portal -- /opt/causeway/current/bin/python -", *arguments))
        return self.run(words, PROGRAM_HEAD + program)

    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds that each service has used since it started."""
        return dict(json.loads(self.run("python3 -", CPU.replace("UNITS", repr(UNITS)))))


#: Sums user and system time, those of ended children included, over the processes of each unit.
CPU = """
import json, os, pathlib
used = dict.fromkeys(UNITS, 0.0)
for directory in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        group = (directory / "cgroup").read_text()
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        continue
    for unit in used:
        if f"/{unit}.service" in group:
            used[unit] += sum(map(int, fields[11:15])) * 1000 / os.sysconf("SC_CLK_TCK")
print(json.dumps(used))
"""

PROGRAM_HEAD = """
import base64, os, sys
from datetime import timedelta
from sqlalchemy import insert, select, delete, func
from portal_app import db
from portal_app.agents import Agents
from portal_app.clock import utc_now
from portal_app.models import AddressUse, Connection, FreeAddress, Node, Offer, User
from portal_app.services import connections, nodes
from portal_app.settings import Settings
from vpn_core.ranges import client_addresses
from ipaddress import IPv4Network, IPv6Network
settings = Settings.load()
db.connect_to(settings.database_url)
"""

FILL = """
count, now = int(sys.argv[1]), utc_now()
with db.transaction() as t:
    user = t.scalar(select(User).where(User.name == "bench-load"))
    if user is None:
        user = User(name="bench-load", permissions=[], created_at=now)
        t.add(user)
        t.flush()
    have = t.scalar(select(func.count()).select_from(Connection).where(Connection.user_id == user.id))
    offer = t.scalar(select(Offer).where(Offer.profile_id == "employees"))
    node = t.get(Node, offer.node_number)
    ipv4, ipv6 = IPv4Network(offer.wireguard["ipv4"]), IPv6Network(offer.wireguard["ipv6"])
    rows = []
    for number in range(have, count):
        position = offer.next_position
        offer.next_position += 1
        offer.allocated += 1
        node.generation += 1
        four, six = client_addresses(ipv4, ipv6, position)
        rows.append(dict(id=os.urandom(16).hex(), user_id=user.id, authorization_id=None,
            node_number=node.number, profile_id="employees", protocol="wireguard",
            public_key=base64.b64encode(os.urandom(32)).decode(),
            position=position, ipv4=four, ipv6=six, display_name="bench", created_at=now,
            expires_at=now + timedelta(days=1), generation=node.generation))
    if rows:
        t.execute(insert(Connection), rows)
        t.execute(insert(AddressUse), [dict(
            connection_id=r["id"], user_name=user.name, profile_id="employees", node_number=node.number,
            protocol="wireguard", client_id=None, ipv4=r["ipv4"], ipv6=r["ipv6"],
            started_at=now) for r in rows])
with db.transaction(read_only=True) as t:
    wanted = nodes.wanted_set(t, node.number)
Agents(settings).put_set(node, wanted)
print(len(wanted.connections))
"""

EMPTY = """
with db.transaction() as t:
    user = t.scalar(select(User).where(User.name == "bench-load"))
    if user is not None:
        ended = connections.end(t, Connection.user_id == user.id, reason="benchmark ended", now=utc_now())
        t.execute(delete(User).where(User.id == user.id))
    node = t.scalar(select(Node))
with db.transaction(read_only=True) as t:
    wanted = nodes.wanted_set(t, node.number)
from dataclasses import replace
Agents(settings).put_set(node, replace(wanted, confirmed=True))
"""


class Client:
    """One app with a kept-alive connection to the portal."""

    def __init__(self, lab: Lab, name: str, password: str) -> None:
        app = App(lab.url, Browser(lab.ca_file))
        app.discover()
        app.authorize(name, password)
        self._token = app.access_token
        parts = urllib.parse.urlsplit(lab.url)
        context = ssl.create_default_context(cafile=str(lab.ca_file))
        self._http = http.client.HTTPSConnection(parts.netloc, context=context, timeout=20)

    def cycle(self) -> bool:
        """Connect and disconnect once; tell whether both succeeded."""
        key = base64.b64encode(os.urandom(32)).decode()
        body = urllib.parse.urlencode({"profile_id": "employees", "public_key": key, "prefer_tcp": "no"})
        connected = self._post("connect", body, {"Accept": "application/x-wireguard-profile"})
        return connected == 200 and self._post("disconnect", "", {}) == 204

    def _post(self, path: str, body: str, extra: dict[str, str]) -> int:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        self._http.request("POST", f"/api/v3/{path}", body, headers | extra)
        answer = self._http.getresponse()
        answer.read()
        return answer.status


def measure(lab: Lab, clients: list[Client], existing: int, cycles: int) -> Row:
    """Run ``cycles`` cycles spread over the clients, each in a thread of its own."""
    times: list[float] = []
    failures: list[int] = []
    before = lab.cpu_ms()

    def work(client: Client) -> None:
        for _ in range(cycles // len(clients)):
            began = time.perf_counter()
            good = client.cycle()
            times.append((time.perf_counter() - began) * 1000)
            if not good:
                failures.append(1)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    per_second = len(times) / (time.perf_counter() - started)
    after = lab.cpu_ms()
    cpu = {unit: (after[unit] - before[unit]) / len(times) for unit in UNITS}
    ordered = sorted(times)
    p99 = ordered[int(len(ordered) * 0.99) - 1]
    return Row(
        existing, len(clients), len(times), len(failures), per_second, statistics.median(times), p99, cpu
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--existing", type=int, nargs="+", default=[0, 10_000], help="connections there already"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--cycles", type=int, default=320, help="cycles for each row")
    arguments = parser.parse_args()
    lab = Lab()
    names = [f"{PREFIX}{i}" for i in range(max(arguments.concurrency))]
    password = base64.b64encode(os.urandom(18)).decode()
    rows = []
    try:
        lab.limit_requests(100_000)
        for name in names:
            lab.run(f"vpn-portal user add {name} --password-file - --exists-ok", password)
        clients = [Client(lab, name, password) for name in names]
        for existing in arguments.existing:
            lab.python(FILL, str(existing))
            for concurrency in arguments.concurrency:
                measure(lab, clients[:concurrency], existing, concurrency * 2)  # warm
                rows.append(measure(lab, clients[:concurrency], existing, arguments.cycles))
    finally:
        for name in names:
            lab.run(f"vpn-portal user delete {name} || true")
        lab.python(EMPTY)
        lab.limit_requests(None)
    print_table(rows)


def print_table(rows: list[Row]) -> None:
    columns = (
        "existing",
        "concurrency",
        "cycles",
        "failed",
        "cycles/s",
        "median ms",
        "p99 ms",
        "server CPU ms a cycle",
    )
    print(f"| {' | '.join(columns)} | ratio to first |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        base = next(r for r in rows if r.concurrency == row.concurrency)
        total = sum(row.cpu_ms.values())
        parts = ", ".join(
            f"{unit.removeprefix('vpn-')} {ms:.1f}" for unit, ms in row.cpu_ms.items() if ms >= 0.05
        )
        ratio = f"{base.per_second / row.per_second:.2f} (CPU {total / sum(base.cpu_ms.values()):.2f})"
        print(
            f"| {row.existing} | {row.concurrency} | {row.cycles} | {row.failures} | {row.per_second:.0f}"
            f" | {row.median_ms:.1f} | {row.p99_ms:.1f} | {total:.1f}: {parts} | {ratio} |"
        )


if __name__ == "__main__":
    main()
