"""Nodes as a connect sees them, and their generations."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, select, true, update
from sqlalchemy.orm import Session

from portal_app.db import retried, run, transaction
from portal_app.models import Connection, Deployment, Node, NodeStatus, Offer
from portal_app.models import Profile as ProfileRow
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


class NoDeployment(LookupError):
    """No plan was applied yet, so there is no node to call."""


_OFFERING = (
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
_AUTHORITY = select(Deployment.deployment_id, Deployment.epoch)
_NEXT_GENERATION = (
    update(Node)
    .where(Node.number == bindparam("node"))
    .values(generation=Node.generation + 1)
    .returning(Node.generation)
)
_OFFER = (
    select(
        ProfileRow.hidden,
        ProfileRow.permissions,
        Deployment.plan["wireguard"]["port"].as_integer().label("wireguard_port"),
    )
    .join(Offer, Offer.profile_id == ProfileRow.profile_id)
    .join(Deployment, true())
    .where(Offer.node_number == bindparam("node"), Offer.profile_id == bindparam("profile"))
)


def offering(db: Session, profile_id: str) -> Sequence[Any]:
    """Return every node that offers a profile, with all that a choice between them needs."""
    return run(db, _OFFERING, {"profile": profile_id}).all()


def admitted_since(db: Session, node_number: int, profile_id: str, heard_at: datetime) -> int:
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


def lock(db: Session, numbers: Collection[int]) -> tuple[Authority, dict[int, NodeRef]]:
    """Lock nodes in the order of their numbers, so that two transactions never wait for each other.

    Whatever changes connections, addresses or generation of a node happens under this lock; generations of
    a node are therefore committed in their order.
    """
    authority = read_authority(db)
    rows = run(db, _LOCK, {"numbers": list(numbers)})
    return authority, {row.number: NodeRef(row.number, row.name, row.agent_address) for row in rows}


def read_authority(db: Session) -> Authority:
    row = run(db, _AUTHORITY).one_or_none()
    if row is None:
        raise NoDeployment("no plan was applied yet; run vpn-portal plan apply")
    return Authority(row.deployment_id, row.epoch)


def next_generation(db: Session, node_number: int) -> int:
    """Take the next number of a node's counter; the caller has locked the node or does nothing else after
    it.
    """
    return int(run(db, _NEXT_GENERATION, {"node": node_number}).scalar_one())


def wanted_set(db: Session, node_number: int) -> WantedSet:
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


def offer(db: Session, node_number: int, profile_id: str) -> Any:
    """Return who may use a profile that a node offers (``hidden``, ``permissions``), and the
    ``wireguard_port`` of every node; None when it offers it no more.
    """
    return run(db, _OFFER, {"node": node_number, "profile": profile_id}).one_or_none()


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
