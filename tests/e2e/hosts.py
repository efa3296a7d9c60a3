"""The deployed lab as tests see it: hosts by ssh, playbooks by name, the official app on the client host."""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Host:
    """A lab host, reached as root by ssh."""

    name: str
    address: str
    ssh_config: Path

    def ssh(self, command: str) -> list[str]:
        return ["ssh", "-F", str(self.ssh_config), self.name, command]

    def run(
        self, command: str, *, stdin: str | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.ssh(command), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{self.name}: {command}: {done.stderr}{done.stdout}"
        return done

    def output(self, command: str, **options: Any) -> str:
        return self.run(command, **options).stdout.strip()

    def put(self, files: dict[str, bytes], directory: str) -> None:
        """Write files below ``directory``; names are relative paths."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        command = self.ssh(f"mkdir -p {directory} && tar -x --no-same-owner -C {directory}")
        subprocess.run(command, input=packed.getvalue(), check=True, timeout=120)


@dataclass(frozen=True)
class Deployment:
    """A converged lab instance; ``info`` is what ``make lab-info`` prints."""

    name: str
    info: dict[str, Any]

    @property
    def directory(self) -> Path:
        return PROJECT / ".lab" / self.name

    @property
    def portal_url(self) -> str:
        return str(self.info["portal_url"]).rstrip("/")

    @property
    def ca_file(self) -> Path:
        return PROJECT / self.info["ca_file"]

    def host(self, group: str) -> Host:
        found = next(host for host in self.info["hosts"] if group in host["groups"])
        return Host(found["name"], found["address"], self.directory / "ssh_config")

    @property
    def passwords(self) -> dict[str, str]:
        return dict(json.loads((self.directory / "secrets.json").read_text()))

    def variables(self, host: str) -> dict[str, Any]:
        """What the inventory says of a host."""
        command = [
            str(PROJECT / ".venv/bin/ansible-inventory"),
            "-i",
            str(self.directory / "inventory"),
            "--host",
            host,
        ]
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, check=True, env=self.environment
        )
        return dict(json.loads(done.stdout))

    def playbook(self, name: str, *options: str, log: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a playbook of this project on the instance; output is kept in ``.lab/<instance>/logs``."""
        done = subprocess.run(
            [*self.playbook_command(name), *options],
            cwd=PROJECT, capture_output=True, text=True, timeout=1200, check=False, env=self.environment,
        )  # fmt: skip
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"{log or name}.log").write_text(done.stdout + done.stderr)
        return done

    def playbook_command(self, name: str) -> list[str]:
        inventory = self.directory / "inventory"
        return [str(PROJECT / ".venv/bin/ansible-playbook"), "-i", str(inventory), f"playbooks/{name}.yml"]

    @property
    def environment(self) -> dict[str, str]:
        """What ``make lab`` sets for Ansible beside the caller's environment."""
        vault_password = self.directory / "vault-password"
        extra = {"ANSIBLE_VAULT_PASSWORD_FILE": str(vault_password)} if vault_password.exists() else {}
        return os.environ | extra | {"ANSIBLE_NOCOLOR": "1"}


def read_deployment(topology: str, name: str | None = None) -> Deployment:
    """Return the instance that ``make lab-info`` describes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    info = subprocess.run(
        ["make", "-s", "lab-info", f"TOPOLOGY={topology}", f"NAME={name or topology}"],
        cwd=PROJECT, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return Deployment(name or topology, json.loads(info.stdout))


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value of ``condition``; fail when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


class OfficialApp:
    """The process of ``official_app.py`` on the client host."""

    def __init__(self, client: Host) -> None:
        command = client.ssh("cd /opt/e2e && exec python3 -u official_app.py 2>>/root/official-app.log")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attempt(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its answer, also when it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the app's process ended"
        return dict(json.loads(line))

    def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer = self.attempt(do, **arguments)
        assert answer["ok"], f"{do}: {answer.get('error')}\n{answer.get('trace')}"
        return answer

    def pings(self, address: str, size: int = 84) -> bool:
        """Tell whether an address answers one ping of ``size`` bytes through the tunnel."""
        words = ["ping", "-n", "-c", "1", "-W", "1", "-s", str(size - 28), address]
        return self.do("inside", words=words)["code"] == 0

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
