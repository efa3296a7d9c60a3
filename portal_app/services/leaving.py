"""A node goes for good: what it alone knows is read before, and our records leave nobody connected to it."""

import logging
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.errors import NodeRefused, NodeUnreachable
from portal_app.events import log
from portal_app.models import AddressUse, Node, NodeStatus, VpnSession
from portal_app.services import audit, journal, maintenance
from vpn_core.messages import OPENVPN

if TYPE_CHECKING:
    from portal_app.agents import Agents, NodeAddress

#: Said of addresses that a node took along.
REMOVED = "node_removed"
#: So long a node may take to tell how its last sessions ended.
_READ_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_BATCH = 500


def take_leave(
    agents: "Agents", node: "NodeAddress", *, log_origins: bool, now: Callable[[], datetime]
) -> None:
    """End what a node has and read its journal to the end, so that last bytes and true ends count.

    A node that does not answer is left as it is: who forgets it ends the rest.
    """
    try:
        agents.info(node)
        maintenance.cut(agents, node, downloads=True, actor=audit.CLI, now=now(), reason=REMOVED)
        _read_to_the_end(agents, node, log_origins, now)
    except (NodeUnreachable, NodeRefused) as error:
        log("left_unread", level=logging.WARNING, node=node.name, error=str(error))


def _read_to_the_end(
    agents: "Agents", node: "NodeAddress", log_origins: bool, now: Callable[[], datetime]
) -> None:
    """Read until all sessions have ended; the controller may be reading, too, and each counts once."""
    ends_at = time.monotonic() + _READ_SECONDS
    while True:
        info = agents.info(node)
        journal.read(agents, node, info, log_origins=log_origins, now=now())
        if not _has_more(node.number, info.journal_id, info.journal_head) or time.monotonic() > ends_at:
            return
        time.sleep(_PAUSE_SECONDS)


def _has_more(number: int, journal_id: str, head: int) -> bool:
    """Tell whether a node's journal goes on behind what was read, or has to: somebody is connected there."""
    unread = exists().where(
        NodeStatus.node_number == number,
        or_(NodeStatus.journal_id.is_distinct_from(journal_id), NodeStatus.journal_sequence < head),
    )
    still_open = exists().where(VpnSession.node_number == number, VpnSession.ended_at.is_(None))
    with transaction(read_only=True) as db:
        return bool(db.scalar(select(or_(unread, still_open))))


def close_sessions(db: Session, numbers: Collection[int], *, reason: str, now: datetime) -> None:
    """End all that is open at these nodes, in the caller's transaction: their connections have ended, and no
    journal of theirs is read any more.
    """
    for model, values in ((VpnSession, {}), (AddressUse, {"end_reason": reason})):
        db.execute(
            update(model)
            .where(model.node_number.in_(numbers), model.ended_at.is_(None))
            .values(ended_at=now, **values)
            .execution_options(synchronize_session=False)
        )


def close_forgotten(now: datetime) -> int:
    """End what is still open at nodes that nobody knows any more; returns how many sessions and addresses.

    It ended with its connection at the latest, whose own record says when that was.
    """
    total = 0
    while closed := _close_some(now):
        total += closed
    return total


@retried
def _close_some(now: datetime) -> int:
    # Looking first without the right to write: SQLite's one writer is not kept waiting for nothing.
    with transaction(read_only=True) as db:
        if not _forgotten(db):
            return 0
    with transaction() as db:
        rows = _forgotten(db)
        ended = _ended(db, {row.connection_id for row in rows})
        for row in rows:
            row.ended_at = max(row.started_at, min(now, ended.get(row.connection_id, now)))
            if isinstance(row, AddressUse):
                row.end_reason = REMOVED
        return len(rows)


def _forgotten(db: Session) -> list[VpnSession | AddressUse]:
    found: list[VpnSession | AddressUse] = []
    for model in (VpnSession, AddressUse):
        at_no_node = model.node_number.not_in(select(Node.number))
        found += db.scalars(select(model).where(model.ended_at.is_(None), at_no_node).limit(_BATCH))
    return found


def _ended(db: Session, connection_ids: Collection[str]) -> dict[str, datetime]:
    """Return when these connections ended, as far as their own records say: those of sessions are others."""
    found = db.execute(
        select(AddressUse.connection_id, AddressUse.ended_at).where(
            AddressUse.connection_id.in_(connection_ids),
            AddressUse.ended_at.is_not(None),
            or_(AddressUse.protocol != OPENVPN, AddressUse.ipv4.is_(None)),
        )
    )
    ended: dict[str, datetime] = {}
    for connection_id, at in found:
        if at is not None:
            ended[connection_id] = max(at, ended.get(connection_id, at))
    return ended
