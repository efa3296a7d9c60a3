"""Which node a connect tries first, and why the others wait or are left out: pure decisions about rows."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from portal_app.services.nodes import UP, NodeRef
from vpn_core.messages import OPENVPN, WIREGUARD

#: A node that is busy still counts a little, and so does one whose load is unknown or that may be full.
LEAST_IDLE, UNKNOWN_IDLE, LEAST_FREE = 0.05, 0.5, 0.01
#: The best of so many draws comes first. One draw leaves the fullest far above the mean; taking the best of
#: all sends everybody to one node until its status is read again.
DRAWS = 3
#: As wide as ``connections.choice``; a list of many nodes is cut.
LONGEST = 255
_LISTED = 8

_random = random.SystemRandom()


class Room(NamedTuple):
    """What is left of a node: places of its ``capacity``, and the share of its CPU that is idle."""

    free: float
    capacity: int
    idle: float

    @property
    def weight(self) -> float:
        return max(LEAST_FREE, self.free) * self.idle

    @property
    def share(self) -> float:
        return self.free / max(1, self.capacity) * self.idle


class Candidate(NamedTuple):
    """A node that could take a connection now: ``busy`` percent, None when unknown, with ``free`` places.

    ``reported_free`` is set when the node may have become full since it was heard at ``heard_at``, as
    ``boot_id``.
    """

    node: NodeRef
    hostname: str
    wireguard_public_key: str | None
    free: int
    busy: float | None
    heard_at: datetime
    reported_free: int | None = None
    boot_id: str | None = None

    @property
    def reason(self) -> str:
        """Say what speaks for it."""
        load = "load unknown" if self.busy is None else f"{self.busy:.0f} % busy"
        return f"{load}, {self.free} free address{'' if self.free == 1 else 'es'}"


@dataclass(frozen=True)
class Choice:
    """Candidates, best first, and by name why each other node of the profile is none."""

    candidates: list[Candidate]
    left_out: dict[str, str] = field(default_factory=dict)

    def explain(
        self, chosen: Candidate, left_out: Mapping[str, str], before: Sequence[str] = (), protocol: str = ""
    ) -> str:
        """Say in a line why ``chosen`` was taken, and its ``protocol``; ``before`` is what earlier protocols
        ran into.
        """
        parts = [f"{chosen.node.name}: {chosen.reason}", *([protocol] if protocol else [])]
        waiting = [c for c in self.candidates if c is not chosen and c.node.name not in left_out]
        if waiting:
            first = {c.node.name: c.reason for c in waiting[:_LISTED]}
            parts.append(f"before {listed(first, len(waiting))}")
        if left_out:
            parts.append(f"without {listed(left_out)}")
        return cut("; ".join([*parts, *before]), LONGEST)


def choose(
    rows: Sequence[Any],
    protocol: str,
    now: datetime,
    *,
    selection: str = "weighted",
    held: Collection[int] = (),
    rng: random.Random = _random,
) -> Choice:
    """Order the nodes of a profile (``nodes.offering``) for one protocol.

    Usable: Up, not in maintenance, not suspect, with something free, for WireGuard with a known key. Where
    there is none, those will do that only were not heard for long: it is the controller that was away, and
    whether a node is there its admission shows. ``held`` are nodes where the caller gives an address of this
    profile back, so that a full one will do.
    """
    found = _usable(rows, protocol, now - UP, now, held)
    if not found.candidates:
        found = _usable(rows, protocol, None, now, held)
    candidates, rooms = found.candidates, found.rooms
    if selection == "random":
        rng.shuffle(candidates)
        return Choice(candidates, found.left_out)
    return Choice([candidates[i] for i in in_order(rooms, rng)], found.left_out)


class _Usable(NamedTuple):
    candidates: list[Candidate]
    rooms: list[Room]
    left_out: dict[str, str]


def _usable(
    rows: Sequence[Any], protocol: str, heard_since: datetime | None, now: datetime, held: Collection[int]
) -> _Usable:
    candidates: list[Candidate] = []
    rooms: list[Room] = []
    left_out: dict[str, str] = {}
    for row in rows:
        why_not = _unusable(row, protocol, heard_since, now)
        capacity, free, pending = _places(row, protocol, held)
        if why_not or free < 1:
            left_out[row.name] = why_not or "full"
            continue
        # What was not heard for long says nothing of the load.
        busy = _busy(row.info) if heard_since is not None else None
        idle = UNKNOWN_IDLE if busy is None else max(LEAST_IDLE, 1 - busy / 100)
        rooms.append(Room(max(0, free - pending), capacity, idle))
        candidates.append(
            Candidate(
                node=NodeRef(row.number, row.name, row.agent_address),
                hostname=row.hostname,
                wireguard_public_key=row.wireguard_public_key,
                free=free,
                busy=busy,
                heard_at=row.answered_at,
                reported_free=free if free <= pending else None,
                boot_id=(row.info or {}).get("boot_id"),
            )
        )
    return _Usable(candidates, rooms, left_out)


def in_order(rooms: Sequence[Room], rng: random.Random) -> list[int]:
    """Return the indexes of ``rooms``, best choice first: free places times idle CPU.

    A weighted shuffle (Efraimidis and Spirakis), of which the best of three weighted draws comes first. Draws
    are independent, so that no node gets more than three times its weighted share, however old its status is.
    """
    weights = [room.weight for room in rooms]
    order = sorted(range(len(rooms)), key=lambda i: rng.expovariate(weights[i]))
    if len(order) > 1:
        drawn = [order[0], *rng.choices(range(len(rooms)), weights, k=DRAWS - 1)]
        best = max(drawn, key=lambda i: rooms[i].share)
        order.remove(best)
        order.insert(0, best)
    return order


def attached(info: Mapping[str, Any], profile_id: str) -> int:
    """Return a profile's OpenVPN clients on a node; all of the node's where its agent tells no more."""
    by_profile = info.get("openvpn_clients")
    count = info.get("o_client_count") if by_profile is None else by_profile.get(profile_id)
    return count if isinstance(count, int) else 0


def listed(reasons: Mapping[str, str], total: int | None = None) -> str:
    """Name nodes with their reasons, not too many; ``total`` counts those that ``reasons`` lacks, too.

    >>> listed({"fra1": "full", "fra2": "in maintenance"}, 5)
    'fra1 (full), fra2 (in maintenance), 3 more'
    """
    found = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_LISTED]]
    more = (len(reasons) if total is None else total) - len(found)
    return ", ".join([*found, f"{more} more"] if more else found)


def with_rules(why: str, rules: str) -> str:
    """Append why the user may have this, which stays in however long the list of nodes is.

    >>> with_rules("node0: " + "x" * 300, "open to everybody")[-23:]
    'xxx…; open to everybody'
    """
    rules = cut(rules, LONGEST // 2)
    return f"{cut(why, LONGEST - len(rules) - 2)}; {rules}"


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _unusable(row: Any, protocol: str, heard_since: datetime | None, now: datetime) -> str:
    """Return why a node takes nobody over ``protocol``, however empty it is; "" if it does. It must have been
    heard ``heard_since`` then, or ever.
    """
    if (protocol == WIREGUARD and not row.has_wireguard) or (protocol == OPENVPN and not row.openvpn):
        return f"lacks {protocol}"
    if row.answered_at is None or (heard_since is not None and row.answered_at < heard_since):
        return "does not answer"
    if row.failing_since is not None:
        return "holds still" if (row.info or {}).get("held") else "does not answer"
    if row.maintenance_mode:
        return "in maintenance"
    if row.suspect_until is not None and row.suspect_until > now:
        return "suspect"
    if protocol == WIREGUARD and row.wireguard_public_key is None:
        return "its WireGuard key is unknown"
    return ""


def _places(row: Any, protocol: str, held: Collection[int]) -> tuple[int, int, int]:
    """Return how many places a node has, how many are free, and how many of those may be gone by now.

    Addresses of WireGuard are counted in the database. Clients of OpenVPN are as the agent said last; each
    change to the node since then, which its counter tells, may be one more.
    """
    if protocol == WIREGUARD:
        return row.capacity, row.capacity - row.allocated + (row.number in held), 0
    info = row.info or {}
    capacity = sum(process["max_clients"] for process in row.openvpn)
    pending = max(0, row.generation - info.get("generation", row.generation))
    return capacity, capacity - attached(info, row.profile_id), pending


def _busy(info: Mapping[str, Any] | None) -> float | None:
    """Return the load in percent of the processors; None when it is unknown."""
    load = (info or {}).get("rel_load_average")
    return load[0] if load else None
