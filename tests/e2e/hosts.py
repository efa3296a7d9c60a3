"""The deployed lab as tests see it: hosts by ssh, playbooks by name, the official app on the client host."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
CLIENT_PACKAGES = (
    "ca-certificates iproute2 iputils-ping nftables openvpn wireguard-go wireguard-tools curl nmap"
)


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
    """A converged lab instance; ``info`` is what ``make lab-info`` prints.

    ``project`` is whose playbooks run: this one, or another release of it.
    """

    name: str
    info: dict[str, Any]
    project: Path = PROJECT

    @property
    def directory(self) -> Path:
        return PROJECT / ".lab" / self.name

    @property
    def portal_url(self) -> str:
        return str(self.info["portal_url"]).rstrip("/")

    @property
    def ca_file(self) -> Path:
        return PROJECT / self.info["ca_file"]

    def hosts(self, group: str) -> list[Host]:
        return [self._host(found) for found in self.info["hosts"] if group in found["groups"]]

    def host(self, group: str) -> Host:
        return self.hosts(group)[0]

    def named(self, name: str) -> Host:
        return next(self._host(found) for found in self.info["hosts"] if found["name"] == name)

    def _host(self, found: dict[str, Any]) -> Host:
        return Host(found["name"], found["address"], self.directory / "ssh_config")

    def lab(self, *words: str) -> None:
        """Run a command of the lab on this instance, such as ``power-off fra2``."""
        program = [sys.executable, str(PROJECT / "molecule/shared/lab.py"), words[0], "--name", self.name]
        subprocess.run([*program, *words[1:]], check=True, capture_output=True, timeout=180)

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
            cwd=self.project, capture_output=True, text=True, timeout=1200, check=False,
            env=self.environment | {"PYTHONPATH": str(self.project)},
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


_converged: list[str] = []


@contextmanager
def checkout(commit: str, directory: Path) -> Iterator[Path]:
    """Have another release of this project in a directory, which is made."""
    git = ["git", "-C", str(PROJECT), "worktree"]
    subprocess.run([*git, "add", "--detach", directory, commit], check=True, capture_output=True)
    try:
        yield directory
    finally:
        subprocess.run([*git, "remove", "--force", directory], check=True, capture_output=True)


def converge(topology: str) -> Deployment:
    """Bring a lab up and converge it by the command that people use; the one before it goes.

    With ``CAUSEWAY_LAB_AS_IT_IS=single_host,multi_node`` the instances named, or ``topology:name``, are taken
    as they stand, for those who write tests.
    """
    standing = dict(
        (word if ":" in word else f"{word}:{word}").split(":")
        for word in os.environ.get("CAUSEWAY_LAB_AS_IT_IS", "").split(",")
        if word
    )
    if topology in standing:
        return read_deployment(topology, standing[topology])
    make_only_lab(topology, "lab", f"TOPOLOGY={topology}")
    return read_deployment(topology)


def make_only_lab(name: str, *words: str) -> None:
    """Run ``make`` for the instance ``name``; the one before it goes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    while _converged:
        # No test comes back to it, and idle hosts cost the next ones time.
        subprocess.run(
            ["make", "lab-down", f"NAME={_converged.pop()}"],
            cwd=PROJECT, check=True, timeout=300, env=environment,
        )  # fmt: skip
    _converged.append(name)
    log = PROJECT / ".lab" / f"make-lab-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(
            ["make", *words],
            cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=1800, env=environment,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-4000:]


def have(host: Host, packages: str) -> None:
    """Install packages that are not there."""
    if host.run(f"dpkg -s {packages}", check=False).returncode != 0:
        install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
        host.run(f"apt-get update -qq && {install} {packages}", timeout=300)


def prepare_client(host: Host, deployment: Deployment) -> None:
    """Put the official library, our browser, and the portal's CA onto a client host."""
    host.put({"causeway-lab.crt": deployment.ca_file.read_bytes()}, "/usr/local/share/ca-certificates")
    have(host, CLIENT_PACKAGES)
    host.run("update-ca-certificates")
    library = importlib.util.find_spec("eduvpn_common")
    assert library is not None
    assert library.origin is not None
    root = Path(library.origin).parent
    files = {f"eduvpn_common/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*") if p.is_file()}
    files["official_app.py"] = (PROJECT / "tests/e2e/official_app.py").read_bytes()
    # Only the modules without dependencies: importing the portal's package itself would need Flask.
    files |= {"portal_app/__init__.py": b"", "portal_app/verification/__init__.py": b""}
    for module in ("browser", "tunnel", "resolver"):
        path = PROJECT / f"portal_app/verification/{module}.py"
        files[f"portal_app/verification/{module}.py"] = path.read_bytes()
    host.put(files, "/opt/e2e")


def read_deployment(topology: str, name: str | None = None) -> Deployment:
    """Return the instance that ``make lab-info`` describes."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    info = subprocess.run(
        ["make", "-s", "lab-info", f"TOPOLOGY={topology}", f"NAME={name or topology}"],
        cwd=PROJECT, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return Deployment(name or topology, json.loads(info.stdout))


#: `make test` has two labs on the processors of one.
_SLOWER = 3.0 if os.environ.get("CAUSEWAY_LABS_SIDE_BY_SIDE") else 1.0


def within(seconds: float) -> float:
    """Return a bound of reliability.md, which holds where one lab has the processors for itself."""
    return seconds * _SLOWER


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value of ``condition``; fail when there is none ``within`` so many seconds.

    Asking takes as much of a processor as is there, so that half of the time is left to those who are asked.
    """
    deadline = time.monotonic() + within(seconds)
    while True:
        asked = time.monotonic()
        found = condition()
        # One that comes late is none.
        assert time.monotonic() < deadline, f"not within {within(seconds):g} s: {what}"
        if found:
            return found
        time.sleep(min(max(0.1, time.monotonic() - asked), 1.0))


class ProgramEnded(AssertionError):
    """The process is gone, or its host."""


class Program:
    """A process on a host that takes one command a line and answers each with one line, both JSON."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def attempt(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its answer, also when it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        with suppress(BrokenPipeError):
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            raise ProgramEnded("the process ended")
        return dict(json.loads(line))

    def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        answer = self.attempt(do, **arguments)
        assert answer["ok"], f"{do}: {answer.get('error')}\n{answer.get('trace')}"
        return answer

    def close(self) -> None:
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


class OfficialApp(Program):
    """The process of ``official_app.py`` on the client host; each ``name`` has its own tunnel and tokens.

    ``within`` names a network namespace to run it in.
    """

    def __init__(self, client: Host, name: str = "verify", *, within: str | None = None) -> None:
        program = f"python3 -u official_app.py {name} 2>>/root/official-app.log"
        enter = f"nsenter --net=/run/netns/{within} " if within else ""
        super().__init__(client.ssh(f"cd /opt/e2e && exec {enter}{program}"))

    def pings(self, address: str, size: int = 84) -> bool:
        """Tell whether an address answers one ping of ``size`` bytes through the tunnel."""
        words = ["ping", "-n", "-c", "1", "-W", "1", "-s", str(size - 28), address]
        return self.do("inside", words=words)["code"] == 0
