"""A portal with something on every page, and the list of its pages."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from flask import Flask
from playwright.sync_api import Page
from sqlalchemy import select

from portal_app.application import portal
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import Connection, Node, PeriodicJob, UsageDay, UsageSample, User, VpnSession
from portal_app.models.usage import ALL, ALL_NODES
from portal_app.services import audit, jobs, tokens, usage
from portal_app.services.tokens import Scope
from portal_app.settings import Settings
from tests.portal.app_user import VpnApp, add_user
from tests.portal.conftest import seen_up
from tests.portal.pages import PASSWORD, add_account

#: What the pages about one are opened with, of what ``fill`` made: a page that is not here fails the tests.
WITH_VALUES = {
    "admin.user": {"user_id": 2},
    "admin.permissions": {"user_id": 2},
    "admin.node": {"number": 0},
    "admin.profile": {"profile_id": "employees"},
}
#: What is no page: downloads, probes, and what only leads elsewhere.
NO_PAGES = (
    "/api/",
    "/oauth/",
    "/static/",
    "/healthz",
    "/livez",
    "/.well-known/",
    "/brand/",
    "/set-password/",
)


PEOPLE = ("alice", "bob", "Łucja Nowak-Kowalska", "chen.wei", "m.okafor", "s.haugen", "lab-7")
CLIENTS = {"org.eduvpn.app.windows": 5, "org.eduvpn.app.macos": 3, "org.eduvpn.app.ios": 2, "": 1}
#: Tokens of the admin API: name, scopes, days, and who made each (None: the command line).
TOKENS = (
    ("onboarding", (Scope.USERS_READ, Scope.USERS_WRITE, Scope.CONFIGURATIONS_WRITE), 90, "root"),
    ("monitoring", (Scope.NODES_READ, Scope.CONNECTIONS_READ), 366, None),
    ("night-report", (Scope.HISTORY_READ, Scope.AUDIT_READ), 5, "root"),
)


def fill(app: Flask, people: Sequence[str] = PEOPLE[:3]) -> None:
    """Make people who are connected, the third of them no more, and one administrator called root."""
    add_account("root", permissions=["admin"])
    now = utc_now()
    for name, scopes, days, maker in TOKENS:
        tokens.make(name, scopes, life=timedelta(days=days), maker=maker, settings=portal().settings, now=now)
    for number, name in enumerate(people):
        user = add_user(name)
        phone = VpnApp(app, user).authorize()
        refused = phone.connect("lab", accept="application/x-openvpn-profile")
        assert refused.status_code == 406, refused.text
        if number == 0:
            # One that has ended, beside the one that lasts and the one that was refused.
            assert phone.connect(prefer_tcp="no").status_code == 200
            ended = {"session_id": f"{100:032x}", "ended_at": now - timedelta(hours=2)}
            used(user, now - timedelta(hours=3), **ended)
        answer = phone.connect(prefer_tcp="no")
        assert answer.status_code == 200, answer.text
        used(
            user,
            now - timedelta(minutes=37 * number + 5),
            session_id=f"{number:032x}",
            origin=f"203.0.113.{70 + number}",
            ended_at=now if number == 2 else None,
            received_bytes=123_456_789 * (number + 1),
            sent_bytes=9_876_543,
        )
        with transaction() as db:
            audit.record(
                db,
                "app revoked",
                actor=name,
                object=name,
                source="203.0.113.7",
                now=now,
                client="org.eduvpn.app.linux",
            )


def used(user: User, started_at: datetime, **values: Any) -> None:
    """Let a user have used the connection that they have."""
    with transaction() as db:
        connection = db.scalars(select(Connection).where(Connection.user_id == user.id)).one()
        db.add(
            VpnSession(
                node_number=connection.node_number,
                connection_id=connection.id,
                user_name=user.name,
                profile_id="employees",
                protocol="wireguard",
                ipv4=connection.ipv4,
                ipv6=connection.ipv6,
                started_at=started_at,
                **values,
            )
        )


def fill_for_pictures(app: Flask, settings: Settings) -> dict[str, int]:
    """As ``fill``, with more people and a week of statistics; return the numbers of some users."""
    fill(app, PEOPLE)
    now = utc_now()
    last = usage.slot_of(now)
    with transaction() as db:
        for slot in range(last - 7 * 288, last + 1):
            moment = usage.time_of(slot)
            hour = moment.hour + moment.minute / 60
            busy = 0.25 if moment.weekday() >= 5 else 1.0
            count = int(8 + 90 * busy * math.exp(-((hour - 13.5) ** 2) / 18) + 4 * math.sin(slot))
            for profile, share in ((ALL, 1.0), ("employees", 0.7), ("lab", 0.3)):
                for node in (ALL_NODES, 0):
                    for protocol in (ALL, "wireguard"):
                        connections = int(count * share)
                        db.add(
                            UsageSample(
                                profile_id=profile, node_number=node, protocol=protocol, slot=slot,
                                connections=connections, users=int(connections * 0.85),
                            )
                        )  # fmt: skip
        for back in range(1, 60):
            day = (now - timedelta(days=back)).date()
            count = 120 if day.weekday() < 5 else 30
            for profile in (ALL, "employees"):
                db.add(
                    UsageDay(
                        profile_id=profile, node_number=ALL_NODES, day=day.isoformat(),
                        users=count - back % 7,
                        sessions=2 * count, peak_connections=count - 20, peak_users=count - 30,
                        received_bytes=count * 10**8, sent_bytes=count * 10**9,
                        clients={client: count * n // 11 for client, n in CLIENTS.items()},
                    )
                )  # fmt: skip
        db.add_all(PeriodicJob(name=name, started_at=now) for name in jobs.intervals(settings))
        users = {user.name: user.id for user in db.scalars(select(User))}
    nodes_answered()
    return users


def nodes_answered() -> None:
    """Let all nodes have answered just now."""
    now = utc_now()
    with transaction(read_only=True) as db:
        numbers = list(db.scalars(select(Node.number)))
    for number in numbers:
        load = 18 + 23 * number
        info = {
            "rel_load_average": [load] * 3, "cpu_count": 4, "v": "0.1.0", "node_uptime": 900_000 + number,
            "w_peer_count": 3 - number, "o_client_count": 0,
            "software": {
                "system": "Debian GNU/Linux 12 (bookworm)", "wireguard": "Linux 6.1.0-41-amd64",
                "openvpn": "2.6.3",
            },
        }  # fmt: skip
        seen_up(number, now, info=info, reconciled_at=now)


def sign_in(page: Page, name: str) -> None:
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def pages_of(app: Flask) -> list[str]:
    """Return the address of every page that somebody who is signed in can open."""
    address_of = app.url_map.bind("vpn.example.org").build
    pages = [
        rule
        for rule in app.url_map.iter_rules()
        if "GET" in (rule.methods or ()) and not rule.rule.startswith(NO_PAGES)
    ]
    return sorted(
        address_of(rule.endpoint, WITH_VALUES[rule.endpoint] if rule.arguments else {})
        for rule in pages
        if not rule.rule.endswith(".csv")
    )
