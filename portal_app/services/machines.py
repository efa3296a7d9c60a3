"""Which machine a node is, and whether an answer is from that one (reliability.md R60)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from portal_app import clock
from portal_app.db import Database, transaction
from portal_app.errors import NodeUnreachable
from portal_app.models import NodeStatus
from vpn_core.messages import NodeInfo

if TYPE_CHECKING:
    from portal_app.agents import Agents, NodeAddress

#: After the last answer of a second machine neither of them is used for so long.
DOUBLED = timedelta(minutes=10)


@dataclass(frozen=True)
class Known:
    """What is known of the machine that is a node: its instance, and which boot of which instance answered
    last, and when. ``doubled_at`` is when a second machine with its files last answered.
    """

    instance_id: str | None
    heard_instance_id: str | None
    heard_boot_id: str | None
    answered_at: datetime | None
    doubled_at: datetime | None

    def objection(self, info: NodeInfo, now: datetime) -> str | None:
        """Return why this answer is not to be believed, None if it is the node's."""
        if self.instance_id is not None and info.instance_id != self.instance_id:
            return (
                f"another machine answers (instance {info.instance_id[:8]}, known is {self.instance_id[:8]})"
            )
        if self.is_double(info, now) or self._was_double(now):
            return "two machines answer as this node"
        return None

    def _was_double(self, now: datetime) -> bool:
        """Tell whether that was lately. A time to come was written by a clock that was wrong: long ago."""
        return self.doubled_at is not None and self.doubled_at <= now < self.doubled_at + DOUBLED

    def is_double(self, info: NodeInfo, now: datetime) -> bool:
        """Tell whether a second machine with the same files answers.

        A clone has its original's instance and a boot of its own. Whoever has rebooted began after the last
        answer before that; a machine that ran by then is another one. Where that answer is yet to come, a
        portal's clock is or was wrong, and nothing is known.
        """
        if self.answered_at is None or self.answered_at > now or info.instance_id != self.heard_instance_id:
            return False
        began_at = now - timedelta(seconds=info.node_uptime)
        # The last answer may have been noted by another portal's clock.
        return info.boot_id != self.heard_boot_id and began_at < self.answered_at - clock.SKEW


COLUMNS: tuple[Any, ...] = (
    NodeStatus.instance_id,
    NodeStatus.info["instance_id"].as_string().label("heard_instance_id"),
    NodeStatus.info["boot_id"].as_string().label("heard_boot_id"),
    NodeStatus.answered_at,
    NodeStatus.doubled_at,
)


def known(db: Database, node_number: int) -> Known:
    row = db.execute(select(*COLUMNS).where(NodeStatus.node_number == node_number)).one()
    return Known(**row._mapping)


def present_boot(agents: "Agents", node: "NodeAddress", now: datetime, *, seconds: float) -> str:
    """Return the boot id of a node that has another one than was heard last, because it has rebooted.

    Raises NodeUnreachable when what answers is another machine, or nothing does.
    """
    info = agents.info(node, seconds=seconds)
    with transaction(read_only=True) as db:
        objection = known(db, node.number).objection(info, now)
    if objection:
        raise NodeUnreachable(f"{node.name}: {objection}")
    return info.boot_id
