"""A database that is there and does not do what it should (reliability.md R23, R25, R27, R29)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from portal_app.verification.browser import App, Browser
from tests.e2e.ha_portal.world import NO_DATABASE, PROFILE, Connecting, one_holder, primary, recorded, sql
from tests.e2e.hosts import Deployment, Host, OfficialApp, wait_until
from tests.e2e.multi_node.world import WIREGUARD_TYPE

#: More than one portal has threads.
CALLERS = 40
#: Any key: no tunnel is made of it.
PUBLIC_KEY = "eWV0IGFub3RoZXIgcHVibGljIGtleSBvZiAzMiBieXQ="


def authorized(deployment: Deployment, browser: Browser) -> App:
    """Let alice sign in with a browser and authorize an app."""
    app = App(deployment.portal_url, browser)
    app.discover()
    app.authorize("alice", deployment.passwords["alice"])
    return app


@contextmanager
def silent_database(portals: list[Host]) -> Iterator[None]:
    """Drop all that portals send to the database: nobody says that it is away."""
    for portal in portals:
        portal.run(f"nft '{NO_DATABASE}'")
    try:
        yield
    finally:
        for portal in portals:
            portal.run("nft delete table inet e2e")


def test_database_that_says_nothing_costs_nobody_more_than_five_seconds(deployment: Deployment) -> None:
    """R25: pages, API and connects are answered with 503, and the portal says at once that it lives."""
    browser, url = Browser(deployment.ca_file), deployment.portal_url
    app = authorized(deployment, browser)
    asked = {
        "page": lambda: browser.open(f"{url}/devices"),
        "ready": lambda: browser.open(f"{url}/healthz"),
        "connect": lambda: app.ask(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY),
    }
    answers: list[tuple[str, int, bool, float]] = []

    def ask(number: int) -> None:
        what = list(asked)[number % len(asked)]
        began = time.monotonic()
        answer = asked[what]()
        answers.append((what, answer.status, "Retry-After" in answer.headers, time.monotonic() - began))

    holder = deployment.named(one_holder(deployment))
    name = url.removeprefix("https://")
    lives = f"curl -sf -m 1 --unix-socket /run/causeway-portal/portal.sock -H 'Host: {name}' http://x/livez"
    with silent_database(deployment.hosts("portals")):
        with ThreadPoolExecutor(CALLERS) as callers:
            waiting = [callers.submit(ask, number) for number in range(3 * CALLERS)]
            wait_until(lambda: answers, 10, "one is answered")
            said = [holder.run(lives, check=False).returncode for _ in range(3)]
            for done in waiting:
                done.result()
        assert one_holder(deployment) == holder.name

    print(f"{len(answers)} answers, the slowest after {max(answer[3] for answer in answers):.1f} s")
    assert {(status, again) for _what, status, again, _seconds in answers} == {(503, True)}
    assert max(seconds for *_rest, seconds in answers) <= 5.0, sorted(answers, key=lambda a: a[3])[-3:]
    assert said == [0, 0, 0]
    wait_until(lambda: app.ask(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY).status == 200, 5, "alice connects")
    app.disconnect()


def test_database_is_restarted_while_people_connect(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R23, I2, I8: what was acknowledged is there, everything else is a 503 that says so."""
    bob = make_app("bob")
    first, second = primary(deployment)
    before = recorded(first, "bob")

    with Connecting(bob, deployment.portal_url, refreshes=True) as people:
        for _ in range(2):
            known = len(people.addresses)
            wait_until(lambda known=known: len(people.addresses) > known + 5, 30, "bob connects")
            first.run("systemctl restart 'postgresql@*.service'")
        known = len(people.addresses)
        wait_until(lambda: len(people.addresses) > known + 5, 10, "bob connects again")

    assert bob.do("get_config", url=deployment.portal_url, profile=PROFILE)["sign_ins"] == 1
    assert not [error for error in people.errors if "503" not in error], people.errors
    assert not Counter(people.addresses) - (recorded(first, "bob") - before)
    assert primary(deployment) == (first, second)


def test_database_gives_the_portals_no_connection(deployment: Deployment) -> None:
    """R27: 503 as long as all are taken, and nothing but a moment is needed afterwards."""
    app = authorized(deployment, Browser(deployment.ca_file))
    database, _standby = primary(deployment)
    sql(database, "ALTER ROLE causeway CONNECTION LIMIT 0")
    try:
        sql(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'causeway'")
        for _ in range(5):
            answer = app.ask(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY)
            assert (answer.status, "Retry-After" in answer.headers) == (503, True), answer
    finally:
        sql(database, "ALTER ROLE causeway CONNECTION LIMIT -1")
    wait_until(lambda: app.ask(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY).status == 200, 5, "alice connects")
    app.disconnect()


@pytest.mark.faults
def test_volume_of_the_database_is_full(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R29, I2, I8: writes are refused with 503, who asks is answered; when there is room again, all goes on
    and nothing is lost.
    """
    bob, reader = make_app("bob"), authorized(deployment, Browser(deployment.ca_file))
    first, _second = primary(deployment)
    before = recorded(first, "bob")
    onto_small = (
        "set -e; systemctl stop 'postgresql@*.service'; cd /var/lib/postgresql;"
        " mv {data} /var/tmp/e2e; mkdir {data};"
        " mount -t tmpfs -o size=$(( $(du -sm /var/tmp/e2e | cut -f1) + 40 ))m e2e {data};"
        " cp -a /var/tmp/e2e/. {data}; chown postgres: {data}; chmod 700 {data};"
        " systemctl start postgresql.service"
    )
    back = (
        "systemctl stop 'postgresql@*.service'; rm -f {data}/e2e-full; rm -rf /var/tmp/e2e;"
        " set -e; cp -a {data} /var/tmp/e2e; umount {data}; rmdir {data}; mv /var/tmp/e2e {data};"
        " systemctl start postgresql.service"
    )
    data = first.output("ls -d /var/lib/postgresql/*/main")

    first.run(onto_small.format(data=data))
    try:
        primary(deployment)
        with Connecting(bob, deployment.portal_url) as people:
            wait_until(lambda: people.addresses, 30, "bob connects")
            first.run(f"dd if=/dev/zero of={data}/e2e-full bs=64k 2>/dev/null || true")
            # What is written ahead has room of its own for a while.
            use_up = "SELECT pg_logical_emit_message(false, 'e2e', 'x'), pg_switch_wal()"
            psql = f'runuser -u postgres -- psql -XAtqc "{use_up}" causeway'
            first.run(f"cd /; for _ in $(seq 20); do {psql} || break; done", check=False)
            wait_until(lambda: people.errors, 60, "bob is refused")
            ends_at = time.monotonic() + 5
            while time.monotonic() < ends_at:
                assert reader.info()
            first.run(f"rm {data}/e2e-full")
            known = len(people.addresses)
            wait_until(lambda: len(people.addresses) > known, 30, "bob connects again")
    finally:
        first.run(back.format(data=data))
    primary(deployment)
    assert not [error for error in people.errors if "503" not in error], people.errors
    assert not Counter(people.addresses) - (recorded(first, "bob") - before)
    assert bob.do("get_config", url=deployment.portal_url, profile=PROFILE)["sign_ins"] == 1
