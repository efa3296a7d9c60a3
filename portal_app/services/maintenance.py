"""Take a node out of service without surprise: no new connections, a notice to its users, in the end a cut.

Tunnels that are open stay until their users leave or the operator cuts them (reliability.md R63).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.models import Connection, Node, NodeStatus, User
from portal_app.services import audit, connections, nodes

if TYPE_CHECKING:
    from portal_app.agents import Agents

#: Connections that one transaction ends.
_BATCH = 200
_CHUNK = 500


@dataclass(frozen=True)
class Occupants:
    """Who has an open tunnel to a node now: users in alphabetical order, and how many tunnels."""

    users: tuple[str, ...]
    tunnels: int


@dataclass(frozen=True)
class Notice:
    """What users of a node in maintenance are told; without ``cut_at`` their tunnels stay."""

    node: str
    cut_at: datetime | None
    text: str | None


def switch(
    agents: "Agents",
    node: Node,
    *,
    on: bool,
    actor: str = "cli",
    source: str | None = None,
    now: datetime,
    notice: str | None = None,
    cut_at: datetime | None = None,
) -> None:
    """Set a node's maintenance mode; when this returns, no connect chooses a node in maintenance.

    ``notice`` and ``cut_at`` are shown to users with connections there until maintenance is off. Raises
    NodeUnreachable when the node does not answer: its own word counts, so nothing was changed.
    """
    agents.set_maintenance(node, on)
    told = {"notice": notice if on else None, "cut_at": cut_at if on else None}
    _write_down(node, on, told, actor, source, now)


@retried
def _write_down(
    node: Node, on: bool, told: Mapping[str, Any], actor: str, source: str | None, now: datetime
) -> None:
    with transaction() as db:
        # Not only at the controller's next round: no connect may choose it after this returns (R63), and one
        # that has chosen it looks again under this lock.
        nodes.lock(db, {node.number})
        db.execute(
            update(NodeStatus)
            .where(NodeStatus.node_number == node.number)
            .values(maintenance_mode=on, **told)
        )
        audit.record(
            db,
            "node.maintenance",
            actor=actor,
            object=node.name,
            source=source,
            now=now,
            state="on" if on else "off",
            notice=told["notice"],
            cut_at=told["cut_at"] and told["cut_at"].isoformat(),
        )


def occupants(agents: "Agents", node: Node) -> Occupants:
    """Ask a node who is connected to it. Raises NodeUnreachable."""
    active = [usage.connection_id for usage in agents.usage(node) if usage.active]
    names: set[str] = set()
    with transaction(read_only=True) as db:
        for start in range(0, len(active), _CHUNK):
            ids = active[start : start + _CHUNK]
            names |= set(
                db.scalars(
                    select(User.name)
                    .join(Connection, Connection.user_id == User.id)
                    .where(Connection.id.in_(ids), Connection.node_number == node.number)
                )
            )
    return Occupants(tuple(sorted(names)), len(active))


def cut(agents: "Agents", node: Node, *, downloads: bool, actor: str = "cli", now: datetime) -> int:
    """End a node's connections and return how many there were.

    Apps ask for a new one when they connect again. Configurations that people downloaded stay unless
    ``downloads``: their owners would have to download others, and the node comes back.
    """
    done = 0
    # Some of those found may have ended by themselves: only when none is found it is over.
    while (ended := _cut_some(node, downloads, actor, now)) is not None:
        connections.tell(ended, agents=agents)
        done += len(ended)
    return done


@retried
def _cut_some(node: Node, downloads: bool, actor: str, now: datetime) -> list[connections.Ended] | None:
    with transaction() as db:
        ids = db.scalars(select(Connection.id).where(*_to_cut(node, downloads)).limit(_BATCH)).all()
        if not ids:
            return None
        ended = connections.end(db, Connection.id.in_(ids), reason="drained", now=now)
        if ended:
            audit.record(db, "node.drain", actor=actor, object=node.name, now=now, cut=len(ended))
        return ended


def _to_cut(node: Node, downloads: bool) -> tuple[ColumnElement[bool], ...]:
    here = Connection.node_number == node.number
    return (here,) if downloads else (here, Connection.authorization_id.is_not(None))


def notices(db: Session, user: User) -> list[Notice]:
    """Return what a user with connections on nodes in maintenance should know."""
    rows = db.execute(
        select(Node.name, NodeStatus.cut_at, NodeStatus.notice)
        .join(NodeStatus, NodeStatus.node_number == Node.number)
        .where(
            NodeStatus.maintenance_mode.is_(True),
            or_(NodeStatus.cut_at.is_not(None), NodeStatus.notice.is_not(None)),
            Node.number.in_(select(Connection.node_number).where(Connection.user_id == user.id)),
        )
        .order_by(Node.name)
    )
    return [Notice(row.name, row.cut_at, row.notice) for row in rows]
