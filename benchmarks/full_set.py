"""The full set of 10,000 WireGuard peers to a node that lost them, against bare ``wg syncconf``.

``python -m benchmarks.full_set`` (root) runs a real agent over a real interface in a network namespace and
hands it the set as a portal does, over mutual TLS, until the call has returned and the interface has every
peer. Right before, ``wg syncconf`` gives the same peers to a fresh interface. Everything is removed at the
end.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stage import node, table
from vpn_core.messages import Connection


def bare(connections: Sequence[Connection], directory: Path) -> float:
    """Return the seconds of ``wg syncconf``."""
    key = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout
    file = directory / "peers.conf"
    file.write_text(
        f"[Interface]\nPrivateKey = {key}"
        + "".join(
            f"[Peer]\nPublicKey = {c.public_key}\nAllowedIPs = {c.ipv4}/32, {c.ipv6}/128\n"
            for c in connections
        )
    )
    with node.interface() as interface:
        began = time.monotonic()
        subprocess.run(["wg", "syncconf", interface.name, str(file)], check=True)
        seconds = time.monotonic() - began
        assert len(interface.peers()) == len(connections)
    return seconds


def handed_over(connections: Sequence[Connection], directory: Path) -> float:
    """Return the seconds of ``PUT /n/connections``."""
    with node.running(directory) as running:
        began = time.monotonic()
        answer = running.hand_over(connections)
        seconds = time.monotonic() - began
        assert answer["added"] == len(connections), answer
        assert len(running.interface.peers()) == len(connections)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    connections = [node.wireguard_peer(number) for number in range(arguments.peers)]
    rows: list[list[object]] = []
    ratios = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        directory = Path(name)
        for run in range(1, arguments.runs + 1):
            base = bare(connections, directory)
            seconds = handed_over(connections, directory / str(run))
            ratios.append(seconds / base)
            rows.append([run, f"{base:.2f}", f"{seconds:.2f}", f"{ratios[-1]:.2f}"])
    rows.append(["median", "", "", f"{statistics.median(ratios):.2f}"])
    table.show(("run", "`wg syncconf` s", "full set s", "ratio"), rows)


if __name__ == "__main__":
    main()
