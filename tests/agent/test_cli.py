"""`vpn-node` as systemd and an operator see it: a process of its own."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.cli import main
from tests.agent.conftest import CertificateAuthority

CODE = "import sys; from node_agent.cli import main; sys.exit(main())"


@dataclass
class Node:
    settings: Path
    process: "subprocess.Popen[str]"
    notifications: socket.socket

    def heard(self) -> str:
        return self.notifications.recv(100).decode()

    def run(self, *words: str) -> int:
        return main(["--settings", str(self.settings), *words])


@pytest.fixture
def settings_file(tmp_path: Path, management: CertificateAuthority) -> Path:
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    base = management.directory / "management-node-1"
    path = tmp_path / "settings.toml"
    path.write_text(
        f"""
node_number = 1
listen_address = "127.0.0.1"
listen_port = 0
certificate_file = "{base}.crt"
key_file = "{base}.key"
ca_file = "{management.file}"
state_directory = "{tmp_path}/state"
runtime_directory = "{tmp_path}/run"
"""
    )
    return path


@pytest.fixture
def node(settings_file: Path, tmp_path: Path) -> Iterator[Node]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(tmp_path / "notify"))
        notifications.settimeout(15)
        with subprocess.Popen(
            [sys.executable, "-c", CODE, "--settings", str(settings_file), "run"],
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            made = Node(settings_file, process, notifications)
            try:
                while made.heard() != "READY=1":
                    pass
                yield made
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def test_the_agent_says_that_it_is_alive_and_stops_on_sigterm(node: Node) -> None:
    """R44: systemd restarts an agent that no longer says so."""
    assert node.heard() == "WATCHDOG=1"

    node.process.send_signal(signal.SIGTERM)

    assert node.process.wait(10) == 0
    assert node.process.stderr is not None
    assert "Traceback" not in node.process.stderr.read()


def test_status_accept_and_maintenance(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.run("status") == 0
    assert "node 1, version" in capsys.readouterr().out
    assert node.run("accept") == 0
    assert capsys.readouterr().out == "nothing is held\n"

    assert node.run("maintenance", "on") == 0

    assert node.run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["maintenance_mode"] is True


def test_only_the_agents_user_and_root_open_the_local_socket(node: Node) -> None:
    assert (node.settings.parent / "run/agent.sock").stat().st_mode & 0o777 == 0o600


def test_a_stopped_agent_is_named_with_the_way_out(
    settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--settings", str(settings_file), "status"]) == 1
    assert "systemctl status vpn-node-agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("node_numbr = 1", "unknown key 'node_numbr'; did you mean 'node_number'?"),
        ("node_number = true", "node_number: True is not of type int"),
        ("listen_address = 'example'", "listen_address: 'example' is no address"),
        ("portal = []", "portal: empty"),
        ("[wireguard]", "wireguard: 'interface' is missing"),
        ("[wireguard]\ninterface='wg 0'\nnetworks=[]", "'wg 0' is no interface name"),
        ("[[openvpn]]\nname='a'", "openvpn[0]: 'profile_id' is missing"),
        ("journal_days = 0", "journal_days: must be 1 or more"),
        ("[", "not TOML"),
    ],
)
def test_wrong_settings_stop_the_start(
    settings_file: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    text = settings_file.read_text()
    key = line.partition(" =")[0]
    kept = "".join(kept + "\n" for kept in text.splitlines() if not kept.startswith(f"{key} ="))
    settings_file.write_text(kept + line + "\n")

    assert main(["--settings", str(settings_file), "run"]) == 1

    error = capsys.readouterr().err
    assert message in error
    assert str(settings_file) in error
