"""The end of connections: the row, its address, the record of who had it, and the word to the node."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, bindparam, case, delete, insert, select, update

from portal_app.application import portal
from portal_app.db import Database
from portal_app.errors import NodeRefused, NodeUnreachable
from portal_app.events import log
from portal_app.models import AddressUse, Authorization, Connection, User
from portal_app.services import leases, nodes
from portal_app.statements import Asked, Rows, Statement, run_together
from vpn_core.messages import Cut

if TYPE_CHECKING:
    from portal_app.agents import Agents

logger = logging.getLogger(__name__)

CUT_SECONDS = 1.4
#: Cuts at one node that run side by side.
LANES = 4


@dataclass(frozen=True)
class Ended:
    """A connection that is no more; its node has to be told (``tell``) after the commit."""

    connection_id: str
    node: nodes.NodeRef
    cut: Cut
    reason: str
    user_name: str
    profile_id: str
    protocol: str
    public_key: str | None
    ipv4: str | None


def end(db: Database, criterion: ColumnElement[bool], *, reason: str, now: datetime) -> list[Ended]:
    """End the connections that match ``criterion`` in the caller's transaction.

    Their addresses may be given again, the record of who had them is closed. The caller passes the result
    to ``tell`` after its commit.
    """
    return end_found(db, db.execute(ROWS.where(criterion)).all(), reason=reason, now=now)


def end_found(
    db: Database, found: Sequence[Any], *, reason: str, now: datetime, last: bool = False
) -> list[Ended]:
    """As ``end``, for rows that the caller read (``ROWS``). After the ``last`` ones it executes nothing more
    (``run_together``).
    """
    if not found:
        return []
    advanced, gone = nodes.advance_and(db, {row.node_number for row in found}, _deleting(found))
    return _end_deleted(db, found, gone, advanced, lambda _row: reason, now, last=last)


def tell(
    ended: list[Ended], *, agents: "Agents | None" = None, wait: bool = True, seconds: float = CUT_SECONDS
) -> None:
    """Cut ended connections at their nodes, in parallel and in bounded time. A failure is only logged."""
    agents = agents or portal().agents
    for item in ended:
        log("end", user=item.user_name, connection=item.connection_id, profile=item.profile_id,
            protocol=item.protocol, node=item.node.name, reason=item.reason)  # fmt: skip
    by_node: dict[int, list[Ended]] = defaultdict(list)
    for item in ended:
        by_node[item.node.number].append(item)
    # A node that is away costs its own lanes one time-out, and delays nobody else's.
    calls = [
        _cut_all(agents, items[lane::LANES], seconds)
        for items in by_node.values()
        for lane in range(min(LANES, len(items)))
    ]
    if not wait:
        for call in calls:
            agents.start(call)
        return
    if len(calls) == 1:
        # One cut has its own deadline, and needs no thread.
        calls[0]()
        return
    agents.together(calls, seconds=seconds + 0.1)


def _cut_all(agents: "Agents", items: list[Ended], seconds: float) -> Callable[[], None]:
    def call() -> None:
        for done, item in enumerate(items):
            try:
                agents.cut(item.node, item.connection_id, item.cut, seconds=seconds)
            except NodeRefused as error:
                logger.warning("cut of %s left to the reconcile round: %s", item.connection_id, error)
            except NodeUnreachable as error:
                logger.warning("%s cuts left to the reconcile round: %s", len(items) - done, error)
                return

    return call


#: What ``end_rows`` needs of a connection; the caller adds which ones.
ROWS: Any = (
    select(
        Connection.id,
        Connection.user_id,
        Connection.authorization_id,
        Connection.node_number,
        Connection.profile_id,
        Connection.protocol,
        Connection.public_key,
        Connection.position,
        Connection.ipv4,
        Connection.display_name,
        Connection.created_at,
        Connection.expires_at,
        Connection.choice,
        User.name.label("user_name"),
        Authorization.client_id,
    )
    .join(User, User.id == Connection.user_id)
    .outerjoin(Authorization, Authorization.id == Connection.authorization_id)
)
_DELETE = Statement(delete(Connection).where(Connection.id == bindparam("id")).returning(Connection.id))
_RECORD_USE = Statement(insert(AddressUse).inline())
_NOW = bindparam("now", type_=AddressUse.started_at.type)
_CLOSE_USE = Statement(
    update(AddressUse)
    .where(AddressUse.connection_id == bindparam("connection"), AddressUse.ended_at.is_(None))
    # Clocks of two portals differ: a use never ends before it began.
    .values(
        ended_at=case((AddressUse.started_at > _NOW, AddressUse.started_at), else_=_NOW),
        end_reason=bindparam("because"),
    )
)


def end_rows(
    db: Database,
    found: Collection[Any],
    advanced: dict[int, nodes.Advanced],
    reason: Callable[[Any], str],
    now: datetime,
) -> list[Ended]:
    """Delete rows whose nodes were advanced; who was faster with one of them keeps it out of the result."""
    return _end_deleted(db, found, run_together(db, _deleting(found)), advanced, reason, now)


def _end_deleted(
    db: Database,
    found: Collection[Any],
    gone: Iterable[Rows],
    advanced: dict[int, nodes.Advanced],
    reason: Callable[[Any], str],
    now: datetime,
    *,
    last: bool = False,
) -> list[Ended]:
    """Close the records of what is ``gone``, and give its addresses back."""
    ids = {row.id for rows in gone for row in rows}
    deleted = [row for row in found if row.id in ids]
    returned = [
        leases.Returned(row.node_number, row.profile_id, row.position, max(now, row.created_at))
        for row in deleted
        if row.position is not None
    ]
    run_together(db, [*_closing_uses(deleted, reason, now), *leases.giving_back(returned)], last=last)
    return [
        Ended(
            connection_id=row.id,
            node=advanced[row.node_number].node,
            cut=Cut(advanced[row.node_number].authority, advanced[row.node_number].generation),
            reason=reason(row),
            user_name=row.user_name,
            profile_id=row.profile_id,
            protocol=row.protocol,
            public_key=row.public_key,
            ipv4=row.ipv4,
        )
        for row in deleted
    ]


def _deleting(found: Iterable[Any]) -> list[Asked]:
    """Return what deletes connections; each answers with its row if it was still there."""
    return [(_DELETE, {"id": row.id}) for row in found]


def _closing_uses(deleted: Iterable[Any], reason: Callable[[Any], str], now: datetime) -> Iterator[Asked]:
    """Yield what closes who had which address.

    The use of an OpenVPN address ends with its session, which the journal tells, perhaps after this end:
    a use without address remembers whose the connection was.
    """
    for row in deleted:
        if row.position is not None:
            yield _CLOSE_USE, {"connection": row.id, "now": now, "because": reason(row)}
            continue
        yield (
            _RECORD_USE,
            {
                "connection_id": row.id,
                "user_name": row.user_name,
                "client_id": row.client_id,
                "device": row.display_name,
                "choice": row.choice,
                "profile_id": row.profile_id,
                "node_number": row.node_number,
                "protocol": row.protocol,
                "started_at": row.created_at,
                "ended_at": max(now, row.created_at),
                "end_reason": reason(row),
            },
        )
