"""nginx and gunicorn as the roles configure them: their own templates, with files of a directory instead."""

import functools
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.portal.app_user import HOST
from tests.portal.certificates import Deployment

PROJECT = Path(__file__).parents[2]
START_SECONDS = 20
#: Requests a second from one address; the role's limit would be what is measured.
UNLIMITED = 1_000_000


@dataclass(frozen=True)
class Site:
    """``pids`` are the first processes of nginx and of gunicorn."""

    host: str
    port: int
    ca_file: Path
    pids: dict[str, int]


@contextmanager
def site(
    directory: Path, deployment: Deployment, *, host: str, port: int, application: str, **environment: str
) -> Iterator[Site]:
    """Serve a WSGI application (``module:name``) under a name and a port of its own."""
    directory.mkdir()
    # nginx's processes run as www-data, and have to get at the socket.
    directory.chmod(0o755)
    files = _Files(directory, deployment, host)
    words = shlex.split(_exec_start())
    words[0] = str(Path(sys.prefix) / "bin/gunicorn")
    words[words.index("--bind") + 1] = f"unix:{files.socket}"
    words[-1] = application
    with (
        _process("gunicorn", words, directory, environment) as gunicorn,
        _process("nginx", ["nginx", "-g", "daemon off;", "-c", str(files.write(port))], directory) as nginx,
    ):
        _wait(files.socket)
        _wait(port)
        yield Site(host, port, deployment.server_ca.pair.certificate, {"nginx": nginx, "gunicorn": gunicorn})


@contextmanager
def portal_and_hello(directory: Path, deployment: Deployment, settings: Path) -> Iterator[tuple[Site, Site]]:
    """Serve the portal, and beside it the bare ``hello`` that it is compared with."""
    with (
        site(
            directory / "portal-site", deployment, host=HOST, port=8440,
            application="portal_app.wsgi:app", CAUSEWAY_SETTINGS=str(settings),
        ) as served,
        site(
            directory / "hello-site", deployment, host="hello.example.org", port=8450,
            application="benchmarks.stage.hello:app",
        ) as hello,
    ):  # fmt: skip
        yield served, hello


class _Files:
    """The web frontend's files, in one directory."""

    def __init__(self, directory: Path, deployment: Deployment, host: str) -> None:
        self.directory, self.host, self.socket = directory, host, directory / "portal.sock"
        pair = deployment.server_ca.issue(host, server=True)
        self._places = {
            "/etc/causeway/tls/active/fullchain.pem": str(pair.certificate),
            "/etc/causeway/tls/active/privkey.pem": str(pair.key),
            "/etc/causeway/web/vpn-user-portal.json": str(directory / "vpn-user-portal.json"),
            "/etc/nginx/causeway-proxy.conf": str(directory / "proxy.conf"),
            "/run/nginx/nginx.pid": str(directory / "nginx.pid"),
            "/var/lib/nginx/body": str(directory / "body"),
        }

    def write(self, port: int) -> Path:
        """Write all of them; return nginx's configuration."""
        values = _defaults("web_frontend") | {
            "web_frontend_host_name": self.host,
            "web_frontend_upstream": str(self.socket),
            "web_frontend_api_rate": UNLIMITED,
        }
        for template in ("nginx.conf", "proxy.conf", "vpn-user-portal.json"):
            text = _templates("web_frontend").get_template(f"{template}.j2").render(values)
            for place, instead in self._places.items():
                text = text.replace(place, instead)
            text = text.replace("listen 443", f"listen {port}").replace(":443 ", f":{port} ")
            text = text.replace("listen 80", f"listen {port + 1}").replace(":80", f":{port + 1}")
            (self.directory / template).write_text(text)
        return self.directory / "nginx.conf"


@contextmanager
def _process(
    name: str, words: list[str], directory: Path, environment: dict[str, str] | None = None
) -> Iterator[int]:
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=PROJECT, stdout=log, stderr=log, env=_environment() | (environment or {})
        )
    try:
        yield process.pid
        if process.poll() is not None:
            raise SystemExit(f"{name} ended: {(directory / f'{name}.log').read_text()}")
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


def _wait(place: Path | int) -> None:
    ends_at = time.monotonic() + START_SECONDS
    family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
    address: Any = ("127.0.0.1", place) if isinstance(place, int) else str(place)
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            if tried.connect_ex(address) == 0:
                return
        if time.monotonic() > ends_at:
            raise SystemExit(f"nobody listens at {place}")
        time.sleep(0.05)


@functools.cache
def _templates(role: str) -> Environment:
    # Ansible's own filters, as far as these templates use them.
    found = Environment(
        loader=FileSystemLoader(PROJECT / "roles" / role / "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - no HTML
    )
    found.filters |= {
        "comment": lambda text: f"# {text}",
        "combine": lambda one, other: one | other,
        "to_nice_json": functools.partial(json.dumps, indent=4),
        # Of pages that are not laid down here: nobody is to get an error.
        "vpn_style_source": lambda _style: "'none'",
    }
    found.globals["ansible_managed"] = "of a benchmark"
    return found


@functools.cache
def _defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT / "roles" / role / "defaults/main.yml").read_text())
    return found


def _exec_start() -> str:
    unit = _templates("portal").get_template("vpn-portal.service.j2").render(_defaults("portal"))
    lines = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    return lines[0].removeprefix("ExecStart=")
