"""Nodes as a connect sees them, and their generations."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, select, true, update

from portal_app.db import Database, retried, transaction
from portal_app.models import Connection, Deployment, Node, NodeStatus, Offer
from portal_app.models import Profile as ProfileRow
from portal_app.statements import Asked, Rows, Statement, run, run_together
from vpn_core.messages import OPENVPN, Authority, WantedSet
from vpn_core.messages import Connection as ConnectionMessage

logger = logging.getLogger(__name__)

#: A node is Up when it answered the controller this recently (reliability.md R42).
UP = timedelta(seconds=10)
#: A connect that got no answer keeps the others away for so long; the controller clears it when the node
#: answers.
SUSPECT = timedelta(seconds=15)


@dataclass(frozen=True)
class NodeRef:
    """Where a node's agent is, without a database row behind it."""

    number: int
    name: str
    agent_address: str


@dataclass(frozen=True)
class Advanced:
    """A node that this transaction has locked, with the number of what it changes there."""

    node: NodeRef
    generation: int
    authority: Authority


class NoDeployment(LookupError):
    """No plan was applied yet, so there is no node to call."""


_OFFERING = Statement(
    select(
        Node.number,
        Node.name,
        Node.hostname,
        Node.agent_address,
        Node.generation,
        NodeStatus.answered_at,
        NodeStatus.failing_since,
        NodeStatus.suspect_until,
        NodeStatus.maintenance_mode,
        NodeStatus.wireguard_public_key,
        NodeStatus.info,
        Offer.profile_id,
        Offer.capacity,
        Offer.allocated,
        Offer.wireguard.is_not(None).label("has_wireguard"),
        Offer.openvpn,
    )
    .join(NodeStatus, NodeStatus.node_number == Node.number)
    .join(Offer, Offer.node_number == Node.number)
    .where(Offer.profile_id == bindparam("profile"))
    .order_by(Node.number)
)
_LOCK = (
    select(Node.number, Node.name, Node.agent_address)
    .where(Node.number.in_(bindparam("numbers", expanding=True)))
    .order_by(Node.number)
    .with_for_update(key_share=True)
)
_AUTHORITY = Statement(select(Deployment.deployment_id, Deployment.epoch))
_ADVANCE = Statement(
    update(Node)
    .where(Node.number == bindparam("node"))
    .values(generation=Node.generation + 1)
    .returning(
        Node.name,
        Node.agent_address,
        Node.generation,
        select(Deployment.deployment_id).scalar_subquery().label("deployment_id"),
        select(Deployment.epoch).scalar_subquery().label("epoch"),
    )
)
_OFFER = Statement(
    select(
        ProfileRow.hidden,
        ProfileRow.permissions,
        Offer.wireguard,
        Offer.next_position,
        Offer.capacity,
        NodeStatus.maintenance_mode,
        Deployment.plan_applied_at,
    )
    .join(Offer, Offer.profile_id == ProfileRow.profile_id)
    .join(NodeStatus, NodeStatus.node_number == Offer.node_number)
    .join(Deployment, true())
    .where(Offer.node_number == bindparam("node"), Offer.profile_id == bindparam("profile"))
)


#: Of the plan that was read last.
_ports: dict[tuple[str, datetime], int] = {}


def offering(profile_id: str) -> Asked:
    """Return what to ask for every node that offers a profile, with all that a choice between them needs."""
    return _OFFERING, {"profile": profile_id}


def admitted_since(db: Database, node_number: int, profile_id: str, heard_at: datetime) -> int:
    """Return how many OpenVPN connections a profile got at a node that was heard before them."""
    counted = select(func.count()).where(
        Connection.node_number == node_number,
        Connection.profile_id == profile_id,
        Connection.protocol == OPENVPN,
        Connection.created_at > heard_at,
    )
    return db.execute(counted).scalar_one()


@retried
def mark_suspect(node_number: int, now: datetime) -> None:
    """Keep other connects away from a node that did not answer, until the controller has seen it again."""
    with transaction() as db:
        db.execute(
            update(NodeStatus)
            .where(NodeStatus.node_number == node_number)
            .values(suspect_until=now + SUSPECT)
        )


def lock(db: Database, numbers: Collection[int]) -> tuple[Authority, dict[int, NodeRef]]:
    """Lock nodes in the order of their numbers, so that two transactions never wait for each other.

    Whatever changes connections, addresses or generation of a node happens under this lock; generations of
    a node are therefore committed in their order.
    """
    authority = read_authority(db)
    rows = db.execute(_LOCK, {"numbers": list(numbers)})
    return authority, {row.number: NodeRef(row.number, row.name, row.agent_address) for row in rows}


def advance(db: Database, numbers: Collection[int]) -> dict[int, Advanced]:
    """As ``lock``, and take the next number of each counter, for what is about to change there."""
    return advance_and(db, numbers, ())[0]


def advance_and(
    db: Database, numbers: Collection[int], also: Sequence[Asked]
) -> tuple[dict[int, Advanced], list[Rows]]:
    """As ``advance``, and execute under the lock what needs no answer of it."""
    in_order = sorted(numbers)
    asked: list[Asked] = [(_ADVANCE, {"node": number}) for number in in_order]
    found = run_together(db, [*asked, *also])
    advanced = {
        number: _advanced(number, row)
        for number, rows in zip(in_order, found[: len(in_order)], strict=True)
        for row in rows
    }
    return advanced, found[len(in_order) :]


def advance_to_offer(
    db: Database, numbers: Collection[int], number: int, profile_id: str
) -> tuple[dict[int, Advanced], Any]:
    """As ``advance``, and return what one of them offers of a profile as it is under the lock: who may use it
    (``hidden``, ``permissions``), its addresses (for ``leases.take_of``), whether the node is in maintenance,
    and when the plan was applied; None when the node offers it no more.
    """
    advanced, (offers,) = advance_and(db, numbers, [(_OFFER, {"node": number, "profile": profile_id})])
    return advanced, offers.one_or_none()


def _advanced(number: int, row: Any) -> Advanced:
    return Advanced(
        NodeRef(number, row.name, row.agent_address),
        row.generation,
        Authority(row.deployment_id, row.epoch),
    )


def read_authority(db: Database) -> Authority:
    row = run(db, _AUTHORITY).one_or_none()
    if row is None:
        raise NoDeployment("no plan was applied yet; run vpn-portal plan apply")
    return Authority(row.deployment_id, row.epoch)


def next_generation(db: Database, node_number: int) -> int:
    """Take the next number of a node's counter; the caller has locked the node or does nothing else after
    it.
    """
    (row,) = run(db, _ADVANCE, {"node": node_number})
    generation: int = row.generation
    return generation


def wanted_set(db: Database, node_number: int) -> WantedSet:
    """Return everything the node should have, as of the generation that is read first.

    A cut or an admit after that carries a higher generation, so this set can neither undo nor revive it.
    """
    generation = db.execute(select(Node.generation).where(Node.number == node_number)).scalar_one()
    authority = read_authority(db)
    rows = db.execute(
        select(*MESSAGE_COLUMNS).where(Connection.node_number == node_number).order_by(Connection.id)
    ).all()
    return WantedSet(authority, generation, tuple(message(row) for row in rows))


MESSAGE_COLUMNS: Sequence[Any] = (
    Connection.id,
    Connection.profile_id,
    Connection.protocol,
    Connection.expires_at,
    Connection.generation,
    Connection.public_key,
    Connection.ipv4,
    Connection.ipv6,
)


def wireguard_port(db: Database, deployment_id: str, plan_applied_at: datetime) -> int:
    """Return the port of every node in the plan that was applied then. A plan is searched once, because it
    grows with its nodes.
    """
    key = deployment_id, plan_applied_at
    port = _ports.get(key)
    if port is None:
        port = db.execute(select(Deployment.plan["wireguard"]["port"].as_integer())).scalar_one()
        _ports.clear()
        _ports[key] = port
    return port


def message_of(row: dict[str, Any]) -> ConnectionMessage:
    return message(SimpleNamespace(**row))


def message(row: Any) -> ConnectionMessage:
    """Return a connection's row (or a ``Connection``) as its node knows it."""
    return ConnectionMessage(
        connection_id=row.id,
        profile_id=row.profile_id,
        protocol=row.protocol,
        expires_at=int(row.expires_at.timestamp()),
        generation=row.generation,
        public_key=row.public_key,
        common_name=row.id if row.protocol == OPENVPN else None,
        ipv4=row.ipv4,
        ipv6=row.ipv6,
    )
