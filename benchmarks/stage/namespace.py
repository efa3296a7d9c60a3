"""A network namespace for this process and those that it starts: all of 127.0.0.0/8 is free there."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable

_CLONE_NEWNET = 0x40000000


def enter() -> None:
    """Leave the host's network for good; call this before any thread starts. Needs root.

    From then on SIGTERM ends this process in an orderly way, so that it takes along what it started.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise SystemExit(f"a network namespace needs root: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    _nft("add table inet bench", "add chain inet bench in { type filter hook input priority 0; }")


def drop(addresses: Iterable[str]) -> None:
    """Let packets to these addresses, and no others, vanish."""
    _nft("flush chain inet bench in")
    if listed := ", ".join(addresses):
        _nft(f"add rule inet bench in ip daddr {{ {listed} }} drop")


def _nft(*commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input="\n".join(commands) + "\n", text=True, check=True)
