"""What the tests of several nodes do to them and ask of them."""

import base64
import json
import os
import re
import secrets
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from portal_app.verification.browser import App, Browser, VerificationError, forms
from tests.e2e.hosts import (
    PROJECT,
    Deployment,
    Host,
    OfficialApp,
    Program,
    ProgramEnded,
    wait_until,
)

WIREGUARD_TYPE = "application/x-wireguard-profile"
#: Nodes are asked every five seconds; what a call could not do is repaired within this (I3, I4).
ROUND_SECONDS = 30


@dataclass(frozen=True)
class Attempt:
    """One connect of the prober: seconds since it began, how long it took, the answer, the node's name."""

    at: float
    seconds: float
    status: int
    node: str
    text: str


@dataclass
class Prober:
    """Users who connect and disconnect without a pause, as a campus does at nine."""

    attempts: list[Attempt] = field(default_factory=list)

    def failures(self) -> list[Attempt]:
        return [a for a in self.attempts if a.status != 200]

    def slowest(self) -> float:
        return max(a.seconds for a in self.attempts)

    def nodes(self, after: float) -> set[str]:
        """Nodes that answers named which were asked for later than ``after`` seconds."""
        return {a.node for a in self.attempts if a.at > after}


class World:
    """The deployed hosts, seen from the portal's command line; a context manager that ends what it began."""

    def __init__(self, deployment: Deployment, client: Host) -> None:
        self.deployment, self.client = deployment, client
        self.portal = deployment.host("portals")
        self._passwords = dict(deployment.passwords)
        self._inside: Program | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._inside is not None:
            self._inside.close()

    def node(self, name: str) -> Host:
        return self.deployment.named(name)

    def vpn_portal(self, *words: str, check: bool = True) -> str:
        return self.portal.run(shlex.join(["vpn-portal", *words]), check=check).stdout

    def ask(self, *words: str) -> Any:
        return json.loads(self.vpn_portal(*words, "--json"))

    def password(self, user: str) -> str:
        """Return a user's password; the account is made when it is needed first."""
        if user not in self._passwords:
            self.add_users([user])
        return self._passwords[user]

    def add_users(self, names: list[str]) -> None:
        """Make accounts that ``password`` then knows, many in one go."""
        passwords = {name: secrets.token_urlsafe(18) for name in names}
        self.inside("add_users", passwords=passwords)
        self._passwords |= passwords

    def browser(self, user: str) -> Browser:
        """Return a browser in which a user has signed in to the portal."""
        browser = Browser(self.deployment.ca_file)
        answer = browser.open(f"{self.deployment.portal_url}/")
        form = next(f for f in forms(answer.text) if "password" in f.kinds.values())
        browser.submit(answer, form, {"user_name": user, "password": self.password(user)})
        return browser

    def state(self, name: str) -> str:
        return str(self.inside("states")[name])

    def wait_until_up(self, name: str, seconds: float = 60) -> None:
        wait_until(lambda: self.state(name) == "up", seconds, f"{name} is up")

    def wanted(self, name: str) -> set[str]:
        """Return the public keys that the database wants on a node."""
        return set(self.inside("wanted", node=name))

    def peers(self, name: str) -> set[str]:
        """Return the public keys on a node's interface."""
        return set(self.node(name).output("wg show wg0 peers", check=False).split())

    def wait_until_in_step(self, name: str, seconds: float = ROUND_SECONDS) -> None:
        """I4: the peers of a node are the live connections for it, no more, no fewer."""
        wait_until(
            lambda: self.state(name) == "up" and self.peers(name) == self.wanted(name),
            seconds,
            f"{name} in step",
        )

    def sessions(self, user: str) -> list[dict[str, Any]]:
        """Return the sessions of a user in the order of their begin: ``node``, ``protocol``, ``ended``."""
        return list(self.inside("sessions", user=user))

    def expire(self, user: str, seconds: int) -> None:
        """Let a user's connections end in some seconds, and tell their nodes as the controller would."""
        self.inside("expire", user=user, seconds=seconds)

    def open_sessions(self, name: str) -> list[dict[str, Any]]:
        return list(self.inside("open_sessions", node=name))

    def inside(self, do: str, **arguments: Any) -> Any:
        """Ask the portal's database itself, see ``inside_portal.py``."""
        if self._inside is not None:
            with suppress(ProgramEnded):
                return self._inside.do(do, **arguments)["answer"]
            self._inside.close()
        source = (PROJECT / "tests/e2e/inside_portal.py").read_text()
        words = ["runuser", "-u", "causeway-portal", "--"]
        words += ["/opt/causeway/current/bin/python", "-u", "-c", source]
        ssh, *rest = self.portal.ssh(shlex.join(words))
        # A portal that lost its power says nothing.
        self._inside = Program([ssh, "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2", *rest])
        return self._inside.do(do, **arguments)["answer"]

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Let every new connection go to one node: the others are in maintenance."""
        others = [other for other in self.inside("states") if other != name]
        self.inside("switch_maintenance", names=others, on=True)
        try:
            yield
        finally:
            self.inside("switch_maintenance", names=others, on=False)

    def connect(self, app: OfficialApp, profile: str, *, prefer_tcp: bool = False) -> dict[str, Any]:
        """Let an app connect and open the tunnel; returns what it got with ``node`` and ``gateway``."""
        got = app.do("get_config", url=self.deployment.portal_url, profile=profile, prefer_tcp=prefer_tcp)
        opened = app.do(
            "up", config=got["config"], protocol=got["protocol"], transport="tcp" if prefer_tcp else "udp"
        )
        gateway = opened["gateways"][0]
        wait_until(lambda: app.pings(gateway), 20, f"tunnel of {profile}")
        return got | {"node": node_of(got["config"]), "gateway": gateway, "gateways": opened["gateways"]}

    @contextmanager
    def probing(self, profile: str, users: int = 2) -> Iterator[Prober]:
        """Let some users connect and disconnect all the time; what they see is in the prober."""
        prober, stop = Prober(), threading.Event()
        apps = []
        for number in range(users):
            app = App(self.deployment.portal_url, Browser(self.deployment.ca_file))
            name = f"prober{number}"
            app.discover()
            app.authorize(name, self.password(name))
            apps.append(app)
        began = time.monotonic()

        def work(app: App) -> None:
            while not stop.is_set():
                started = time.monotonic()
                key = base64.b64encode(os.urandom(32)).decode()
                answer = app.ask(profile, WIREGUARD_TYPE, key)
                ended = time.monotonic()
                node = node_of(answer.text) if answer.status == 200 else ""
                prober.attempts.append(
                    Attempt(started - began, ended - started, answer.status, node, answer.text[:300])
                )
                with suppress(VerificationError):
                    app.disconnect()
                stop.wait(0.2)

        threads = [threading.Thread(target=work, args=(app,)) for app in apps]
        for thread in threads:
            thread.start()
        try:
            yield prober
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)


def node_of(config: str) -> str:
    """Return the short name of the node that a configuration leads to."""
    found = re.search(r"^(?:Endpoint = |remote )([a-z0-9]+)\.", config, re.MULTILINE)
    assert found, config[:500]
    return found[1]


def address_of(config: str) -> str:
    """Return the IPv4 address that a WireGuard configuration gives."""
    line = next(line for line in config.splitlines() if line.startswith("Address = "))
    return line.removeprefix("Address = ").split("/")[0]


class Pings:
    """Pings through an app's tunnel, five a second, that run on until ``lost`` is asked."""

    def __init__(self, app: OfficialApp, gateway: str, name: str) -> None:
        self._app, self._file = app, f"/tmp/pings-{name}"
        command = f"ping -n -i 0.2 {gateway} >{self._file} 2>&1 & echo $! >{self._file}.pid"
        app.do("inside", words=["sh", "-c", command])

    def lost(self) -> int:
        """End them; return how many had no answer. The very last one may have been under way."""
        self._app.do("inside", words=["sh", "-c", f"kill -INT $(cat {self._file}.pid)"])
        said = wait_until(self._said, 15, "pings end")
        sent = int(re.findall(r"(\d+) packets transmitted", said)[0])
        answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", said)}
        assert sent > 10, said
        return len(set(range(1, sent)) - answered)

    def _said(self) -> str | None:
        text: str = self._app.do("inside", words=["cat", self._file])["output"]
        return text if "packets transmitted" in text else None
