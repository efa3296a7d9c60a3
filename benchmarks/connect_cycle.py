"""What a connect and disconnect costs the portal, against a bare Flask ``hello``.

``python -m benchmarks.connect_cycle`` (root, nginx) runs nginx and gunicorn as the roles configure them (only
the limit of requests is lifted), SQLite or PostgreSQL, and real agents over real WireGuard interfaces, in a
network namespace that ends with it. ``hello`` has an nginx and a gunicorn of its own with the same
configuration. The agents really hold the existing connections.

Server CPU is what nginx, gunicorn and PostgreSQL used, their children included; agents and WireGuard are not
in it. The servers have one core; agents, WireGuard and apps, which are on other hosts in a deployment, have
the other. Everything is measured twice: *in a row*, many requests of one kind, and *in turns*, a few of each
kind one after the other, so that none finds the processor's caches warm from its like.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from benchmarks.stage import fleet, namespace, portal, table
from benchmarks.stage.apps import App, apps
from benchmarks.stage.processes import on_core, used_by_all
from benchmarks.stage.web import Site, portal_and_hello

#: What is asked; a cycle is a connect and a disconnect.
CYCLE, OPENVPN, INFO, WELL_KNOWN, HELLO = "WireGuard cycle", "OpenVPN cycle", "/info", "well-known", "hello"
ASKING = {
    HELLO: App.hello,
    CYCLE: App.wireguard,
    INFO: App.info,
    OPENVPN: App.openvpn,
    WELL_KNOWN: App.well_known,
}
#: Of the light ones so many more are asked in a row.
TIMES = {HELLO: 5, INFO: 3, WELL_KNOWN: 3}
IN_A_ROW, IN_TURNS = "in a row", "in turns"
#: Requests of each kind in a turn, at least one of each app.
TURN = 4
#: Requests of each kind and app before anything counts: a statement is planned anew some times, then known.
WARM = 8


@dataclass
class Sample:
    """Requests of one kind; ``cpu`` are seconds by process."""

    asked: int = 0
    failed: int = 0
    taken: list[float] = field(default_factory=list)
    lasted: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def cpu_ms(self) -> float:
        """Of one request or cycle."""
        return sum(self.cpu.values()) * 1000 / self.asked

    def part_ms(self, name: str) -> float:
        return self.cpu.get(name, 0.0) * 1000 / self.asked

    def at_percent(self, percent: int) -> float:
        ordered = sorted(self.taken)
        return ordered[max(0, len(ordered) * percent // 100 - 1)] * 1000


@dataclass(frozen=True)
class Result:
    database: str
    existing: int
    at_once: int
    samples: dict[str, dict[str, Sample]]

    def cpu_ms(self, order: str, kind: str) -> float:
        return self.samples[order][kind].cpu_ms

    def times_hello(self, order: str, kind: str) -> float:
        return self.cpu_ms(order, kind) / self.cpu_ms(order, HELLO)


class Servers:
    """The processes whose CPU counts."""

    def __init__(self, served: Site, hello: Site, database_pid: int | None) -> None:
        database = {"database": database_pid} if database_pid else {}
        self._portal, self._hello = served.pids | database, hello.pids

    def used(self, kind: str) -> dict[str, float]:
        pids = self._hello if kind == HELLO else self._portal
        return {name: used_by_all(pid) for name, pid in pids.items()}


def ask(app: App, kind: str, count: int) -> tuple[int, list[float]]:
    """Return how many failed, and the seconds that each took."""
    failed, taken = 0, []
    for _ in range(count):
        began = time.monotonic()
        try:
            good = ASKING[kind](app)
        except (OSError, HTTPException):
            app.hang_up()
            good = False
        taken.append(time.monotonic() - began)
        failed += not good
    return failed, taken


def block(servers: Servers, asking: Sequence[App], kind: str, each: int, sample: Sample) -> None:
    """Let every app ask ``each`` times, all of them at once."""
    with ThreadPoolExecutor(len(asking)) as threads:
        before, began = servers.used(kind), time.monotonic()
        for failed, taken in threads.map(lambda app: ask(app, kind, each), asking):
            sample.asked, sample.failed = sample.asked + each, sample.failed + failed
            sample.taken += taken
        sample.lasted += time.monotonic() - began
        for name, used in servers.used(kind).items():
            sample.cpu[name] = sample.cpu.get(name, 0.0) + used - before[name]


def measure(servers: Servers, asking: Sequence[App], cycles: int) -> dict[str, dict[str, Sample]]:
    for app in asking:
        app.hang_up()
    for kind in ASKING:
        block(servers, asking, kind, WARM, Sample())
    in_a_row, in_turns = ({kind: Sample() for kind in ASKING} for _ in range(2))
    for kind, sample in in_a_row.items():
        block(servers, asking, kind, max(1, cycles * TIMES.get(kind, 1) // len(asking)), sample)
    each = max(1, TURN // len(asking))
    for _ in range(max(1, cycles // (each * len(asking)))):
        for kind, sample in in_turns.items():
            block(servers, asking, kind, each, sample)
    return {IN_A_ROW: in_a_row, IN_TURNS: in_turns}


def results(
    kind: str, directory: Path, nodes: int, sizes: Sequence[int], at_once: Sequence[int], cycles: int
) -> list[Result]:
    found = []
    with ExitStack() as stack:
        with on_core(0):
            place = stack.enter_context(portal.portal(kind, directory, durable=True))
            served, hello = stack.enter_context(
                portal_and_hello(directory, place.deployment, place.settings_file)
            )
        # What is on other hosts in a deployment does not take the portal's caches.
        stack.enter_context(on_core(1))
        there = stack.enter_context(fleet.fleet(place, nodes))
        everybody = stack.enter_context(apps(max(at_once), served, hello))
        servers = Servers(served, hello, place.database_pid)
        for existing in sizes:
            there.hold(existing)
            for count in at_once:
                there.look()
                samples = measure(servers, everybody[:count], cycles)
                found.append(Result(kind, existing, count, samples))
                print(f"{kind}, {existing} existing, {count} at once: measured", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--existing", type=int, nargs="+", default=[0, 1_000, 10_000, 100_000], help="connections of others"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cycles", type=int, default=200, help="cycles of each kind for each row")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--databases", nargs="+", default=portal.DATABASES, choices=portal.DATABASES)
    arguments = parser.parse_args()
    namespace.enter()
    found = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # nginx's processes pass through
        for kind in arguments.databases:
            found += results(
                kind, directory / kind, arguments.nodes, sorted(arguments.existing),
                arguments.concurrency, arguments.cycles,
            )  # fmt: skip
    show_cycles(found)
    print()
    show_kinds([result for result in found if result.existing == found[0].existing])


def show_cycles(found: Sequence[Result]) -> None:
    """One row for each size and concurrency: the WireGuard cycle."""
    rows: list[list[object]] = []
    for result in found:
        base = next(r for r in found if (r.database, r.at_once) == (result.database, result.at_once))
        cycle = result.samples[IN_A_ROW][CYCLE]
        both = [samples[CYCLE] for samples in result.samples.values()]
        parts = " + ".join(f"{cycle.part_ms(part):.1f}" for part in ("nginx", "gunicorn", "database"))
        rows.append(
            [
                result.database,
                result.existing,
                result.at_once,
                sum(sample.asked for sample in both),
                sum(sample.failed for sample in both),
                f"{cycle.asked / cycle.lasted:.0f}",
                f"{cycle.at_percent(50):.1f}",
                f"{cycle.at_percent(99):.1f}",
                f"{cycle.cpu_ms:.2f} ({parts})",
                f"{cycle.cpu_ms / base.cpu_ms(IN_A_ROW, CYCLE):.2f}",
                f"{result.times_hello(IN_A_ROW, CYCLE):.1f}",
                f"{both[1].cpu_ms:.2f}",
                f"{both[1].cpu_ms / base.cpu_ms(IN_TURNS, CYCLE):.2f}",
                f"{result.times_hello(IN_TURNS, CYCLE):.1f}",
            ]
        )
    table.show(
        (
            "database",
            "existing",
            "at once",
            "cycles",
            "failed",
            "cycles/s",
            "median ms",
            "p99 ms",
            "in a row: CPU ms (nginx + gunicorn + database)",
            "of that at first",
            "times hello",
            "in turns: CPU ms",
            "of that at first",
            "times hello",
        ),
        rows,
    )


def show_kinds(found: Sequence[Result]) -> None:
    """One row for each kind of request."""
    rows: list[list[object]] = []
    for result in found:
        for kind in ASKING:
            row, turns = (result.samples[order][kind] for order in (IN_A_ROW, IN_TURNS))
            rows.append(
                [
                    result.database,
                    result.at_once,
                    kind,
                    row.asked + turns.asked,
                    row.failed + turns.failed,
                    f"{row.at_percent(50):.1f}",
                    f"{row.at_percent(99):.1f}",
                    f"{row.cpu_ms:.2f}",
                    f"{row.part_ms('gunicorn'):.2f}",
                    f"{result.times_hello(IN_A_ROW, kind):.1f}",
                    f"{turns.cpu_ms:.2f}",
                    f"{result.times_hello(IN_TURNS, kind):.1f}",
                ]
            )
    table.show(
        (
            "database",
            "at once",
            "what",
            "asked",
            "failed",
            "median ms",
            "p99 ms",
            "in a row: CPU ms",
            "of it gunicorn",
            "times hello",
            "in turns: CPU ms",
            "times hello",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
