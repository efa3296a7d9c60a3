"""The controller with 300 nodes: how often it sees each, what it takes, how soon it notices who is gone.

``python -m benchmarks.many_nodes`` (root) runs the real ``vpn-portal controller`` on SQLite and on PostgreSQL
with simulated agents over real mutual TLS, all in a network namespace that ends with it. What counts is what
the database says, because that is what a connect goes by.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.stage import agents, namespace, portal, table
from benchmarks.stage.agents import Simulated
from benchmarks.stage.portal import Look, Portal, look
from benchmarks.stage.processes import Used, memory_mb, used_by_all

LOOK_SECONDS = 0.2
LONGEST_SECONDS = 60.0


class Watched:
    """Looks at the database again and again, and remembers the oldest information on a living node."""

    def __init__(self, living: Collection[int]) -> None:
        self.living = frozenset(living)
        self.oldest = 0.0

    def until(self, condition: Callable[[Look], bool], seconds: float = LONGEST_SECONDS) -> float:
        """Return the monotonic time at which it came true."""
        ends_at = time.monotonic() + seconds
        while True:
            seen = look()
            self.oldest = max([self.oldest, *(age for n, age in seen.ages.items() if n in self.living)])
            if condition(seen):
                return seen.at
            if seen.at > ends_at:
                raise SystemExit(f"did not come about in {seconds:.0f} s: failing {sorted(seen.failing)}")
            time.sleep(LOOK_SECONDS)

    def for_seconds(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        self.until(lambda seen: seen.at >= ends_at, seconds + LONGEST_SECONDS)


@dataclass
class Usage:
    """What controller and database server use while a block runs, in percent of a core."""

    controller: float = 0.0
    database: float = 0.0


class Trial:
    """One controller with its nodes, and the rows of the table that it makes."""

    def __init__(
        self, kind: str, place: Portal, pid: int, nodes: Simulated, addresses: dict[int, str]
    ) -> None:
        self.kind, self.place, self.pid, self.nodes, self.addresses = kind, place, pid, nodes, addresses
        self.rows: list[list[object]] = []

    def rest(self, what: str, living: Collection[int], seconds: float) -> None:
        """Watch for a while what happens when nothing happens."""
        watched = Watched(living)
        self.nodes.asked()
        with self._measured() as usage:
            watched.for_seconds(seconds)
        gaps = (b - a for times in self._asked(living) for a, b in pairwise(times))
        self._row(what, usage, f"{max(gaps):.1f}", watched, "")

    def lose(self, what: str, mode: str, some: Collection[int], living: Collection[int]) -> None:
        """Let some nodes go, and wait until the portal knows all of them."""
        watched = Watched(set(living) - set(some))
        with self._measured() as usage:
            if mode == "dropped":
                namespace.drop(self.addresses[number] for number in some)
                at = time.monotonic()
            else:
                at = self.nodes.become(mode, some)
            noticed = watched.until(lambda seen: seen.failing.issuperset(some)) - at
        self._row(what, usage, "", watched, f"{noticed:.1f}")

    def bring_back(self, what: str) -> None:
        namespace.drop([])
        at = self.nodes.become("ok", self.addresses)
        watched = Watched(())
        with self._measured() as usage:
            back = watched.until(lambda seen: not seen.failing) - at
        self._row(what, usage, "", None, f"{back:.1f}")

    def _asked(self, living: Collection[int]) -> list[list[float]]:
        asked = self.nodes.asked()
        return [asked[number] for number in living]

    @contextmanager
    def _measured(self) -> Iterator[Usage]:
        usage, before = Usage(), Used.by(self.pid)
        server = self.place.database_pid
        database = used_by_all(server) if server else 0.0
        yield usage
        after = Used.by(self.pid)
        usage.controller = before.share_until(after)[0]
        if server:
            usage.database = 100 * (used_by_all(server) - database) / (after.at - before.at)

    def _row(self, what: str, usage: Usage, gap: str, watched: Watched | None, seconds: str) -> None:
        self.rows.append(
            [
                self.kind,
                what,
                f"{usage.controller:.0f}",
                f"{usage.database:.0f}" if self.place.database_pid else "",
                gap,
                f"{watched.oldest:.1f}" if watched else "",
                seconds,
                f"{memory_mb(self.pid):.0f}",
            ]
        )


def measure(kind: str, directory: Path, count: int, silent: int, seconds: float) -> list[list[object]]:
    everybody, lonely = range(count), [silent]
    with portal.portal(kind, directory) as place:
        shares = portal.apply_plan(count, max_nodes=512)
        addresses = {share["number"]: share["agent_address"] for share in shares}
        with agents.simulated(place.deployment, addresses) as nodes, portal.controller(place) as pid:
            trial = Trial(kind, place, pid, nodes, addresses)
            Watched(everybody).until(lambda seen: len(seen.in_step) == count)
            trial.rest("all answer", everybody, seconds)
            trial.lose("one is gone", "gone", lonely, everybody)
            trial.bring_back("… and is back")
            for what, mode in (("accept and say nothing", "silent"), ("are cut off", "dropped")):
                some, living = range(silent), range(silent, count)
                trial.lose(f"{silent} {what}", mode, some, everybody)
                trial.rest("… and stay so", living, seconds / 2)
                trial.lose("… and one more is gone", "gone", lonely, living)
                trial.bring_back("… and all are back")
    return trial.rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--silent", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="how long it is watched at rest")
    parser.add_argument("--databases", nargs="+", default=portal.DATABASES, choices=portal.DATABASES)
    arguments = parser.parse_args()
    namespace.enter()
    rows = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        for kind in arguments.databases:
            rows += measure(kind, Path(name) / kind, arguments.nodes, arguments.silent, arguments.seconds)
    table.show(
        (
            "database",
            "what happens",
            "controller, % of a core",
            "database server, %",
            "longest time between two questions to a living node, s",
            "oldest information on one, s",
            "known of all after s",
            "memory (RSS) MB",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
