"""The periodic jobs: each once per interval, whatever portals there are (reliability.md R19)."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, and_, insert, or_, select, update

from portal_app.agents import LONG_CALL_SECONDS, Agents
from portal_app.db import retried, transaction
from portal_app.errors import NodeRefused, NodeUnreachable
from portal_app.events import log
from portal_app.models import Authorization, AuthorizationCode, Connection, Node, NodeStatus, PeriodicJob
from portal_app.oauth import clients
from portal_app.services import (
    allowed,
    authorizations,
    connections,
    fullness,
    leaving,
    maintenance,
    retention,
    usage,
)
from portal_app.services.jobs import intervals
from portal_app.settings import Settings
from vpn_core.messages import WIREGUARD, Usage

#: Rows that one transaction ends; the rest follows at once.
_BATCH = 200
_CHUNK = 500
#: Nodes that are asked side by side for what they know of their connections; others need the threads, too.
_ASKED_TOGETHER = 16
#: A code lives for a minute; this long after it nobody comes any more.
_ABANDONED = timedelta(hours=1)


@dataclass(frozen=True)
class Job:
    name: str
    interval: timedelta
    run: Callable[[datetime], None]


def jobs(settings: Settings, agents: Agents) -> list[Job]:
    """Return what has to be done now and then, the most urgent first."""
    gone = timedelta(seconds=settings.app_gone_seconds)
    apps = set(clients.registry(settings))
    run: dict[str, Callable[[datetime], None]] = {
        "expire": lambda now: expire(agents, now),
        "app_gone": lambda now: end_gone(agents, gone, now),
        "forbidden": lambda now: end_forbidden(agents, apps, settings, now),
        "drain": lambda now: maintenance.cut_due(agents, now),
        "nearly_full": fullness.watch,
        "sample_usage": sample_usage,
        "count_days": lambda now: count_days(settings, now),
        "prune": lambda now: prune(settings, now),
    }
    return [Job(name, interval, run[name]) for name, interval in intervals(settings).items()]


@retried
def claim(job: Job, now: datetime) -> bool:
    """Tell whether this portal is to run ``job`` now: who moves the row does.

    A time in the future was written by a portal whose clock is wrong; it counts as long ago.
    """
    due = or_(
        PeriodicJob.started_at <= now - job.interval,
        PeriodicJob.started_at > now + job.interval,
    )
    with transaction(read_only=True) as db:
        waiting = db.execute(select(PeriodicJob.name).where(PeriodicJob.name == job.name, ~due)).one_or_none()
    if waiting is not None:
        return False
    with transaction() as db:
        known = db.scalar(select(PeriodicJob.name).where(PeriodicJob.name == job.name))
        if known is None:
            # Two portals may do so at once: the loser repeats and finds the row.
            db.execute(insert(PeriodicJob).values(name=job.name, started_at=now))
            return True
        moved = db.execute(
            update(PeriodicJob)
            .where(PeriodicJob.name == job.name, due)
            .values(started_at=now)
            .returning(PeriodicJob.name)
            .execution_options(synchronize_session=False)
        )
        return moved.one_or_none() is not None


@retried
def note_end(job: Job, error: str | None, now: datetime) -> None:
    """Write down that a run failed and why, for administrators; one that ended well clears that."""
    failed_at = None if error is None else now
    with transaction(read_only=True) as db:
        before = db.scalar(select(PeriodicJob.error).where(PeriodicJob.name == job.name))
    if error is None and before is None:
        return
    with transaction() as db:
        db.execute(
            update(PeriodicJob).where(PeriodicJob.name == job.name).values(failed_at=failed_at, error=error)
        )


def expire(agents: Agents, now: datetime) -> None:
    """End what has expired. The nodes do so by themselves; this gives addresses back and closes records."""
    while True:
        with transaction(read_only=True) as db:
            over = db.scalars(
                select(Authorization.id).where(Authorization.expires_at <= now).limit(_BATCH)
            ).all()
            ids = db.scalars(select(Connection.id).where(Connection.expires_at <= now).limit(_BATCH)).all()
        if not over and not ids:
            return
        connections.tell(_end_expired(over, ids, now), agents=agents)


@retried
def _end_expired(over: Collection[int], ids: Collection[str], now: datetime) -> list[connections.Ended]:
    with transaction() as db:
        ended = []
        if over:
            ended += authorizations.end(db, Authorization.id.in_(over), reason="expired", now=now)
        if ids:
            ended += connections.end(
                db, and_(Connection.id.in_(ids), Connection.expires_at <= now), reason="expired", now=now
            )
    return ended


def end_gone(agents: Agents, interval: timedelta, now: datetime) -> None:
    """End the apps' WireGuard connections that nobody used for ``interval`` (spec node.md 5.1).

    A node that has not been up for so long cannot know, and one that does not answer is asked another time.
    """
    with transaction(read_only=True) as db:
        holding = select(Connection.node_number).where(*_may_be_gone(now - interval)).distinct()
        numbers = sorted(db.scalars(holding))
    for start in range(0, len(numbers), _ASKED_TOGETHER):
        asked = _up_for(interval, numbers[start : start + _ASKED_TOGETHER])
        calls = [partial(agents.usage, node) for node in asked]
        for node, said in zip(asked, agents.together(calls, seconds=LONG_CALL_SECONDS), strict=True):
            if isinstance(said, NodeUnreachable | NodeRefused):
                log("usage_unknown", level=logging.WARNING, node=node.name, error=str(said))
            elif isinstance(said, Exception):
                raise said
            else:
                _end_unused(agents, node, said, now - interval, now)


def _up_for(interval: timedelta, numbers: Collection[int]) -> list[Node]:
    """Return which of these nodes answer at present and have been up for longer than ``interval``."""
    with transaction(read_only=True) as db:
        seen = db.execute(
            select(Node, NodeStatus.info)
            .join(NodeStatus)
            .where(Node.number.in_(numbers), NodeStatus.failing_since.is_(None), NodeStatus.info.is_not(None))
        ).all()
    return [node for node, info in seen if info.get("node_uptime", 0) > interval.total_seconds()]


def _end_unused(agents: Agents, node: Node, usage: Collection[Usage], since: datetime, now: datetime) -> None:
    used = _used(usage, since)
    with transaction(read_only=True) as db:
        found = db.scalars(
            select(Connection.id).where(*_may_be_gone(since), Connection.node_number == node.number)
        ).all()
    # Only what the node knows: a connection that it lacks is the reconcile round's business.
    known = {item.connection_id for item in usage}
    gone = [i for i in found if i in known and i not in used]
    for start in range(0, len(gone), _CHUNK):
        connections.tell(_end_ids(gone[start : start + _CHUNK], now), agents=agents)


def end_forbidden(agents: Agents, apps: Collection[str], settings: Settings, now: datetime) -> None:
    """End what users may not have any more after a change of settings."""
    connections.tell(allowed.end_forbidden(apps, settings.access_permissions, now), agents=agents)


def _may_be_gone(before: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        Connection.authorization_id.is_not(None),
        Connection.protocol == WIREGUARD,
        Connection.created_at < before,
    )


def _used(usage: Collection[Usage], since: datetime) -> set[str]:
    return {
        item.connection_id
        for item in usage
        if item.active or (item.last_handshake_at or 0) >= since.timestamp()
    }


@retried
def _end_ids(ids: Collection[str], now: datetime) -> list[connections.Ended]:
    with transaction() as db:
        return connections.end(db, Connection.id.in_(ids), reason="app_gone", now=now)


def sample_usage(now: datetime) -> None:
    usage.sample(now)


def count_days(settings: Settings, now: datetime) -> None:
    if days := usage.count_days(now, retention=timedelta(days=settings.retention_days)):
        log("days_counted", days=days)


def prune(settings: Settings, now: datetime) -> None:
    """Forget what is over, and consents whose code no app ever redeemed."""
    while _end_abandoned(now):
        pass  # No tokens were given out, so there is no connection and no node to tell.
    if closed := leaving.close_forgotten(now):
        log("forgotten_sessions_closed", rows=closed)
    days = settings.statistics_retention_days
    gone = retention.prune(
        retention=timedelta(days=settings.retention_days),
        audit=timedelta(days=settings.audit_days),
        statistics=timedelta(days=days) if days else None,
        now=now,
    )
    if gone:
        log("pruned", **gone)


@retried
def _end_abandoned(now: datetime) -> int:
    unused = AuthorizationCode.used_at.is_(None) & (AuthorizationCode.expires_at <= now - _ABANDONED)
    with transaction(read_only=True) as db:
        ids = db.scalars(select(AuthorizationCode.authorization_id).where(unused).limit(_BATCH)).all()
    if not ids:
        return 0
    with transaction() as db:
        authorizations.end(db, Authorization.id.in_(ids), reason="never_used", now=now)
    return len(ids)
