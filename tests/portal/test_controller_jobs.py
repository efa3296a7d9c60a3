"""The periodic jobs: what ends by itself, what is forgotten, and that each runs once per interval."""

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, insert, select, update

from portal_app.agents import Agents
from portal_app.controller import housekeeping
from portal_app.controller.housekeeping import Job, claim
from portal_app.db import transaction
from portal_app.models import (
    AccessToken,
    AddressUse,
    AuditEvent,
    Authorization,
    AuthorizationCode,
    BrowserSession,
    Connection,
    Offer,
    OneTimeLink,
    PeriodicJob,
    Profile,
    RefreshToken,
    Throttle,
    User,
    VpnSession,
)
from portal_app.services import fullness, leases, nodes, retention, statistics
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import LINUX, add_user, public_key
from tests.portal.conftest import seen_up
from vpn_core.messages import Usage

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
#: Every test works on the database of ``app``.
pytestmark = pytest.mark.usefixtures("app")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def use(allocated: int, profile_id: str = "employees", openvpn: int = 0) -> None:
    """Let node 0 have so many of 100 addresses in use, and so many of 10 OpenVPN places."""
    with transaction() as session:
        session.execute(
            update(Offer)
            .where(Offer.profile_id == profile_id)
            .values(capacity=100, allocated=allocated, openvpn=[{"max_clients": 10}])
        )
    seen_up(0, info={"rel_load_average": [0, 0, 0], "openvpn_clients": {profile_id: openvpn}})


def full_events(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.message for r in caplog.records if "node_nearly_full" in r.message or "has_room" in r.message]
    caplog.clear()
    return found


def test_nearly_full_share_is_said_once_and_again_after_it_had_room(
    node: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    """R62: the alarm at 90 % comes by itself; between 80 and 90 % nothing changes."""
    caplog.set_level(logging.INFO)
    said = {}
    for step, allocated in enumerate((89, 90, 95, 100, 85, 90, 80, 79, 85, 90)):
        use(allocated)
        fullness.watch(NOON)
        if events := full_events(caplog):
            said[step] = events

    alarm = "event=node_nearly_full node=node0 profile=employees full="
    assert said == {
        1: [alarm + '"90 % of 100 WireGuard addresses"'],
        7: ['event=node_has_room node=node0 profile=employees full="79 % of 100 WireGuard addresses"'],
        9: [alarm + '"90 % of 100 WireGuard addresses"'],
    }
    with transaction(read_only=True) as session:
        audits = session.scalars(select(AuditEvent).where(AuditEvent.action == "node.nearly_full")).all()
        remarks = statistics.nodes(session, now=NOON)[0].remarks
    assert [(a.object, a.details["profile"]) for a in audits] == [("node0", "employees")] * 2
    assert remarks == ("profile employees: 90 % of 100 WireGuard addresses in use",)


def test_openvpn_places_are_watched_as_well_and_by_the_job(
    node: AgentServer, settings: Any, agents: Agents, caplog: pytest.LogCaptureFixture
) -> None:
    """R62."""
    use(10, openvpn=9)
    job = next(j for j in housekeeping.jobs(settings, agents) if j.name == "nearly_full")

    job.run(NOON)

    assert full_events(caplog) == [
        'event=node_nearly_full node=node0 profile=employees full="90 % of 10 OpenVPN places"'
    ]


def test_every_full_share_of_every_node_is_said_and_kept_apart(
    make_nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """R62."""
    make_nodes(2)
    for profile_id in ("employees", "lab"):
        use(90, profile_id)

    fullness.watch(NOON)

    assert len(full_events(caplog)) == 4
    with transaction(read_only=True) as session:
        seen = statistics.seen(session)
    remark = "profile {}: 90 % of 100 WireGuard addresses in use"
    both = [remark.format("employees"), remark.format("lab")]
    assert [list(map(str, one.full)) for one in seen] == [both, both]


def test_two_portals_say_it_once(node: AgentServer, caplog: pytest.LogCaptureFixture) -> None:
    """R19: the state moves in the database."""
    use(95)
    threads = [threading.Thread(target=fullness.watch, args=(NOON,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(full_events(caplog)) == 1


def authorize(user: User, expires_at: datetime = NOON + DAY, authorized_at: datetime = NOON - DAY) -> int:
    with transaction() as session:
        made = Authorization(
            user_id=user.id,
            client_id=LINUX,
            scope="config",
            authorized_at=authorized_at,
            expires_at=expires_at,
        )
        session.add(made)
    return made.id


def lease(
    user: User,
    *,
    expires_at: datetime = NOON + DAY,
    created_at: datetime = NOON - DAY,
    authorization_id: int | None = None,
    number: int = 0,
) -> str:
    """Commit a WireGuard connection on one node."""
    with transaction() as session:
        taken = leases.take(session, number, "employees")
        assert taken is not None
        made = Connection(
            id=uuid.uuid4().hex, user_id=user.id, authorization_id=authorization_id, node_number=number,
            profile_id="employees", protocol="wireguard", public_key=public_key(), position=taken.position,
            ipv4=taken.ipv4, ipv6=taken.ipv6, display_name="test", created_at=created_at,
            expires_at=expires_at, generation=nodes.next_generation(session, number),
        )  # fmt: skip
        session.add(made)
        session.add(
            AddressUse(connection_id=made.id, user_name=user.name, profile_id="employees", node_number=number,
                       protocol="wireguard", ipv4=taken.ipv4, ipv6=taken.ipv6, started_at=created_at)
        )  # fmt: skip
    return made.id


def living(model: Any = Connection) -> set[Any]:
    with transaction(read_only=True) as session:
        return set(session.scalars(select(model.__table__.primary_key.columns[0])))


def count(model: Any) -> int:
    with transaction(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def test_expired_connection_ends_and_its_node_hears_of_it(node: AgentServer, agents: Agents):
    alice = add_user("alice")
    over, kept = lease(alice, expires_at=NOON), lease(alice, expires_at=NOON + HOUR)

    housekeeping.expire(agents, NOON)

    assert living() == {kept}
    assert over in node.cuts
    with transaction(read_only=True) as session:
        use = session.scalars(select(AddressUse).where(AddressUse.connection_id == over)).one()
    assert (use.ended_at, use.end_reason) == (NOON, "expired")


def test_expired_authorization_ends_with_its_tokens_and_connection(node: AgentServer, agents: Agents):
    alice = add_user("alice")
    over, kept = authorize(alice, NOON), authorize(alice, NOON + HOUR)
    connection = lease(alice, authorization_id=over, expires_at=NOON + DAY)
    with transaction() as session:
        for number, authorization_id in enumerate((over, kept)):
            session.add(
                RefreshToken(
                    token_hash=bytes([number]) * 32, authorization_id=authorization_id, issued_at=NOON
                )
            )

    housekeeping.expire(agents, NOON)

    assert living(Authorization) == {kept}
    assert living() == set()
    assert connection in node.cuts
    assert count(RefreshToken) == 1


def test_expired_address_may_be_given_again(node: AgentServer, agents: Agents):
    alice = add_user("alice")
    lease(alice, expires_at=NOON)

    housekeeping.expire(agents, NOON)

    with transaction(read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(leases.FreeAddress)) == 1


def test_silent_node_does_not_keep_an_expired_connection_alive(node: AgentServer, agents: Agents):
    """The reconcile round tells it later (I4)."""
    node.mode = "silent"
    lease(add_user("alice"), expires_at=NOON)

    housekeeping.expire(agents, NOON)

    assert living() == set()


class _Usage:
    """What nodes say about usage; a node that is not in it does not answer."""

    def __init__(self, *known: Usage) -> None:
        self.known = list(known)

    def usage(self, _node: Any) -> list[Usage]:
        return self.known

    def cut(self, *_arguments: Any, **_options: Any) -> None:
        """Everything can be cut."""

    def together(self, calls: list[Any], **_options: Any) -> list[Any]:
        return [call() for call in calls]


def used(connection_id: str, last: datetime | None, *, active: bool = False) -> Usage:
    seconds = None if last is None else int(last.timestamp())
    return Usage(connection_id, "wireguard", active, 0, 0, last_handshake_at=seconds)


def node_up_for(seconds: int) -> None:
    seen_up(0, info={"node_uptime": seconds})


@pytest.mark.parametrize(
    ("clients", "access", "ends"),
    [
        ({LINUX}, None, set()),
        (set(), None, {"alice's app", "bob's app"}),
        ({LINUX}, ["vpn"], {"bob's app", "bob's own"}),
    ],
    ids=["nothing changed", "app removed", "access lost"],
)
def test_what_a_changed_setting_forbids_is_ended(
    node: AgentServer,
    agents: Agents,
    settings: Any,
    clients: set[str],
    access: list[str] | None,
    ends: set[str],
):
    """O19, I3: the node hears of it, and of nothing else."""
    alice, bob = add_user("alice", ["vpn"]), add_user("bob")
    held = {
        "alice's app": lease(alice, authorization_id=authorize(alice)),
        "bob's app": lease(bob, authorization_id=authorize(bob)),
        "bob's own": lease(bob),
    }

    housekeeping.end_forbidden(agents, clients, replace(settings, access_permissions=access), NOON)

    ended = {name for name, connection_id in held.items() if connection_id not in living()}
    assert ended == ends
    assert {held[name] for name in ends} == set(node.cuts)
    assert count(Authorization) == 2 - len(ends & {"alice's app", "bob's app"})


def test_connection_that_slipped_through_a_lost_permission_is_ended(
    node: AgentServer, agents: Agents, settings: Any
):
    """V3"""
    alice, bob = add_user("alice", ["staff"]), add_user("bob")
    kept, lost = lease(alice), lease(bob)
    with transaction() as session:
        session.execute(
            update(Profile).where(Profile.profile_id == "employees").values(permissions=["staff"])
        )

    housekeeping.end_forbidden(agents, {LINUX}, settings, NOON)

    assert living() == {kept}
    assert lost in node.cuts


def test_app_that_is_gone_gives_its_address_back(node: AgentServer):
    """Spec node.md 5.1: created, and last used if ever, longer ago than the interval."""
    interval = 72 * HOUR
    long_ago = NOON - interval - HOUR
    node_up_for(10 * 86400)
    ids = {
        name: lease(
            user := add_user(name),
            created_at=created,
            authorization_id=authorize(user) if name != "downloaded" else None,
        )
        for name, created in {
            "never_used": long_ago,
            "long_unused": long_ago,
            "used": long_ago,
            "connected": long_ago,
            "fresh": NOON - HOUR,
            "downloaded": long_ago,
            "unknown_to_node": long_ago,
        }.items()
    }
    usage: Any = _Usage(
        used(ids["never_used"], None),
        used(ids["long_unused"], long_ago),
        used(ids["used"], NOON - HOUR),
        used(ids["connected"], long_ago, active=True),
        used(ids["fresh"], None),
        used(ids["downloaded"], None),
    )

    housekeeping.end_gone(usage, interval, NOON)

    assert {name for name, i in ids.items() if i not in living()} == {"never_used", "long_unused"}
    with transaction(read_only=True) as session:
        reasons = set(session.scalars(select(AddressUse.end_reason).where(AddressUse.ended_at.is_not(None))))
    assert reasons == {"app_gone"}


def test_node_that_was_just_started_cannot_know_who_is_gone(node: AgentServer):
    alice = add_user("alice")
    node_up_for(3600)
    connection = lease(alice, created_at=NOON - 100 * HOUR, authorization_id=authorize(alice))
    usage: Any = _Usage(used(connection, None))

    housekeeping.end_gone(usage, 72 * HOUR, NOON)

    assert living() == {connection}


def hold_old_connections(make_nodes: Callable[..., list[AgentServer]], count: int) -> None:
    """Let so many nodes each have a connection of an app that may be gone."""
    make_nodes(count)
    for number in range(count):
        seen_up(number, info={"node_uptime": 10 * 86400})
        user = add_user(f"user{number}")
        lease(user, created_at=NOON - 100 * HOUR, authorization_id=authorize(user), number=number)


def test_nodes_are_asked_side_by_side_who_is_gone(
    make_nodes: Callable[..., list[AgentServer]], agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R19: many that fall silent at once cost the time of one."""
    hold_old_connections(make_nodes, 3)
    all_asked = threading.Barrier(3)

    def usage(_node: Any) -> list[Usage]:
        all_asked.wait(10)
        return []

    monkeypatch.setattr(agents, "usage", usage)

    housekeeping.end_gone(agents, 72 * HOUR, NOON)

    assert not all_asked.broken
    assert len(living()) == 3


def test_node_that_fails_meanwhile_is_not_asked_who_is_gone(
    make_nodes: Callable[..., list[AgentServer]], agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R19."""
    hold_old_connections(make_nodes, 3)
    asked = []

    def usage(node: Any) -> list[Usage]:
        asked.append(node.number)
        seen_up(1, failing_since=NOON)
        return []

    monkeypatch.setattr(agents, "usage", usage)
    monkeypatch.setattr(housekeeping, "_ASKED_TOGETHER", 1)

    housekeeping.end_gone(agents, 72 * HOUR, NOON)

    assert asked == [0, 2]


def test_what_is_over_is_forgotten_and_what_is_open_stays():
    """P4: sessions and addresses for the retention time after their end."""
    keep = 30 * DAY
    old, young = NOON - keep - HOUR, NOON - keep + HOUR
    alice = add_user("alice")
    authorization = authorize(alice)
    with transaction() as session:
        for number, (ended, expires) in enumerate(
            ((old, NOON - HOUR), (young, NOON + HOUR), (None, NOON + DAY))
        ):
            key = bytes([number]) * 32
            session.add_all(
                [
                    VpnSession(node_number=0, session_id=f"{number:032x}", connection_id="0" * 32,
                               profile_id="lab", protocol="wireguard", started_at=old, ended_at=ended),
                    AddressUse(connection_id=f"{number:032x}", user_name="alice", profile_id="lab",
                               node_number=0, protocol="wireguard", ipv4="10.0.0.2", started_at=old,
                               ended_at=ended),
                    AccessToken(token_hash=key, authorization_id=authorization, expires_at=expires),
                    BrowserSession(token_hash=key, created_at=old, last_seen_at=old, expires_at=expires),
                    OneTimeLink(token_hash=key, user_id=alice.id, expires_at=expires),
                    Throttle(bucket=f"b{number}", tokens=1, updated_at=expires - DAY),
                    AuditEvent(at=old, actor="cli", action="test"),
                ]
            )  # fmt: skip
        session.add(AuditEvent(at=NOON - 366 * DAY, actor="cli", action="test"))

    gone = retention.prune(retention=keep, now=NOON)

    assert gone == {
        "access_tokens": 1,
        "browser_sessions": 1,
        "one_time_links": 1,
        "throttles": 1,
        "vpn_sessions": 1,
        "address_uses": 1,
        "audit_events": 1,
    }
    assert retention.prune(retention=keep, now=NOON) == {}
    assert count(VpnSession) == count(AddressUse) == 2


def test_more_rows_than_one_transaction_deletes_all_go():
    """R27: in portions, so that nobody waits long."""
    rows = [
        {"connection_id": "0" * 32, "user_name": "a", "profile_id": "lab", "node_number": 0,
         "protocol": "wireguard", "started_at": NOON - 90 * DAY, "ended_at": NOON - 60 * DAY}
        for _ in range(2 * retention._BATCH + 7)
    ]  # fmt: skip
    with transaction() as session:
        session.execute(insert(AddressUse), rows)

    assert retention.prune(retention=30 * DAY, now=NOON) == {"address_uses": len(rows)}

    assert count(AddressUse) == 0


def test_consent_whose_code_was_never_redeemed_is_forgotten(settings):
    alice = add_user("alice")
    abandoned, redeemed, fresh = (authorize(alice) for _ in range(3))
    with transaction() as session:
        for number, (authorization_id, expires_at, used_at) in enumerate(
            (
                (abandoned, NOON - 2 * HOUR, None),
                (redeemed, NOON - 2 * HOUR, NOON - 2 * HOUR),
                (fresh, NOON, None),
            )
        ):
            session.add(
                AuthorizationCode(
                    code_hash=bytes([number]) * 32, authorization_id=authorization_id, redirect_uri="x:/",
                    code_challenge="c", expires_at=expires_at, used_at=used_at,
                )
            )  # fmt: skip

    housekeeping.prune(settings, NOON)

    assert living(Authorization) == {redeemed, fresh}


JOB = Job("test", 10 * timedelta(seconds=1), lambda _now: None)


def test_job_runs_once_per_interval():
    """R19."""
    second = timedelta(seconds=1)

    claims = [claim(JOB, NOON + n * second) for n in range(25)]

    assert [n for n, claimed in enumerate(claims) if claimed] == [0, 10, 20]


def test_job_is_claimed_by_one_of_many():
    """R19: exactly one, also the first time."""
    for round_number in range(3):
        now = NOON + round_number * HOUR
        barrier, results = threading.Barrier(6), []

        def try_it(now: datetime = now, barrier: Any = barrier, results: list[bool] = results) -> None:
            barrier.wait()
            results.append(claim(JOB, now))

        threads = [threading.Thread(target=try_it) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False] * 5 + [True]


def test_clock_of_a_portal_that_was_a_day_ahead_stops_no_job():
    """R20: its time lies in the database, and it is gone."""
    with transaction() as session:
        session.add(PeriodicJob(name=JOB.name, started_at=NOON + DAY))

    assert claim(JOB, NOON)
    assert not claim(JOB, NOON)


def test_jobs_have_their_names_and_intervals(app: Flask, settings: Any, agents: Agents):
    found = {job.name: job.interval for job in housekeeping.jobs(settings, agents)}

    assert found == {
        "expire": timedelta(seconds=10),
        "app_gone": HOUR,
        "forbidden": timedelta(minutes=1),
        "drain": timedelta(seconds=10),
        "nearly_full": timedelta(minutes=1),
        "sample_usage": timedelta(minutes=1),
        "count_days": timedelta(minutes=30),
        "prune": HOUR,
    }
