"""What one answer of a node means: pure decisions, without database and without calls."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from portal_app.certificates import Certificate
from portal_app.services.machines import Known
from vpn_core.messages import NodeInfo

#: A clock further away than this is reported; expiry stays exact to a minute (reliability.md R61).
SKEW_SECONDS = 5
#: Beyond any honest counter: a node that says so is not believed.
MOST_GENERATION = 2**62


@dataclass(frozen=True)
class Timing:
    """Seconds. ``moved``: how long after a change the full set goes out; ``full``: without any change."""

    poll: float = 5.0
    moved: float = 30.0
    full: float = 600.0


@dataclass(frozen=True)
class Expected:
    """What the database says about a node, read after the node answered: never older than the answer.

    Read again under a lock before it is judged: what a command writes meanwhile is not overwritten.
    """

    number: int
    name: str
    agent_address: str
    generation: int
    known: Known
    journal_id: str | None
    journal_sequence: int
    reconciled_generation: int
    failing_since: datetime | None
    suspect_until: datetime | None
    maintenance_mode: bool
    issued_public_key: str | None
    deployment_id: str
    epoch: int


@dataclass
class Memory:
    """What the leader remembers of a node between its answers; monotonic seconds."""

    in_flight: bool = False
    following: bool = False
    failing: bool | None = None
    maintenance_before: bool = False
    error: str | None = None
    set_at: float = float("-inf")
    generation_before: int | None = None
    trouble: str | None = None
    skewed: bool = False
    certificate_warning: str | None = None
    problems: tuple[str, ...] = ()

    def forget(self) -> None:
        """Begin anew, except for what is under way."""
        fresh = Memory(in_flight=self.in_flight, following=self.following)
        self.__dict__.update(fresh.__dict__)


def refusal(info: NodeInfo, expected: Expected, now: datetime) -> str | None:
    """Return why this answer is not from the node that is expected, None if it is (reliability.md R60)."""
    if info.node_number != expected.number:
        return f"answers as node {info.node_number}, not {expected.number}"
    if objection := expected.known.objection(info, now):
        return f"{objection}; if this is the one to use: vpn-portal node reconcile {expected.name} --confirm"
    if info.generation > MOST_GENERATION:
        return "its generation is beyond any that can be"
    return None


def hold(info: NodeInfo, expected: Expected) -> str | None:
    """Return why the agent obeys no change at present, None if it does."""
    if info.held:
        return f"held: {info.held}"
    if info.deployment_id == expected.deployment_id and info.epoch > expected.epoch:
        return (
            f"knows epoch {info.epoch}, this database is at {expected.epoch} (restored?);"
            " run vpn-portal deployment new-epoch"
        )
    return None


def went_back(info: NodeInfo, expected: Expected) -> bool:
    """Tell whether our counter is behind the node's: the database is older than it was (R59)."""
    return (
        info.deployment_id == expected.deployment_id
        and info.epoch == expected.epoch
        and info.generation > expected.generation
    )


def has_another_key(info: NodeInfo, expected: Expected) -> bool:
    """Tell whether configurations name a WireGuard key that the node has no more: it was installed anew."""
    return (
        info.wireguard_public_key is not None
        and expected.issued_public_key is not None
        and info.wireguard_public_key != expected.issued_public_key
    )


def reason_to_send(
    info: NodeInfo, expected: Expected, memory: Memory, at: float, timing: Timing
) -> str | None:
    """Return why the node needs the whole wanted set now, None if it does not.

    A call that was lost shows in two ways: the node stays behind what was committed before the last round,
    or (when later calls went through) only in the set itself; so every change is followed by one full set.
    """
    since = at - memory.set_at
    if (info.deployment_id, info.epoch) != (expected.deployment_id, expected.epoch):
        # Held answers cost both sides: no faster than the usual round.
        return "authority" if since >= (timing.moved if info.held else timing.poll) else None
    if info.held:
        return "held" if since >= timing.moved else None
    if went_back(info, expected):
        return "generation"
    if memory.generation_before is not None and info.generation < memory.generation_before:
        return "behind"
    if memory.failing and expected.reconciled_generation != expected.generation:
        return "back"
    if expected.reconciled_generation != expected.generation and since >= timing.moved:
        return "moved"
    if since >= timing.full and memory.set_at != float("-inf"):
        return "full"
    return None


def kept(info: NodeInfo, skew: float, certificate: Certificate | None) -> dict[str, Any]:
    """Return what of an answer, and of who gave it, goes into ``node_status.info``."""
    shown = certificate.to_dict() if certificate else None
    return info.to_dict() | {"clock_skew_seconds": round(skew), "certificate": shown}
