"""What the tests of two portals and two databases do to them and ask of them."""

import http.client
import itertools
import json
import re
import secrets
import socket
import ssl
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

from portal_app.verification.browser import App, Browser, VerificationError
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until
from tests.e2e.multi_node.world import WIREGUARD_TYPE

PROFILE = "everywhere"
REPLICATION = "runuser -u postgres -- /etc/causeway/postgresql/replication"
ANSWER_SECONDS = 1.0
#: Rules that drop all that a host sends to the database: nobody says that it is away.
NO_DATABASE = "table inet e2e { chain x { type filter hook output priority -300; tcp dport 5432 drop; }; }"
#: How many pairs of rows of the log say of one address on one node that they had it at the same moment.
_PAIRS = """
SELECT count(*) FROM address_uses a JOIN address_uses b
ON a.node_number = b.node_number AND a.{family} = b.{family} AND a.id < b.id
AND b.started_at < coalesce(a.ended_at, now()) AND a.started_at < coalesce(b.ended_at, now())
"""
DOUBLED = f"SELECT ({_PAIRS.format(family='ipv4')}) + ({_PAIRS.format(family='ipv6')})"


def holders(deployment: Deployment, *hosts: Host) -> list[tuple[str, str]]:
    """Return which portal has which of the two addresses."""
    return [
        (host.name, family)
        for host in hosts or deployment.hosts("portals")
        for family, address in deployment.info["vip"].items()
        if f" {address}/" in host.output("ip -o address show")
    ]


def one_holder(deployment: Deployment, *hosts: Host, seconds: int = 15) -> str:
    """Wait until one portal has both addresses and nobody else has any; return its name."""

    def found() -> str | None:
        names = [name for name, _family in holders(deployment, *hosts)]
        return names[0] if len(names) == 2 and len(set(names)) == 1 else None

    return str(wait_until(found, seconds, "one portal has both addresses"))


def status(host: Host) -> dict[str, Any]:
    """Return what a server of the database says that it is."""
    return dict(json.loads(host.output(f"{REPLICATION} status")))


def primary(deployment: Deployment) -> tuple[Host, Host]:
    """Return the server that takes writes and its standby, in step."""

    def found() -> tuple[Host, Host] | None:
        states = {host.name: status(host) for host in deployment.hosts("databases")}
        names = [name for name, state in states.items() if state["role"] == "primary"]
        assert len(names) <= 1, states
        if not names or states[names[0]]["alone"] or not states[names[0]]["standby_is_in_step"]:
            return None
        (other,) = states.keys() - names
        return deployment.named(names[0]), deployment.named(other)

    first, second = wait_until(found, 60, "one server takes writes and the other one is in step")
    return first, second


def sql(database: Host, asked: str) -> str:
    """Ask the portal's database on a server; columns are parted by ``|``."""
    return database.output(f'cd / && runuser -u postgres -- psql -XAtc "{asked}" causeway')


def recorded(database: Host, user: str) -> Counter[str]:
    """Return how often the log has each address for a user."""
    asked = "SELECT user_name, ipv4 FROM address_uses WHERE protocol = 'wireguard'"
    rows = sql(database, asked).split()
    return Counter(row.removeprefix(f"{user}|") for row in rows if row.startswith(f"{user}|"))


class Busy(ABC):
    """People who do one thing again and again, from the ``with`` to its end; ``many`` side by side."""

    many = 1
    #: How long each of them rests before it.
    rest_seconds = 0.0

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.many)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
            # Not all at once.
            time.sleep(self.rest_seconds / self.many)
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._ends.wait(self.rest_seconds):
            self.act()

    @abstractmethod
    def act(self) -> None:
        """Do it once."""


class Connecting(Busy):
    """A user who connects; keeps what was acknowledged. With ``refreshes`` the app gets new tokens first."""

    def __init__(self, app: OfficialApp, url: str, *, refreshes: bool = False) -> None:
        super().__init__()
        self.app, self.asked, self.refreshes = app, {"url": url, "profile": PROFILE}, refreshes
        self.addresses: list[str] = []
        #: When each was acknowledged, seconds since 1970.
        self.moments: list[float] = []
        #: What the app said of each connect that was not.
        self.errors: list[str] = []

    def act(self) -> None:
        if self.refreshes:
            self.app.attempt("spoil_access_token")
        answer = self.app.attempt("get_config", **self.asked)
        if answer["ok"]:
            (address,) = re.findall(r"^Address\s*=\s*([0-9.]+)", answer["config"], re.MULTILINE)
            self.addresses.append(address)
            self.moments.append(time.time())
        else:
            self.errors.append(str(answer.get("error")))

    def longest(self, after: float = 0.0) -> float:
        """Return the longest time between two connects, in seconds, as ``Prober.longest`` does."""
        counts_from = after + time.time() - time.monotonic() if after else 0.0
        pairs = itertools.pairwise(self.moments)
        return max(
            (until - max(since, counts_from) for since, until in pairs if until > counts_from), default=0.0
        )


class People(Busy):
    """People who sign in, authorize an app, connect and disconnect, one after the other."""

    rest_seconds = 0.5  # so that nginx's limit for one address is not what is measured

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self.deployment = deployment
        self.apps: list[App] = []
        #: What was said to those who got no further.
        self.errors: list[str] = []

    def act(self) -> None:
        app = App(self.deployment.portal_url, Browser(self.deployment.ca_file))
        try:
            app.discover()
            app.authorize("admin", self.deployment.passwords["admin"])
            self.apps.append(app)
            # No tunnel is made of it.
            app.ask(PROFILE, WIREGUARD_TYPE, b64encode(secrets.token_bytes(32)).decode())
            app.disconnect()
        except VerificationError as error:
            self.errors.append(str(error))

    def lost(self) -> int:
        """Return how many authorizations that were acknowledged are not good any more."""
        return sum(not self._is_good(app) for app in self.apps)

    @staticmethod
    def _is_good(app: App) -> bool:
        try:
            return bool(app.info())
        except VerificationError:
            return False


class _ToAddress(http.client.HTTPSConnection):
    """A connection to one address of a host's name."""

    def __init__(self, name: str, address: str, context: ssl.SSLContext, seconds: float) -> None:
        super().__init__(name, timeout=seconds, context=context)
        self._address, self._tls = address, context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


@dataclass(frozen=True)
class Request:
    """When it began and ended (monotonic), at which address, and whether it was answered with 200 in time."""

    began: float
    ended: float
    address: str
    is_good: bool


class Prober(Busy):
    """People who ask the portal by its name, each time on a new connection, its addresses in turns.

    What is asked needs nginx, the portal, and the database. An answer after ``patience`` seconds is none.
    There are so many that somebody asks each 40 ms, also while most of them wait for an answer.
    """

    many = 40
    rest_seconds = 1.6

    def __init__(self, deployment: Deployment, *, patience: float = ANSWER_SECONDS) -> None:
        super().__init__()
        self._name, self._patience = deployment.portal_url.removeprefix("https://"), patience
        self._context = ssl.create_default_context(cafile=str(deployment.ca_file))
        self._turns = itertools.count()
        self.requests: list[Request] = []
        #: Those that were answered with 503 and when to ask again: how long each took, in seconds.
        self.put_off: list[float] = []

    def act(self) -> None:
        found = socket.getaddrinfo(self._name, 443, type=socket.SOCK_STREAM)
        address = str(found[next(self._turns) % len(found)][4][0])
        began = time.monotonic()
        status, is_put_off = self._ask(address)
        ended = time.monotonic()
        self.requests.append(
            Request(began, ended, address, status == 200 and ended - began <= self._patience)
        )
        if is_put_off:
            self.put_off.append(ended - began)

    def _ask(self, address: str) -> tuple[int, bool]:
        """Return the status, 0 without an answer, and whether it was 503 with Retry-After."""
        connection = _ToAddress(self._name, address, self._context, self._patience)
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.status == 503 and "Retry-After" in answer.headers
        except (OSError, http.client.HTTPException):
            return 0, False
        finally:
            connection.close()

    def failed(self) -> int:
        return sum(not request.is_good for request in self.requests)

    def longest(self, after: float = 0.0) -> float:
        """Return the longest time between two good answers of one address in which a request to it was
        refused, in seconds; one that had no end counts until the last request.

        What was before ``after`` does not count.
        """
        requests = list(self.requests)
        return max(
            (
                self._longest([request for request in requests if request.address == address], after)
                for address in {request.address for request in requests}
            ),
            default=0.0,
        )

    @staticmethod
    def _longest(requests: list[Request], after: float) -> float:
        good = sorted(request.ended for request in requests if request.is_good)
        refused = [request.began for request in requests if not request.is_good]
        first, last = min(request.began for request in requests), max(request.ended for request in requests)
        gaps = [
            until - max(since, after)
            for since, until in itertools.pairwise([first, *good, last])
            if until > after and any(since <= began < until for began in refused)
        ]
        return max(gaps, default=0.0)

    def slowest(self) -> float:
        """Return how long the longest answer took, in seconds."""
        return max(
            (request.ended - request.began for request in self.requests if request.is_good), default=0.0
        )

    def answers_again(self) -> bool:
        """Tell whether the last request to each address was answered."""
        last = {request.address: request.is_good for request in list(self.requests)}
        return bool(last) and all(last.values())


class Addresses(Busy):
    """Who looks all the time how many of the two addresses a portal has."""

    LOOK = "while sleep 0.2; do echo $(ip -o address show | awk '{print $4}'); done"

    def __init__(self, deployment: Deployment, portal: Host) -> None:
        super().__init__()
        # A portal that lost its power closes no connection.
        options = ["-o", "ControlPath=none", "-o", "ConnectTimeout=2"]
        options += ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"]
        program, *rest = portal.ssh(self.LOOK)
        self._command = [program, *options, *rest]
        self._addresses = set(deployment.info["vip"].values())
        self.seen: list[tuple[float, int]] = []

    def act(self) -> None:
        quiet = subprocess.DEVNULL
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=quiet, text=True) as looking:
            assert looking.stdout
            for line in looking.stdout:
                had = {word.split("/")[0] for word in line.split()} & self._addresses
                self.seen.append((time.monotonic(), len(had)))
                if self._ends.is_set():
                    looking.terminate()

    def apart(self) -> float:
        """Return the longest time in which it had one of the two, in seconds; without a word of it for a
        second it has none.
        """
        longest, since, before = 0.0, 0.0, 0.0
        for at, had in list(self.seen):
            if since and at - before < 1:
                longest = max(longest, at - since)
            since = (since if since and at - before < 1 else at) if had == 1 else 0.0
            before = at
        return longest


def not_one_holder(portals: list[Addresses], until: float) -> float:
    """Return the longest time in which not exactly one portal had both addresses, in seconds.

    One that said nothing for a second has none.
    """
    seen = sorted((at, number, had) for number, portal in enumerate(portals) for at, had in portal.seen)
    last: dict[int, tuple[float, int]] = {}
    longest, since = 0.0, 0.0
    for at, number, had in [*seen, (until, -1, 0)]:
        last[number] = at, had
        if sorted(had for said_at, had in last.values() if at - said_at < 1 and had) == [2]:
            longest, since = max(longest, at - since if since else 0.0), 0.0
        else:
            since = since or at
    return longest
