"""How long the pages of administration take over 100,000 users and connections and millions of sessions.

``python -m benchmarks.pages`` (root, nginx) runs nginx and gunicorn as the roles configure them, on SQLite
and on PostgreSQL, and a bare Flask ``hello`` beside them, all on one core. Each page is asked in turns with
``hello``, over a kept-alive connection each; what counts is the time to the first byte of the answer. Ten
simulated agents on the other core say what goes through the connections that a page shows.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

from flask import Flask

from benchmarks.stage import agents, large, namespace, portal, table
from benchmarks.stage.apps import Https
from benchmarks.stage.processes import on_core
from benchmarks.stage.web import Site, portal_and_hello
from portal_app.application import create_app
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import SESSION_COOKIE
from portal_app.models import User
from portal_app.services import browser_sessions

#: Beside each page as it comes: the search that an administrator makes most.
SEARCHES = {
    "/admin/connections": "search=user00077",
    "/admin/users": "search=user00077",
    "/admin/history": f"user={large.user_name(777)}",
    "/admin/audit": f"actor={large.user_name(777)}",
}
#: Which one of them, where a page is about one.
_ONE = {"number": 0, "profile_id": portal.PROFILE, "user_id": large.user_id(77)}
#: Asks about what was chosen in a list before.
NO_PAGE = "/admin/connections/end"
#: Asked by a form: who had the address of this session, which lasts.
WHO_HAD, _SESSION = "/admin/who-had-it", 77
ASKED, WARM = 40, 5
_NODES = 10
_OPENVPN = {"ipv4": "10.128.0.0/11", "ipv6": "fd43:62::/96"}

Form = dict[str, str]


class Asking:
    """One browser of an administrator."""

    def __init__(self, served: Site, token: str) -> None:
        self._served, self._headers = Https(served), {"Cookie": f"{SESSION_COOKIE}={token}"}

    def first_byte(self, url: str, form: Form | None = None) -> tuple[float, int]:
        """Return how long the first byte took, and how long the answer is over the wire."""
        taken, body = self._ask(url, form, {"Accept-Encoding": "gzip"})
        return taken, len(body)

    def text(self, url: str, form: Form | None = None) -> str:
        return self._ask(url, form, {})[1].decode()

    def _ask(self, url: str, form: Form | None, headers: dict[str, str]) -> tuple[float, bytes]:
        headers = headers | self._headers
        began = time.monotonic()
        if form is None:
            self._served.request("GET", url, headers=headers)
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            self._served.request("POST", url, urlencode(form), headers)
        answer = self._served.getresponse()
        taken = time.monotonic() - began
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status}")
        return taken, body


def measure(kind: str, directory: Path, size: large.Size) -> list[list[object]]:
    with ExitStack() as stack:
        with on_core(0):
            place = stack.enter_context(portal.portal(kind, directory, durable=True))
            shares = portal.apply_plan(size.nodes, 16, openvpn=_OPENVPN)
            began = time.monotonic()
            large.fill(place.settings.database_url, size)
            print(f"{kind}: filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            app = create_app(place.settings)
            with transaction() as db:
                admin = User(name="root", permissions=["admin"], created_at=utc_now())
                db.add(admin)
                db.flush()
                token = browser_sessions.begin(db, admin, longest=timedelta(hours=12), now=utc_now())
            served, hello = stack.enter_context(
                portal_and_hello(directory, place.deployment, place.settings_file)
            )
        stack.enter_context(on_core(1))
        addresses = {share["number"]: share["agent_address"] for share in shares}
        stack.enter_context(agents.simulated(place.deployment, addresses))
        root, bare = Asking(served, token), Asking(hello, token)
        pages = list(pages_of(app))
        urls = sorted([*pages, *(f"{page}?{query}" for page, query in SEARCHES.items() if page in pages)])
        found = [[kind, url, *compare(root, bare, url)] for url in urls]
        form = question(root)
        return [*found, [kind, f"{WHO_HAD}, an answer", *compare(root, bare, WHO_HAD, form)]]


def question(root: Asking) -> Form:
    """Return the form that asks who has an address now, after seeing that it is answered."""
    token = re.search(r'name="csrf_token" value="([^"]+)"', root.text(WHO_HAD))
    if token is None:
        raise SystemExit(f"{WHO_HAD}: no form")
    date, at = f"{utc_now():%Y-%m-%d %H:%M:%S}".split()
    asked = {"address": large.address(_SESSION), "date": date, "time": at, "zone": "UTC", "tolerance": "60"}
    form = asked | {"csrf_token": token[1]}
    if large.user_name(_SESSION) not in root.text(WHO_HAD, form):
        raise SystemExit(f"{WHO_HAD}: does not find who has {form['address']}")
    return form


def pages_of(app: Flask) -> Iterator[str]:
    """Yield the path of each page of administration; raises KeyError where which one is not said above."""
    paths = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/admin") and "GET" in (rule.methods or ()) and rule.rule != NO_PAGE:
            yield paths.build(rule.endpoint, {name: _ONE[name] for name in rule.arguments})


def compare(root: Asking, bare: Asking, url: str, form: Form | None = None) -> tuple[str, ...]:
    """Return the columns of one page: its time to the first byte, that of ``hello``, and its length."""
    for _ in range(WARM):
        root.first_byte(url, form)
        bare.first_byte("/hello")
    asked = [(root.first_byte(url, form), bare.first_byte("/hello")) for _ in range(ASKED)]
    page_ms = [page[0] * 1000 for page, _hello in asked]
    hello_ms = [hello[0] * 1000 for _page, hello in asked]
    return (
        f"{statistics.median(page_ms):.1f}",
        f"{max(page_ms):.1f}",
        f"{statistics.median(hello_ms):.2f}",
        f"{statistics.median(page_ms) / statistics.median(hello_ms):.1f}",
        f"{asked[-1][0][1] / 1000:.1f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=100_000, help="users, each with a connection")
    parser.add_argument("--sessions", type=int, default=10_000_000)
    parser.add_argument("--databases", nargs="+", default=portal.DATABASES, choices=portal.DATABASES)
    options = parser.parse_args(arguments)
    size = large.Size(options.people, options.sessions, _NODES)
    namespace.enter()
    found: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        for kind in options.databases:
            found += measure(kind, directory / kind, size)
    table.show(
        (
            "database",
            "page",
            "first byte ms, median",
            "longest",
            "hello ms",
            "times hello",
            "kB over the wire",
        ),
        found,
    )


if __name__ == "__main__":
    main()
