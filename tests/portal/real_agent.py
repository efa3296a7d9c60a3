"""A real node agent in a process of its own, started from the plan as the role would.

Its OpenVPN processes are not running: it keeps what portals tell it, and says so in its problems.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from portal_app.agents import Agents
from portal_app.errors import NodeUnreachable
from portal_app.services.nodes import NodeRef
from tests.portal.certificates import Deployment, Pair
from vpn_core.messages import NodeInfo

START_SECONDS = 30
OPENVPN_KEYS = ("name", "profile_id", "device", "ipv4", "ipv6")


def loopback_address() -> str:
    """Return one of the addresses of this host: every agent listens on the same port."""
    return f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 1}"


class RealAgent:
    """``start`` again keeps its state, ``wipe`` makes it the agent of a reinstalled machine."""

    def __init__(
        self,
        deployment: Deployment,
        directory: Path,
        share: dict[str, Any],
        address: str,
        *,
        certificate: Pair | None = None,
    ) -> None:
        self.number, self.name, self.agent_address = share["number"], share["name"], address
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(parents=True)
        (directory / "run").mkdir()
        pair = certificate or deployment.node(self.number)
        self._settings = directory / "settings.toml"
        lines = {
            "node_number": self.number,
            "listen_address": address,
            "certificate_file": str(pair.certificate),
            "key_file": str(pair.key),
            "ca_file": str(deployment.management.pair.certificate),
            "state_directory": str(self.state),
            "runtime_directory": str(directory / "run"),
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
        for process in share["openvpn"]:
            values = {key: process[key] for key in OPENVPN_KEYS} | {
                "socket": str(directory / "run" / f"{process['name']}.sock")
            }
            text += "[[openvpn]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
        self._settings.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> NodeRef:
        return NodeRef(self.number, self.name, self.agent_address)

    def start(self, agents: Agents, boot_id: str = "") -> "RealAgent":
        """With ``boot_id`` what starts is another machine with every file of this one, a clone."""
        booted = f"from node_agent import machine; machine.boot_id = lambda: {boot_id!r}" if boot_id else ""
        code = f"{booted}\nimport sys; from node_agent.cli import main; sys.exit(main())"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, "--settings", self._settings, "run"], stdout=log, stderr=log
            )
        ends_at = time.monotonic() + START_SECONDS
        while True:
            try:
                agents.info(self.node)
                return self
            except NodeUnreachable:
                if self._process.poll() is not None or time.monotonic() > ends_at:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(START_SECONDS)
            self._process = None

    def pause(self) -> None:
        """Hang, as a process does that gets no time."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def wipe(self) -> None:
        for file in self.state.iterdir():
            file.unlink()

    def info(self, agents: Agents) -> NodeInfo:
        return agents.info(self.node)

    def connections(self, agents: Agents) -> set[str]:
        """Return the ids that this node would let in."""
        return {usage.connection_id for usage in agents.usage(self.node)}
