"""The leader's round: ask every node, write down what was seen, repair what differs."""

import contextlib
import logging
import queue
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from portal_app.agents import Agents
from portal_app.certificates import Certificate
from portal_app.controller import observation
from portal_app.controller.observation import Expected, Memory, Timing
from portal_app.controller.workers import Lane
from portal_app.db import transaction
from portal_app.errors import NodeUnreachable, PortalError
from portal_app.events import log
from portal_app.models import Deployment, Node, NodeStatus
from portal_app.services import audit, background_errors, identity, journal, machines, nodes
from portal_app.services.machines import Known
from portal_app.services.reconciliation import reconcile
from vpn_core.messages import NodeInfo

#: Threads per lane, at most: nodes that answer, nodes that did not last time, and whole sets and journals.
#: A node that falls silent holds a thread for a call's whole deadline, and many may at once: what is known
#: about the others must not grow older than ``nodes.UP`` meanwhile.
LIVING, FAILING, FOLLOWING = 128, 64, 4
#: What one answer calls for: the node, the answer, and why it needs the whole set, if it does.
_Due = tuple[Expected, NodeInfo, str | None]


@dataclass(frozen=True)
class Seen:
    """One answer, or why there was none; ``at`` is monotonic, the others are times of day."""

    number: int
    info: NodeInfo | None
    error: str | None
    at: float
    asked_at: datetime
    answered_at: datetime
    skew: float = 0.0


class Watch:
    """Everything about the nodes. ``submit`` starts a round, ``collect`` writes down what has come back."""

    def __init__(
        self, agents: Agents, *, log_origins: bool, clock: Callable[[], datetime], timing: Timing
    ) -> None:
        self.agents, self.log_origins, self.clock, self.timing = agents, log_origins, clock, timing
        self.seen: queue.SimpleQueue[Seen | None] = queue.SimpleQueue()
        self._memories: dict[int, Memory] = {}
        self._lanes = {
            "living": Lane("living", LIVING),
            "failing": Lane("failing", FAILING),
            "following": Lane("following", FOLLOWING),
        }

    def forget(self) -> None:
        """Another one led meanwhile: what was remembered is old, and so is what waits to be written."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (seen := self.seen.get_nowait()) is not None:
                    self.drop([seen])
        for memory in self._memories.values():
            memory.forget()

    def drop(self, batch: Sequence[Seen]) -> None:
        """Let these nodes be asked again."""
        for seen in batch:
            if seen.number in self._memories:
                self._memories[seen.number].in_flight = False

    def stop(self) -> None:
        for lane in self._lanes.values():
            lane.stop()
        for lane in self._lanes.values():
            lane.join(5)

    def submit(self) -> int:
        """Ask every node that is not still being asked; returns how many there are."""
        with transaction(read_only=True) as db:
            all_nodes = _expected(db)
        for number in self._memories.keys() - {node.number for node in all_nodes}:
            del self._memories[number]
        for node in all_nodes:
            memory = self._memories.setdefault(node.number, Memory())
            if memory.failing is None:
                memory.failing = node.failing_since is not None
            if not memory.in_flight:
                memory.in_flight, memory.maintenance_before = True, node.maintenance_mode
                lane = self._lanes["failing" if memory.failing else "living"]
                lane.submit(lambda node=node: self._ask(node))  # type: ignore[misc]
        return len(all_nodes)

    def _ask(self, node: Expected) -> None:
        began, asked_at, info, error = time.monotonic(), self.clock(), None, None
        try:
            info = self.agents.info(node)
        except NodeUnreachable as failure:
            error = str(failure)
        except Exception as failure:
            error = f"{type(failure).__name__}: not an answer of an agent"
            logging.getLogger(__name__).exception("asking node %s", node.number)
            background_errors.note("call of a node", failure)
        ended, now = time.monotonic(), self.clock()
        skew = 0.0 if info is None else info.now - (now.timestamp() - (ended - began) / 2)
        self.seen.put(Seen(node.number, info, error, ended, asked_at, now, skew))

    def collect(self, batch: Sequence[Seen]) -> None:
        """Write down one batch in one transaction, then start what follows from it."""
        follow: list[_Due] = []
        rows: list[dict[str, Any]] = []
        try:
            with transaction() as db:
                known = {node.number: node for node in _expected(db, [seen.number for seen in batch])}
                for seen in batch:
                    expected = known.get(seen.number)
                    if expected is not None and seen.number in self._memories:
                        rows.append(self._judge(db, seen, expected, follow))
                # One statement for those that answered, one for the others.
                for answered in (True, False):
                    if chosen := [row for row in rows if ("info" in row) == answered]:
                        db.execute(update(NodeStatus), chosen)
        finally:
            self.drop(batch)
        for expected, info, reason in self._catch_up(follow):
            memory = self._memories[expected.number]
            if not memory.following:
                memory.following = True
                self._lanes["following"].submit(
                    lambda e=expected, i=info, r=reason: self._follow(e, i, r)  # type: ignore[misc]
                )

    def _judge(
        self,
        db: Session,
        seen: Seen,
        expected: Expected,
        follow: list[_Due],
    ) -> dict[str, Any]:
        """Return the node's new status; appends what is to be done about it."""
        memory, info = self._memories[seen.number], seen.info
        error = seen.error
        foreign = None
        doubled_at = expected.known.doubled_at
        if info is not None:
            if expected.known.is_double(info, seen.answered_at):
                doubled_at = seen.answered_at
            foreign = observation.refusal(info, expected, seen.answered_at)
            error = foreign or observation.hold(info, expected)
        self._report(db, expected, memory, error, foreign is not None, seen.answered_at)
        if info is None or foreign is not None:
            memory.failing = True
            return {
                "node_number": seen.number,
                "failing_since": expected.failing_since or seen.answered_at,
                "error": error,
                "suspect_until": expected.suspect_until,
                "doubled_at": doubled_at,
            }
        reason = observation.reason_to_send(info, expected, memory, seen.at, self.timing)
        if (
            reason
            or observation.went_back(info, expected)
            or observation.has_another_key(info, expected)
            or journal.is_behind(info, expected.journal_id, expected.journal_sequence)
        ):
            follow.append((expected, info, reason))
        certificate = self.agents.certificate(seen.number)
        self._report_state(expected, memory, info, seen.skew)
        self._report_certificate(expected, memory, certificate, seen.answered_at)
        memory.failing, memory.generation_before = False, expected.generation
        suspected_at = expected.suspect_until and expected.suspect_until - nodes.SUSPECT
        return {
            "node_number": seen.number,
            # One that obeys no change cannot take anybody in.
            "failing_since": None if error is None else expected.failing_since or seen.answered_at,
            "error": error,
            "answered_at": seen.answered_at,
            # Whoever suspects it after it was asked knows better.
            "suspect_until": expected.suspect_until
            if suspected_at and suspected_at > seen.asked_at
            else None,
            # The command that sets it writes it here too, perhaps after the node gave this answer (R63).
            "maintenance_mode": info.maintenance_mode
            if expected.maintenance_mode == memory.maintenance_before
            else expected.maintenance_mode,
            "wireguard_public_key": info.wireguard_public_key,
            # Another key counts when the connections that know the old one are ended (_follow).
            "issued_public_key": expected.issued_public_key or info.wireguard_public_key,
            "instance_id": info.instance_id,
            "doubled_at": doubled_at,
            "info": observation.kept(info, seen.skew, certificate),
        }

    def _catch_up(self, due: list[_Due]) -> list[_Due]:
        """Count on from where nodes are that are ahead of this database: what it says is news again (R59).

        In a transaction of its own: whoever locks a node and its status locks the node first.
        """
        if not any(observation.went_back(info, expected) for expected, info, _ in due):
            return due
        caught_up = []
        with transaction() as db:
            # Nodes are locked in the order of their numbers everywhere.
            for expected, info, reason in sorted(due, key=lambda each: each[0].number):
                if observation.went_back(info, expected):
                    expected = self._count_on(db, expected, info.generation)
                caught_up.append((expected, info, reason))
        return caught_up

    def _count_on(self, db: Session, expected: Expected, node_at: int) -> Expected:
        generation = node_at + 1
        db.execute(
            update(Node)
            .where(Node.number == expected.number, Node.generation < generation)
            .values(generation=generation)
        )
        log(
            "generation_went_back",
            level=logging.WARNING,
            node=expected.name,
            database=expected.generation,
            node_at=node_at,
        )
        self._memories[expected.number].generation_before = generation
        return replace(expected, generation=generation)

    def _report(
        self, db: Session, node: Expected, memory: Memory, error: str | None, foreign: bool, now: datetime
    ) -> None:
        """Log when a node comes, goes or changes its trouble; an alarm is an audit row as well."""
        if error == memory.error:
            return
        if error is None:
            log("node_up", node=node.name)
        else:
            held = foreign or error.startswith(("held", "knows"))
            event = "node_foreign" if foreign else "node_held" if held else "node_down"
            log(event, level=logging.WARNING, node=node.name, error=error)
            if held:
                audit.record(
                    db, event.replace("_", ".", 1), actor="controller", object=node.name, now=now, error=error
                )
        memory.error = error

    def _report_state(self, node: Expected, memory: Memory, info: NodeInfo, skew: float) -> None:
        skewed = abs(skew) > observation.SKEW_SECONDS
        if skewed != memory.skewed:
            log("clock_skew", level=logging.WARNING, node=node.name, seconds=round(skew))
            memory.skewed = skewed
        if info.problems != memory.problems:
            log("node_problems", level=logging.WARNING, node=node.name, problems="; ".join(info.problems))
            memory.problems = info.problems

    def _report_certificate(
        self, node: Expected, memory: Memory, certificate: Certificate | None, now: datetime
    ) -> None:
        """R68: long before it ends, somebody has to run the playbook."""
        warning = certificate.warning(now) if certificate else None
        if warning and warning != memory.certificate_warning:
            log("certificate_ends", level=logging.WARNING, node=node.name, remark=warning)
        memory.certificate_warning = warning

    def _follow(self, node: Expected, info: NodeInfo, reason: str | None) -> None:
        memory = self._memories.get(node.number) or Memory()
        if memory.failing:
            # It went while this waited: others must not wait for its deadline (R98).
            memory.following = False
            return
        try:
            # The journal first: a set that ends a connection must not hide whose session it was.
            journal.read(self.agents, node, info, log_origins=self.log_origins, now=self.clock())
            if observation.has_another_key(info, node):
                identity.replace_key(
                    self.agents,
                    node.number,
                    node.name,
                    str(info.wireguard_public_key),
                    generation=node.generation,
                    now=self.clock(),
                )
            if reason is not None:
                memory.set_at = time.monotonic()
                reconcile(self.agents, node, now=self.clock, boot_id=info.boot_id, reason=reason)
            memory.trouble = None
        except PortalError as error:
            if str(error) != memory.trouble:
                memory.trouble = str(error)
                log("node_repair_failed", level=logging.WARNING, node=node.name, reason=reason, error=error)
        finally:
            memory.following = False


def _expected(db: Session, locked: Collection[int] | None = None) -> list[Expected]:
    """Return every node of an applied plan with what is expected of it.

    With ``locked`` only these, and nobody else writes their status until this transaction ends.
    """
    deployment = db.execute(select(Deployment.deployment_id, Deployment.epoch)).one_or_none()
    if deployment is None:
        return []
    found = (
        select(
            Node.number,
            Node.name,
            Node.agent_address,
            Node.generation,
            *machines.COLUMNS,
            NodeStatus.journal_id,
            NodeStatus.journal_sequence,
            NodeStatus.reconciled_generation,
            NodeStatus.failing_since,
            NodeStatus.suspect_until,
            NodeStatus.maintenance_mode,
            NodeStatus.issued_public_key,
        )
        .join(NodeStatus, NodeStatus.node_number == Node.number)
        .order_by(Node.number)
    )
    if locked is not None:
        found = found.where(Node.number.in_(locked)).with_for_update(of=NodeStatus, key_share=True)
    return [_expect(dict(row._mapping), deployment) for row in db.execute(found)]


def _expect(row: dict[str, Any], deployment: Any) -> Expected:
    known = Known(**{column.key: row.pop(column.key) for column in machines.COLUMNS})
    return Expected(**row, **deployment._mapping, known=known)
