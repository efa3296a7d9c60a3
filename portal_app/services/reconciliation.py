"""Hand a node everything it should have: what the controller does by itself, and an operator at once."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from portal_app.clock import utc_now
from portal_app.db import retried, transaction
from portal_app.errors import Conflict, NodeRefused
from portal_app.events import log
from portal_app.models import AddressUse, NodeStatus
from portal_app.services import audit, machines, nodes
from vpn_core.messages import OPENVPN, NodeInfo, WantedSet

if TYPE_CHECKING:
    from portal_app.agents import Agents, NodeAddress

_CHUNK = 500
#: A page waits for it.
PREVIEW_SECONDS = 4.0
#: Names that a preview has at most.
MOST_NAMES = 20


class AnotherMachine(Conflict):
    """What answers is not the machine that is known under this number: reinstalled perhaps, or a clone."""


@dataclass(frozen=True)
class Preview:
    """What a set would do on a node: how many connections go and come, and some of the users of the former.

    ``held`` is why the node holds still, "" if it does not; ``another_machine`` as ``AnotherMachine``.
    """

    held: str
    another_machine: bool
    removed: int
    added: int
    users: tuple[str, ...]


def preview(agents: "Agents", node: "NodeAddress") -> Preview:
    """Ask a node what it has and compare. Raises NodeUnreachable, NodeRefused."""
    info = agents.info(node)
    has = {usage.connection_id for usage in agents.usage(node, seconds=PREVIEW_SECONDS)}
    with transaction(read_only=True) as db:
        wanted = {connection.connection_id for connection in nodes.wanted_set(db, node.number).connections}
        surplus = has - wanted
        users = _users(db, sorted(surplus)[:_CHUNK])
        known = machines.known(db, node.number)
    return Preview(
        info.held,
        known.objection(info, utc_now()) is not None,
        len(surplus),
        len(wanted - has),
        users[:MOST_NAMES],
    )


def _users(db: Session, ids: Collection[str]) -> tuple[str, ...]:
    """Return whose these connections are or were, as far as it is known."""
    found = db.scalars(select(AddressUse.user_name).where(AddressUse.connection_id.in_(ids)).distinct())
    return tuple(sorted(found))


def by_operator(
    agents: "Agents",
    node: "NodeAddress",
    *,
    confirmed: bool,
    actor: str,
    source: str | None = None,
    now: Callable[[], datetime],
) -> dict[str, int]:
    """Hand over everything now and return how many connections the node added and removed.

    ``confirmed`` lets through what the node holds back, and accepts a reinstalled machine. Raises
    AnotherMachine, NodeRefused, NodeUnreachable.
    """
    info = agents.info(node)
    with transaction(read_only=True) as db:
        objection = machines.known(db, node.number).objection(info, now())
    if objection and not confirmed:
        raise AnotherMachine(f"{node.name}: {objection}; if this is the one to use, repeat with --confirm")
    answer = reconcile(agents, node, now=now, boot_id=info.boot_id, reason="operator", confirmed=confirmed)
    _write_down(node, info, answer, confirmed=confirmed, actor=actor, source=source, now=now())
    return answer


@retried
def _write_down(
    node: "NodeAddress",
    info: NodeInfo,
    answer: dict[str, int],
    *,
    confirmed: bool,
    actor: str,
    source: str | None,
    now: datetime,
) -> None:
    with transaction() as db:
        status = db.scalars(
            select(NodeStatus).where(NodeStatus.node_number == node.number).with_for_update()
        ).one()
        status.instance_id = info.instance_id
        if confirmed:
            # Whatever answered before, from now on it is this one.
            status.doubled_at, status.info = None, (status.info or {}) | info.to_dict()
        audit.record(
            db, "node.reconcile", actor=actor, object=node.name, source=source, now=now,
            confirmed=confirmed, added=answer.get("added"), removed=answer.get("removed"),
        )  # fmt: skip


def reconcile(
    agents: "Agents",
    node: "NodeAddress",
    *,
    now: Callable[[], datetime],
    boot_id: str,
    reason: str,
    confirmed: bool = False,
) -> dict[str, int]:
    """Hand a node everything it should have; returns the agent's answer.

    Raises NodeRefused when the agent holds it back or is not that of ``boot_id``, NodeUnreachable when
    it does not answer.
    """
    with transaction(read_only=True) as db:
        wanted = nodes.wanted_set(db, node.number)
    try:
        answer = agents.put_set(node, replace(wanted, confirmed=confirmed), boot_id=boot_id)
    except NodeRefused as refused:
        if confirmed or refused.agent_status != 409 or not _is_known_end(agents, node, wanted):
            raise
        answer = agents.put_set(node, replace(wanted, confirmed=True), boot_id=boot_id)
    with transaction() as db:
        db.execute(
            update(NodeStatus)
            .where(
                NodeStatus.node_number == node.number,
                NodeStatus.reconciled_generation <= wanted.generation,
            )
            .values(reconciled_at=now(), reconciled_generation=wanted.generation)
        )
    if reason != "full" or answer.get("added") or answer.get("removed"):
        log(
            "reconciled",
            node=node.name,
            reason=reason,
            generation=wanted.generation,
            connections=len(wanted.connections),
            added=answer.get("added"),
            removed=answer.get("removed"),
        )
    return answer


def _is_known_end(agents: "Agents", node: "NodeAddress", wanted: WantedSet) -> bool:
    """Tell whether a node that holds a mass removal back holds only connections that were ended on purpose.

    Each end leaves a record of who had what until when. A database that lost its rows, or is not the one it
    seems to be, has no such records: then an operator has to confirm (reliability.md R58).
    """
    info = agents.info(node)
    if (info.deployment_id, info.epoch) != (wanted.authority.deployment_id, wanted.authority.epoch):
        return False
    surplus = {usage.connection_id for usage in agents.usage(node)}
    surplus -= {connection.connection_id for connection in wanted.connections}
    with transaction(read_only=True) as db:
        return bool(surplus) and surplus <= ended_on_purpose(db, surplus)


def ended_on_purpose(db: Session, ids: Collection[str]) -> set[str]:
    """Return which of these connections have a closed record and no open one."""
    found: dict[str, bool] = {}
    ordered = sorted(ids)
    for start in range(0, len(ordered), _CHUNK):
        rows = db.execute(
            select(AddressUse.connection_id, AddressUse.ended_at).where(
                AddressUse.connection_id.in_(ordered[start : start + _CHUNK]),
                # The use of an OpenVPN address is a session's; the connection's own record has no address.
                or_(AddressUse.protocol != OPENVPN, AddressUse.ipv4.is_(None)),
            )
        )
        for connection_id, ended_at in rows:
            found[connection_id] = found.get(connection_id, True) and ended_at is not None
    return {connection_id for connection_id, closed in found.items() if closed}
