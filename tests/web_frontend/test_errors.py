"""What nginx answers itself, by its golden configuration: no portal is there, or somebody asks too often."""

import base64
import hashlib
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path

import pytest

from portal_app.error_pages import JSON_PATHS
from portal_app.language import LANGUAGES
from tests.portal.certificates import Authority, Pair
from tests.portal.waiting import wait_until

GOLDEN = Path(__file__).parents[1] / "templates/golden/one"
HOST = "vpn.example.org"
PAGES = ("/", "/sign-in", "/oauth/authorize", "/apiary")
#: Each client of this host has an address of its own, as people have.
ADDRESSES = (f"127.9.{number // 250}.{number % 250 + 1}" for number in itertools.count())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: HTTPMessage
    body: str


@dataclass(frozen=True)
class Site:
    port: int
    ca_file: Path

    def ask(self, path: str, method: str = "GET", *, source: str = "") -> Answer:
        context = ssl.create_default_context(cafile=self.ca_file)
        connection = HTTPConnection(HOST)
        plain = socket.create_connection(("127.0.0.1", self.port), 10, (source or next(ADDRESSES), 0))
        with context.wrap_socket(plain, server_hostname=HOST) as connection.sock:
            connection.request(method, path, body="a=b" if method == "POST" else None)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())

    def ask_too_often(self, path: str, method: str = "GET") -> Answer:
        source = next(ADDRESSES)
        answers = (self.ask(path, method, source=source) for _ in range(20))
        return next(answer for answer in answers if answer.status != 503)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """nginx as the role sets it up, without a portal behind it; who asks twice a second asks too often."""
    directory = Path(tempfile.mkdtemp(prefix="causeway-nginx-"))
    directory.chmod(0o755)  # its workers are www-data's
    authority = Authority(directory, "ca")
    configuration = directory / "nginx.conf"
    port = free_port()
    configuration.write_text(configured(directory, authority.issue(HOST, server=True), port))
    command = ["/usr/sbin/nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(configuration)]
    nginx = subprocess.Popen(command)
    try:
        wait_until(lambda: nginx.poll() is not None or answers(port))
        assert nginx.poll() is None
        yield Site(port, authority.pair.certificate)
    finally:
        nginx.terminate()
        nginx.wait(30)
        shutil.rmtree(directory)


def configured(directory: Path, pair: Pair, port: int) -> str:
    """Lay down the golden files and return the configuration that leads to them."""
    errors = directory / "web/errors"
    errors.mkdir(parents=True)
    for status, form in itertools.product((429, 503), ("html", "json")):
        shutil.copy(GOLDEN / f"web_frontend-error.{form}.{status}", errors / f"{status}.{form}")
    text = (GOLDEN / "web_frontend-nginx.conf").read_text()
    for place, instead in {
        "/etc/causeway/tls/active/fullchain.pem": pair.certificate,
        "/etc/causeway/tls/active/privkey.pem": pair.key,
        "/etc/causeway/web/": f"{directory}/web/",
        "/etc/nginx/causeway-proxy.conf": GOLDEN / "web_frontend-proxy.conf",
        "/run/nginx/nginx.pid": directory / "nginx.pid",
        "/var/lib/nginx/body": directory / "body",
        "/run/causeway-portal/portal.sock": directory / "portal.sock",
    }.items():
        assert place in text
        text = text.replace(place, str(instead))
    text = re.sub(r"^ *listen \[::\]:.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace(
        "listen 80", f"listen 127.0.0.1:{free_port()}"
    )
    text = text.replace("allow 127.0.0.1;", "allow 127.0.0.0/8;")
    return re.sub(r"burst=\d+", "burst=1", re.sub(r"rate=\d+r/s", "rate=1r/s", text))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("path", PAGES)
def test_people_read_a_page_while_the_portal_is_away(path: str, site: Site) -> None:
    answer = site.ask(path)

    assert (answer.status, answer.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert "Not available at the moment" in answer.body
    assert "help.example.org" in answer.body


def test_a_form_that_was_sent_is_answered_with_the_page_too(site: Site) -> None:
    answer = site.ask("/sign-in", "POST")

    assert (answer.status, answer.headers["Content-Type"]) == (503, "text/html; charset=utf-8")


@pytest.mark.parametrize("path", [*JSON_PATHS, "/api/v3/connect", "/api/admin/v1/nodes"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_apps_and_scripts_read_json_while_the_portal_is_away(path: str, method: str, site: Site) -> None:
    answer = site.ask(path, method)

    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/json")
    assert json.loads(answer.body).keys() == {"error"}


@pytest.mark.parametrize("path", ["/", "/sign-in"])
def test_people_who_ask_too_often_read_a_page(path: str, site: Site) -> None:
    answer = site.ask_too_often(path, "POST")

    assert (answer.status, answer.headers["Content-Type"]) == (429, "text/html; charset=utf-8")
    assert "Too many requests" in answer.body


@pytest.mark.parametrize("path", ["/api/v3/info", "/oauth/token", "/api/admin/v1/nodes"])
def test_apps_and_scripts_that_ask_too_often_read_json(path: str, site: Site) -> None:
    answer = site.ask_too_often(path)

    assert (answer.status, json.loads(answer.body)) == (429, {"error": "too many requests"})


@pytest.mark.parametrize("path", ["/", "/api/v3/info"])
def test_an_error_says_when_to_come_back_and_is_kept_by_nobody(path: str, site: Site) -> None:
    for answer in (site.ask(path), site.ask_too_often(path)):
        assert answer.headers["Retry-After"] == "5"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Strict-Transport-Security"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_may_do_nothing_but_look_as_it_does(site: Site) -> None:
    answer = site.ask("/")

    (style,) = re.findall("<style>(.*?)</style>", answer.body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script|style=| on\w+=|src=", answer.body)


def test_the_page_is_in_every_language_and_in_the_colours_of_the_deployment(site: Site) -> None:
    answer = site.ask("/")

    assert sorted(re.findall(r'<section lang="(\w+)">', answer.body)) == sorted(LANGUAGES)
    assert "--accent: #8a1538" in answer.body
    assert "--accent: #f0a0b5" in answer.body
    assert "R&amp;D &lt;VPN&gt;" in answer.body


def test_nobody_asks_for_the_page_of_an_error_itself(site: Site) -> None:
    assert site.ask("/errors/503.html").status == 404
