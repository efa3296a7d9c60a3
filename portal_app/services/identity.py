"""Which machine a node is: its instance, and the WireGuard key that configurations name."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from portal_app.db import retried, transaction
from portal_app.errors import PortalError
from portal_app.events import log
from portal_app.models import Connection, Node, NodeStatus
from portal_app.services import audit, connections
from vpn_core.messages import CONNECTION_ID, WIREGUARD

if TYPE_CHECKING:
    from portal_app.agents import Agents

#: Connections that one transaction ends.
_BATCH = 200


def check(instances: Mapping[str, str]) -> None:
    """Raise PortalError for what is no instance id: 32 hexadecimal digits, as in the agent's file."""
    for name, instance in instances.items():
        if not CONNECTION_ID.fullmatch(instance):
            raise PortalError(
                f"{name}: {instance!r:.40} is no instance id; it is what"
                " /var/lib/causeway-node/instance-id on the node holds"
            )


@retried
def enroll(instances: Mapping[str, str], now: datetime) -> list[str]:
    """Accept these machines as nodes, by node name; return the names for which that is news.

    Whoever deploys has seen the machine itself, so a node that was installed anew needs no further word
    (reliability.md R60). Raises PortalError for unknown names; then nothing is changed.
    """
    check(instances)
    with transaction() as db:
        known = {
            row.name: row
            for row in db.execute(
                select(Node.name, Node.number, NodeStatus.instance_id).join(
                    NodeStatus, NodeStatus.node_number == Node.number
                )
            )
        }
        if unknown := sorted(instances.keys() - known.keys()):
            raise PortalError(f"no node {unknown[0]!r}; known are {', '.join(sorted(known)) or 'none'}")
        news = sorted(name for name, instance in instances.items() if known[name].instance_id != instance)
        # In the order in which the controller locks them.
        for name in sorted(news, key=lambda name: known[name].number):
            db.execute(
                update(NodeStatus)
                .where(NodeStatus.node_number == known[name].number)
                .values(instance_id=instances[name], doubled_at=None)
            )
            audit.record(
                db, "node.enroll", actor=audit.CLI, object=name, now=now, instance=instances[name][:8]
            )
    return news


def replace_key(agents: "Agents", number: int, name: str, key: str, *, generation: int, now: datetime) -> int:
    """End the WireGuard connections whose configurations name a key that their node has no more.

    A node that was installed anew has a new key; with the old one nobody gets in, so their apps have to
    connect again. ``generation`` is the node's from before the first connection that names ``key``. Returns
    how many were ended.
    """
    done = 0
    while ended := _end_some(number, key, generation, now):
        connections.tell(ended, agents=agents)
        done += len(ended)
    log("wireguard_key_changed", node=name, ended=done)
    return done


@retried
def _end_some(number: int, key: str, generation: int, now: datetime) -> list[connections.Ended]:
    """End a batch; when none is left, remember which key the configurations name from now on."""
    with transaction() as db:
        ids = db.scalars(
            select(Connection.id)
            .where(
                Connection.node_number == number,
                Connection.protocol == WIREGUARD,
                Connection.generation <= generation,
            )
            .limit(_BATCH)
        ).all()
        if not ids:
            db.execute(
                update(NodeStatus).where(NodeStatus.node_number == number).values(issued_public_key=key)
            )
        return connections.end(db, Connection.id.in_(ids), reason="node_key_changed", now=now)
