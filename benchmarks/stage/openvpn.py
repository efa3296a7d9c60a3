"""Simulated OpenVPN management sockets: each answers ``status 3`` with clients that came before and stay.

``python -m benchmarks.stage.openvpn DIRECTORY PROCESSES CLIENTS`` makes ``DIRECTORY/<n>.sock`` for each
process and says READY. The clients of all processes are numbered through as ``node.openvpn_client`` has them.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.stage.node import OpenVpnPlace, openvpn_client


def places(directory: Path, processes: int) -> list[OpenVpnPlace]:
    return [OpenVpnPlace(f"employees-{n}", directory / f"{n}.sock") for n in range(processes)]


@contextmanager
def simulated(directory: Path, processes: int, clients: int) -> Iterator[list[OpenVpnPlace]]:
    """Run the sockets in a process of their own; ``clients`` are those of all of them."""
    directory.mkdir(parents=True)
    words = [sys.executable, "-m", __name__, str(directory), str(processes), str(clients)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield places(directory, processes)
    finally:
        process.terminate()
        process.wait(10)


def _status(process: int, numbers: range, connected_at: int, looks: int) -> bytes:
    """Return an answer whose counters have grown since the last one."""
    lines = ["TITLE\tOpenVPN 2.6.3", f"TIME\tnow\t{int(time.time())}"]
    for client_id, number in enumerate(numbers):
        name = openvpn_client(number).common_name
        lines.append(
            f"CLIENT_LIST\t{name}\t198.51.100.7:{2000 + client_id}\t10.80.{process}.{client_id + 2}"
            f"\tfd00:80:{process:x}::{client_id + 4096:x}\t{5000 + 900 * looks}\t{4000 + 700 * looks}"
            f"\tthen\t{connected_at}\tUNDEF\t{client_id}\t0\tAES-256-GCM"
        )
    return "\n".join([*lines, "END", ""]).encode()


async def _serve(
    process: int, numbers: range, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    connected_at = int(time.time()) - 60
    for looks in itertools.count():
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
            if not line:
                break
            status = line == b"status 3\n"
            writer.write(_status(process, numbers, connected_at, looks) if status else b"SUCCESS: done\n")
            await writer.drain()
    writer.close()


async def _main(directory: Path, processes: int, clients: int) -> None:
    each = -(-clients // processes)
    for place, first in zip(places(directory, processes), range(0, clients, each), strict=True):
        numbers = range(first, min(first + each, clients))
        await asyncio.start_unix_server(partial(_serve, first // each, numbers), place.socket)
    print("READY", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
