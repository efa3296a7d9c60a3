"""Tell systemd that the agent is ready and alive (sd_notify(3))."""

import os
import socket


def notify(state: str) -> None:
    """Send ``state``, such as ``READY=1``, to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to hear WATCHDOG=1, with a margin of two; None if it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 / 3 if microseconds.isdigit() else None
