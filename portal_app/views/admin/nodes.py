"""The nodes, as the controller last saw them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import render_template
from sqlalchemy import func, select

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import requires
from portal_app.models import Connection, Node, NodeStatus, Offer
from portal_app.roles import Right
from portal_app.services import fullness, statistics
from portal_app.services.nodes import UP
from portal_app.views.admin import bp

#: Load in percent of the processors from which a node is shown as busy (spec portal.md, section 2).
BUSY_PERCENT = 75


@dataclass(frozen=True)
class State:
    kind: str
    text: str


@dataclass(frozen=True)
class NodeView:
    """One node on its page: counts are what the agent said last, ``connections`` is what should be."""

    name: str
    number: int
    hostname: str
    state: State
    held: str
    error: str | None
    problems: list[str]
    nearly_full: list[str]
    answered_at: datetime | None
    reconciled_at: datetime | None
    load: str
    connections: int
    peers: object
    clients: object
    addresses: str
    version: str
    profiles: list[str]


@bp.get("/nodes")
@requires(Right.SEE)
def nodes() -> str:
    now = utc_now()
    with transaction(read_only=True) as db:
        rows = db.execute(
            select(Node, NodeStatus)
            .outerjoin(NodeStatus, NodeStatus.node_number == Node.number)
            .order_by(Node.number)
        ).all()
        by_node = select(Connection.node_number, func.count()).group_by(Connection.node_number)
        counts: dict[int, int] = dict(db.execute(by_node).all())
        offers: dict[int, list[Offer]] = {}
        for offer in db.scalars(select(Offer).order_by(Offer.profile_id)):
            offers.setdefault(offer.node_number, []).append(offer)
        full = fullness.remarks(db)
    views = [
        _node_view(
            node,
            status,
            offers.get(node.number, []),
            counts.get(node.number, 0),
            full.get(node.number, []),
            now,
        )
        for node, status in rows
    ]
    return render_template("admin/nodes.html", nodes=views)


def _node_view(
    node: Node,
    status: NodeStatus | None,
    offers: list[Offer],
    connections: int,
    nearly_full: list[str],
    now: datetime,
) -> NodeView:
    info: dict[str, Any] = (status.info if status is not None else None) or {}
    load = info.get("rel_load_average") or []
    return NodeView(
        name=node.name,
        number=node.number,
        hostname=node.hostname,
        state=_state(status, info, now),
        held=str(info.get("held") or ""),
        error=status.error if status is not None else None,
        problems=statistics.problems(info, now),
        nearly_full=nearly_full,
        answered_at=status.answered_at if status is not None else None,
        reconciled_at=status.reconciled_at if status is not None else None,
        load=f"{load[0]} % of {info.get('cpu_count')} CPU" if load else "unknown",
        connections=connections,
        peers=info.get("w_peer_count", "unknown"),
        clients=info.get("o_client_count", "unknown"),
        addresses=f"{sum(o.allocated for o in offers)} of {sum(o.capacity for o in offers)}",
        version=str(info.get("v") or "unknown"),
        profiles=[offer.profile_id for offer in offers],
    )


def _state(status: NodeStatus | None, info: dict[str, Any], now: datetime) -> State:
    if status is None or status.answered_at is None:
        return State("warn", "Not seen yet")
    if status.failing_since is not None or status.answered_at < now - UP:
        return State("bad", "Does not answer")
    if info.get("held"):
        return State("bad", "Holds still")
    if status.maintenance_mode:
        return State("warn", "Maintenance")
    load = info.get("rel_load_average") or []
    if load and load[0] >= BUSY_PERCENT:
        return State("warn", "Up, busy")
    return State("good", "Up")
