"""Hand a node everything it should have, at once, as an operator asks for it."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from portal_app.controller.watch import reconcile
from portal_app.db import retried, transaction
from portal_app.errors import Conflict
from portal_app.models import Node, NodeStatus
from portal_app.services import audit

if TYPE_CHECKING:
    from portal_app.agents import Agents


class AnotherMachine(Conflict):
    """What answers is not the machine that is known under this number: perhaps it was reinstalled."""


def by_operator(
    agents: "Agents",
    node: Node,
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
        known = db.scalar(select(NodeStatus.instance_id).where(NodeStatus.node_number == node.number))
    if known is not None and known != info.instance_id and not confirmed:
        raise AnotherMachine(
            f"{node.name}: another machine answers (instance {info.instance_id[:8]}, known is {known[:8]});"
            " if it was reinstalled, repeat with --confirm"
        )
    answer = reconcile(agents, node, now=now, reason="operator", confirmed=confirmed)
    _write_down(node, info.instance_id, confirmed, actor, source, now())
    return answer


@retried
def _write_down(
    node: Node, instance_id: str, confirmed: bool, actor: str, source: str | None, now: datetime
) -> None:
    with transaction() as db:
        db.execute(
            update(NodeStatus).where(NodeStatus.node_number == node.number).values(instance_id=instance_id)
        )
        audit.record(
            db, "node.reconcile", actor=actor, object=node.name, source=source, now=now, confirmed=confirmed
        )
