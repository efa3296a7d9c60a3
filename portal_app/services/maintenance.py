"""Take a node out of service without surprise: no new connections, a notice to its users, in the end a cut.

Tunnels that are open stay until their users leave or the operator cuts them (reliability.md R63).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from portal_app.agents import LONG_CALL_SECONDS
from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest
from portal_app.models import Connection, Node, NodeStatus, User
from portal_app.services import audit, connections, nodes

if TYPE_CHECKING:
    from portal_app.agents import Agents, NodeAddress

#: Connections that one transaction ends.
_BATCH = 200
_CHUNK = 500
#: Of what users of a node in maintenance read, in characters.
LONGEST_NOTICE = 500
#: Columns of what users of a node in maintenance are told, and of what the controller does then.
_ANNOUNCED = ("notice", "cut_at", "cuts_downloads", "ends_downloads")


@dataclass(frozen=True)
class Occupants:
    """Who has an open tunnel to a node now: users in alphabetical order, and how many tunnels.

    ``downloads`` are the tunnels of downloaded configurations, ``holders`` their users.
    """

    users: tuple[str, ...]
    tunnels: int
    downloads: int = 0
    holders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """Downloaded configurations for a node, connected or not, and their users in alphabetical order."""

    connections: int
    users: tuple[str, ...]


@dataclass(frozen=True)
class Notice:
    """What a user of a node in maintenance is told; without ``cut_at`` tunnels stay.

    ``apps`` and ``downloads`` are what this user has there; a cut ends the latter if ``ends_downloads``.
    """

    node: str
    cut_at: datetime | None
    text: str | None
    apps: bool
    downloads: bool
    ends_downloads: bool


def switch(
    agents: "Agents",
    node: Node,
    *,
    on: bool,
    actor: str,
    source: str | None = None,
    now: datetime,
    notice: str | None = None,
    cut_at: datetime | None = None,
    cuts_downloads: bool | None = None,
    ends_downloads: bool = False,
) -> None:
    """Set a node's maintenance mode; when this returns, no connect chooses a node in maintenance.

    ``notice`` and ``cut_at`` are shown to users with connections there until maintenance is off; what is not
    given stays as it was announced, and an empty notice removes one. With ``cuts_downloads`` the controller
    cuts them then (``cut_due``), else the caller does, and says with ``ends_downloads`` whether that is the
    end of downloaded configurations, too. Raises NodeUnreachable when the node does not answer: its own word
    counts, so nothing was changed; BadRequest for a notice that is too long, or not one line of text.
    """
    if notice is not None and (len(notice) > LONGEST_NOTICE or not notice.isprintable()):
        raise BadRequest(
            N_("A notice has at most %(most)s printable characters, in one line."), most=LONGEST_NOTICE
        )
    agents.set_maintenance(node, on)
    told: dict[str, Any] = {}
    if notice is not None:
        told["notice"] = notice or None
    if cut_at is not None:
        ends = ends_downloads if cuts_downloads is None else cuts_downloads
        told |= {"cut_at": cut_at, "cuts_downloads": cuts_downloads, "ends_downloads": ends}
    _write_down(node, on, told if on else dict.fromkeys(_ANNOUNCED), actor, source, now)


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
            notice=told.get("notice"),
            cut_at=cut_at.isoformat() if (cut_at := told.get("cut_at")) else None,
        )


@retried
def call_off(node: Node, *, actor: str, source: str | None, now: datetime) -> bool:
    """Let everybody stay who was to be cut later; the node stays in maintenance. False: nothing was due."""
    with transaction() as db:
        status = db.get(NodeStatus, node.number, with_for_update=True)
        if status is None or status.cut_at is None:
            return False
        status.cut_at = status.cuts_downloads = status.ends_downloads = None
        audit.record(db, "node.drain_called_off", actor=actor, object=node.name, source=source, now=now)
        return True


def cut_due(agents: "Agents", now: datetime) -> None:
    """Cut where it was announced for now or earlier, as a page of the portal asked for.

    Each portion looks again: who calls a cut off, or moves it, stops one that has begun.
    """
    with transaction(read_only=True) as db:
        due = db.execute(
            select(Node, NodeStatus.cuts_downloads, NodeStatus.cut_at)
            .join(NodeStatus, NodeStatus.node_number == Node.number)
            .where(
                NodeStatus.maintenance_mode.is_(True),
                NodeStatus.cuts_downloads.is_not(None),
                NodeStatus.cut_at <= now,
            )
            .order_by(Node.number)
        ).all()
    for node, downloads, cut_at in due:
        assert cut_at is not None  # noqa: S101 - by the query
        cut(agents, node, downloads=bool(downloads), actor="controller", now=now, announced_for=cut_at)
        _is_done(node, cut_at)


@retried
def _is_done(node: Node, cut_at: datetime) -> None:
    """Announce a cut no more, unless another one was announced meanwhile."""
    with transaction() as db:
        db.execute(
            update(NodeStatus)
            .where(NodeStatus.node_number == node.number, NodeStatus.cut_at == cut_at)
            .values(cut_at=None, cuts_downloads=None, ends_downloads=None)
        )


def occupants(agents: "Agents", node: Node, *, seconds: float = LONG_CALL_SECONDS) -> Occupants:
    """Ask a node who is connected to it. Raises NodeUnreachable."""
    active = [usage.connection_id for usage in agents.usage(node, seconds=seconds) if usage.active]
    found: list[tuple[str, int | None]] = []
    with transaction(read_only=True) as db:
        for start in range(0, len(active), _CHUNK):
            ids = active[start : start + _CHUNK]
            rows = db.execute(
                select(User.name, Connection.authorization_id)
                .join(Connection, Connection.user_id == User.id)
                .where(Connection.id.in_(ids), Connection.node_number == node.number)
            )
            found += [(row.name, row.authorization_id) for row in rows]
    of_downloads = [name for name, authorization in found if authorization is None]
    return Occupants(
        tuple(sorted({name for name, _ in found})),
        len(active),
        len(of_downloads),
        tuple(sorted(set(of_downloads))),
    )


def held_downloads(db: Session, number: int) -> Held:
    """Return what people downloaded for a node: a removal ends it, a drain only when told to."""
    names = db.scalars(
        select(User.name)
        .join(Connection, Connection.user_id == User.id)
        .where(Connection.node_number == number, Connection.authorization_id.is_(None))
        .order_by(User.name)
    ).all()
    return Held(len(names), tuple(dict.fromkeys(names)))


def cut(
    agents: "Agents",
    node: "NodeAddress",
    *,
    downloads: bool,
    actor: str,
    source: str | None = None,
    now: datetime,
    reason: str = "drained",
    announced_for: datetime | None = None,
) -> int:
    """End a node's connections and return how many there were.

    Apps ask for a new one when they connect again. Configurations that people downloaded stay unless
    ``downloads``: their owners would have to download others, and the node comes back. With
    ``announced_for`` it goes on only while the cut is announced for that moment.
    """
    done = 0
    # Some of those found may have ended by themselves: only when none is found it is over.
    while (ended := _cut_some(node, downloads, actor, source, reason, now, announced_for)) is not None:
        connections.tell(ended, agents=agents)
        done += len(ended)
    return done


@retried
def _cut_some(
    node: "NodeAddress",
    downloads: bool,
    actor: str,
    source: str | None,
    reason: str,
    now: datetime,
    announced_for: datetime | None,
) -> list[connections.Ended] | None:
    with transaction() as db:
        nodes.lock(db, {node.number})
        if announced_for is not None and not _is_announced(db, node, downloads, announced_for):
            return None
        ids = db.scalars(select(Connection.id).where(*_to_cut(node, downloads)).limit(_BATCH)).all()
        if not ids:
            return None
        ended = connections.end(db, Connection.id.in_(ids), reason=reason, now=now)
        if ended:
            audit.record(
                db, "node.drain", actor=actor, object=node.name, source=source, now=now, cut=len(ended)
            )
        return ended


def _is_announced(db: Session, node: "NodeAddress", downloads: bool, cut_at: datetime) -> bool:
    """Tell whether the controller is still to cut then; until the commit nobody calls it off."""
    asked = select(NodeStatus.node_number).where(
        NodeStatus.node_number == node.number,
        NodeStatus.maintenance_mode.is_(True),
        NodeStatus.cuts_downloads.is_(downloads),
        NodeStatus.cut_at == cut_at,
    )
    return db.scalar(asked.with_for_update()) is not None


def in_the_way(db: Session, number: int) -> tuple[int, int]:
    """Return how many connections of apps a node has, and how many that people downloaded."""
    here = select(func.count()).select_from(Connection).where(Connection.node_number == number)
    downloaded = here.where(Connection.authorization_id.is_(None))
    total, of_downloads = db.execute(select(here.scalar_subquery(), downloaded.scalar_subquery())).one()
    return total - of_downloads, of_downloads


def _to_cut(node: "NodeAddress", downloads: bool) -> tuple[ColumnElement[bool], ...]:
    here = Connection.node_number == node.number
    return (here,) if downloads else (here, Connection.authorization_id.is_not(None))


def notices(db: Session, user: User) -> list[Notice]:
    """Return what a user with connections on nodes in maintenance should know."""
    by_app = Connection.authorization_id.is_not(None)
    held: defaultdict[int, set[bool]] = defaultdict(set)
    for number, made_by_app in db.execute(
        select(Connection.node_number, by_app).where(Connection.user_id == user.id).distinct()
    ):
        held[number].add(bool(made_by_app))
    rows = db.execute(
        select(
            Node.number, Node.name, NodeStatus.cut_at, NodeStatus.notice, NodeStatus.ends_downloads,
            NodeStatus.cuts_downloads,
        )
        .join(NodeStatus, NodeStatus.node_number == Node.number)
        .where(
            NodeStatus.maintenance_mode.is_(True),
            or_(NodeStatus.cut_at.is_not(None), NodeStatus.notice.is_not(None)),
            Node.number.in_(held),
        )
        .order_by(Node.name)
    )  # fmt: skip
    return [
        Notice(
            row.name,
            row.cut_at,
            row.notice,
            apps=True in held[row.number],
            downloads=False in held[row.number],
            # A portal of the release before writes the latter only.
            ends_downloads=bool(row.ends_downloads or row.cuts_downloads),
        )
        for row in rows
    ]
