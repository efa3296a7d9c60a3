"""An agent with 10,000 WireGuard peers and 1,000 OpenVPN clients: what it takes, how fast it answers.

``python -m benchmarks.full_node`` (root) runs a real agent over a real interface in a network namespace and
simulated management sockets, whose clients' counters grow. It is measured three times: while the whole set
comes in, at rest (CPU while nobody asks anything, then ``/n/info`` 20 times a second), and with a ``wg`` in
whose dumps a part of the peers is busy. Everything is removed at the end.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.stage import node, openvpn, table
from benchmarks.stage.node import RealNode
from benchmarks.stage.processes import Used, memory_mb
from vpn_core.messages import OPENVPN, Connection

SETTLE_SECONDS = 60.0


@dataclass
class Asked:
    """Milliseconds of the answers to ``/n/info``, asked this often in a second."""

    running: RealNode
    per_second: float = 20
    taken: list[float] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def go_on(self) -> None:
        while not self.enough.is_set():
            began = time.monotonic()
            self.running.agents.info(self.running.node)
            self.taken.append((time.monotonic() - began) * 1000)
            self.enough.wait(max(0.0, began + 1 / self.per_second - time.monotonic()))

    def for_seconds(self, seconds: float) -> "Asked":
        threading.Timer(seconds, self.enough.set).start()
        self.go_on()
        return self

    def said(self) -> str:
        ordered = sorted(self.taken)
        p99 = ordered[int(len(ordered) * 0.99) - 1]
        return f"{statistics.median(ordered):.1f} / {p99:.1f} / {ordered[-1]:.1f}"


def hand_over(running: RealNode, connections: Sequence[Connection]) -> Asked:
    """Hand the set over and wait until the agent has everybody; return what others had to wait meanwhile."""
    asked = Asked(running)
    # In a process of its own: whoever asks must not wait for whoever prepares the set.
    handing = multiprocessing.get_context("fork").Process(target=running.hand_over, args=(connections,))
    handing.start()
    asking = threading.Thread(target=asked.go_on)
    asking.start()
    try:
        handing.join()
        assert handing.exitcode == 0
        clients = sum(c.protocol == OPENVPN for c in connections)
        ends_at = time.monotonic() + SETTLE_SECONDS
        while (info := running.agents.info(running.node)).o_client_count < clients:
            assert time.monotonic() < ends_at, info
            time.sleep(0.2)
    finally:
        asked.enough.set()
        asking.join()
    return asked


def rest(running: RealNode, seconds: float) -> tuple[float, float, float]:
    """Return percent of a core of the agent, its ``wg`` children and wireguard-go; ask nothing meanwhile."""
    assert running.interface.process is not None
    pids = running.pid, running.interface.process.pid
    before = [Used.by(pid) for pid in pids]
    time.sleep(seconds)
    agent, interface = (b.share_until(Used.by(pid)) for b, pid in zip(before, pids, strict=True))
    return *agent, interface[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--active", type=int, default=2_000, help="peers that are busy in the third part")
    parser.add_argument("--processes", type=int, default=8, help="OpenVPN processes")
    parser.add_argument("--seconds", type=float, default=60, help="how long each measurement takes")
    arguments = parser.parse_args()
    connections = [node.wireguard_peer(number) for number in range(arguments.peers)]
    connections += [node.openvpn_client(number) for number in range(arguments.clients)]
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        for active in (0, arguments.active):
            with ExitStack() as stack:
                directory = Path(name) / str(active)
                places = stack.enter_context(
                    openvpn.simulated(directory / "openvpn", arguments.processes, arguments.clients)
                )
                programs = node.busy_wg(directory / "bin", active) if active else None
                running = stack.enter_context(node.running(directory / "node", places, programs))
                asked = hand_over(running, connections)
                if not active:
                    rows.append(["the set comes in", "", "", "", asked.said(), _memory(running)])
                rest(running, 15)
                agent, children, interface = rest(running, arguments.seconds)
                asked = Asked(running).for_seconds(arguments.seconds)
                rows.append(
                    [
                        f"{active} peers busy" if active else "at rest",
                        f"{agent:.1f}",
                        # That of the stand-in says nothing.
                        "" if active else f"{children:.1f}",
                        "" if active else f"{interface:.1f}",
                        asked.said(),
                        _memory(running),
                    ]
                )
    table.show(
        (
            "when",
            "agent, % of a core",
            "its `wg`, %",
            "wireguard-go, %",
            "`/n/info` ms: median / p99 / longest",
            "memory (RSS) MB, at its peak",
        ),
        rows,
    )


def _memory(running: RealNode) -> str:
    return f"{memory_mb(running.pid):.0f}, {memory_mb(running.pid, peak=True):.0f}"


if __name__ == "__main__":
    main()
