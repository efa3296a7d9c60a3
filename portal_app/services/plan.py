"""Put a plan into the database: profiles, nodes, offers. Idempotent; says what it changed and whom it cut."""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.models import Connection, Deployment, FreeAddress, Node, NodeStatus, Offer, Profile, User
from portal_app.services import allowed, audit, connections, leaving, nodes
from portal_app.services.plan_file import NodeEntry, PlanFile, Renumbers
from vpn_core.messages import OPENVPN, WIREGUARD
from vpn_core.ranges import client_addresses

#: A database takes only so many values in one statement.
_CHUNK = 500
_MOST_NAMES = 10
_RENUMBER = "--renumber (site.yml: -e vpn_renumber=true)"


@dataclass(frozen=True)
class Outcome:
    """What ``apply`` did, or would do: sentences for people, and the connections it ended."""

    changes: tuple[str, ...]
    ended: tuple[connections.Ended, ...]
    cuts: tuple["Cut", ...]

    @property
    def changed(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True)
class Cut:
    """Connections that end for one reason, of one profile on one node."""

    profile_id: str
    node: str
    connections: int
    users: int
    because: str


class _DryRunError(Exception):
    """Leaves the transaction, so that nothing is written."""


@retried
def apply(plan: PlanFile, *, now: datetime, dry_run: bool = False, renumber: bool = False) -> Outcome:
    """Make the database equal to ``plan`` in one transaction; the caller tells the nodes who was cut.

    Raises Renumbers, having changed nothing, when clients would get other addresses without ``renumber``.
    """
    outcome = Outcome((), (), ())
    try:
        with transaction() as db:
            outcome = _Change(db, plan, now=now, renumber=renumber).make()
            if dry_run:
                raise _DryRunError
    except _DryRunError:
        pass
    return outcome


def going(plan: PlanFile) -> list[nodes.NodeRef]:
    """Return the nodes that are known and that ``plan`` no longer has, by number."""
    numbers = [node.number for node in plan.nodes]
    with transaction(read_only=True) as db:
        found = db.scalars(select(Node).where(Node.number.not_in(numbers)).order_by(Node.number))
        return [nodes.NodeRef(node.number, node.name, node.agent_address) for node in found]


class _Change:
    """One application of a plan: holds the transaction and collects what it does."""

    def __init__(self, db: Session, plan: PlanFile, *, now: datetime, renumber: bool) -> None:
        self.db, self.plan, self.now, self.renumber = db, plan, now, renumber
        self.changes: list[str] = []
        self.ended: list[connections.Ended] = []
        self.cuts: list[Cut] = []
        self.names = {node.number: node.name for node in plan.nodes}

    def make(self) -> Outcome:
        deployment = self._deployment()
        # In the order of all others, so that no connect and no cut happens in between.
        nodes.lock(self.db, list(self.db.scalars(select(Node.number))))
        moved = self._check_numbers(deployment)
        self._profiles()
        self._nodes(moved)
        self._offers()
        self._remove()
        if deployment.plan != self.plan.data:
            self.changes += _settings_changes(deployment.plan or {}, self.plan.data)
            if not self.changes:
                self.changes.append("server settings of the plan")
            deployment.plan, deployment.plan_applied_at = self.plan.data, self.now
        if self.changes:
            audit.record(
                self.db,
                audit.PLAN_APPLIED,
                actor=audit.CLI,
                now=self.now,
                changes=self.changes,
                cut=len(self.ended),
            )
        return Outcome(tuple(self.changes), tuple(self.ended), tuple(self.cuts))

    def _deployment(self) -> Deployment:
        deployment = self.db.scalars(select(Deployment).with_for_update()).one_or_none()
        if deployment is None:
            deployment = Deployment(id=1, deployment_id=secrets.token_hex(16), epoch=1)
            self.db.add(deployment)
            # Another portal may do the same now: the primary key lets one win, the other repeats.
            self.db.flush()
            self.changes.append("deployment: made")
        return deployment

    def _check_numbers(self, deployment: Deployment) -> set[int]:
        """Return the numbers that now belong to another host; refuse them unless ``renumber`` is given."""
        before = (deployment.plan or {}).get("max_nodes", self.plan.max_nodes)
        if before != self.plan.max_nodes and not self.renumber:
            raise Renumbers(
                f"vpn_max_nodes: {before} → {self.plan.max_nodes} renumbers everyone;"
                f" set it back to {before}, or repeat with {_RENUMBER}"
            )
        numbers = {node.name: node.number for node in self.plan.nodes}
        moved: set[int] = set()
        for node in self.db.scalars(select(Node)):
            number = numbers.get(node.name, node.number)
            if number != node.number:
                if not self.renumber:
                    raise Renumbers(
                        f"vpn_node of {node.name}: number {node.number} → {number} renumbers its clients;"
                        f" set it back to {node.number}, or repeat with {_RENUMBER}"
                    )
                moved |= {number, node.number}
        return moved

    def _profiles(self) -> None:
        known = {profile.profile_id: profile for profile in self.db.scalars(select(Profile))}
        for position, (profile_id, columns) in enumerate(self.plan.profiles.items()):
            profile = known.get(profile_id)
            if profile is None:
                self.db.add(Profile(position=position, **columns))
                self.changes.append(f"profile {profile_id}: added")
            else:
                before = (profile.hidden, profile.permissions)
                self.changes += _set(profile, f"profile {profile_id}", columns | {"position": position})
                if (profile.hidden, profile.permissions) != before:
                    self.db.flush()
                    self._end_lost_permissions(profile)
        self.db.flush()

    def _end_lost_permissions(self, profile: Profile) -> None:
        for chunk in _chunks(allowed.connections_without_permission(self.db, profile)):
            self._end(Connection.id.in_(chunk), "permission_lost", "they may not use the profile any more")

    def _nodes(self, moved: set[int]) -> None:
        if moved:
            self._end(Connection.node_number.in_(moved), "renumbered", "its node has another number")
            leaving.close_sessions(self.db, moved, reason="renumbered", now=self.now)
        known = {node.number: node for node in self.db.scalars(select(Node))}
        for entry in self.plan.nodes:
            node = known.get(entry.number)
            if node is not None and node.name != entry.name:
                # Names are unique: an exchange of two needs a step between.
                self.changes.append(f"node {entry.name} (number {entry.number}): was {node.name}")
                node.name = f"~{node.number}"
        self.db.flush()
        for entry in self.plan.nodes:
            node = known.get(entry.number)
            if node is None:
                self._add_node(entry)
                continue
            node.name = entry.name
            columns = {"hostname": entry.hostname, "agent_address": entry.agent_address}
            self.changes += _set(node, f"node {entry.name}", columns)
            if entry.number in moved:
                self._forget_status(entry.number)
        self.db.flush()

    def _add_node(self, entry: NodeEntry) -> None:
        # An inventory name that moved here from a number that is going away.
        for holder in self.db.scalars(select(Node).where(Node.name == entry.name)):
            holder.name = f"~{holder.number}"
        self.db.flush()
        self.db.add(
            Node(
                number=entry.number,
                name=entry.name,
                hostname=entry.hostname,
                agent_address=entry.agent_address,
            )
        )
        self.db.flush()
        self.db.add(NodeStatus(node_number=entry.number))
        # Whoever had this number before is not connected to the new one.
        leaving.close_sessions(self.db, [entry.number], reason=leaving.REMOVED, now=self.now)
        self.changes.append(f"node {entry.name}: added as number {entry.number}")

    def _forget_status(self, number: int) -> None:
        self.db.execute(delete(NodeStatus).where(NodeStatus.node_number == number))
        self.db.add(NodeStatus(node_number=number))

    def _offers(self) -> None:
        known = {(offer.node_number, offer.profile_id): offer for offer in self.db.scalars(select(Offer))}
        for node in self.plan.nodes:
            for profile_id, (share, processes) in node.offers.items():
                offer = known.get((node.number, profile_id))
                capacity = share["capacity"] if share else 0
                columns = {"wireguard": share, "openvpn": processes, "capacity": capacity}
                if offer is None:
                    self.db.add(Offer(node_number=node.number, profile_id=profile_id, **columns))
                    self.changes.append(f"{profile_id} on {node.name}: offered")
                    continue
                self._end_lost_protocols(offer, share, processes)
                if _ranges(offer.wireguard) != _ranges(share):
                    self._move_range(offer, share)
                self.changes += _set(offer, f"{profile_id} on {node.name}", columns)
        self.db.flush()

    def _end_lost_protocols(
        self, offer: Offer, share: dict[str, Any] | None, processes: list[dict[str, Any]]
    ) -> None:
        for protocol, before, after in (
            (WIREGUARD, offer.wireguard, share),
            (OPENVPN, offer.openvpn, processes),
        ):
            if before and not after:
                self._end(
                    and_(_of(offer), Connection.protocol == protocol),
                    "protocol_removed",
                    f"{protocol} is no longer offered",
                )

    def _move_range(self, offer: Offer, share: dict[str, Any] | None) -> None:
        """End who would get another address; who keeps the same one in the new range is left alone."""
        lost = self._renumbered(offer, share) if share else []
        if lost and not self.renumber:
            raise Renumbers(
                f"vpn_profiles.{offer.profile_id}.wireguard: the range on {self.names[offer.node_number]}"
                f" moves from {_ranges(offer.wireguard)} to {_ranges(share)} and would renumber"
                f" {_counted(len(lost), 'connection')};"
                f" set it back, or repeat with {_RENUMBER}"
            )
        for chunk in _chunks(lost):
            self._end(Connection.id.in_(chunk), "renumbered", "the range moved")
        waiting = delete(FreeAddress).where(
            FreeAddress.node_number == offer.node_number, FreeAddress.profile_id == offer.profile_id
        )
        if (
            share and offer.wireguard and _first(share) == _first(offer.wireguard)
        ):  # grew or shrank in its place
            self.db.execute(waiting.where(FreeAddress.position >= share["capacity"]))
            offer.next_position = min(offer.next_position, share["capacity"])
        else:
            self.db.execute(waiting)
            offer.next_position = 0

    def _renumbered(self, offer: Offer, share: dict[str, Any]) -> list[str]:
        ipv4, ipv6 = IPv4Network(share["ipv4"]), IPv6Network(share["ipv6"])
        rows = self.db.execute(
            select(Connection.id, Connection.position, Connection.ipv4, Connection.ipv6).where(
                _of(offer), Connection.protocol == WIREGUARD
            )
        )
        return [
            row.id
            for row in rows
            if row.position >= share["capacity"]
            or (row.ipv4, row.ipv6) != client_addresses(ipv4, ipv6, row.position)
        ]

    def _remove(self) -> None:
        """Take away what the plan no longer has, connections first."""
        offered = {(node.number, profile_id) for node in self.plan.nodes for profile_id in node.offers}
        gone = {
            node.number: node.name.removeprefix("~")
            for node in self.db.scalars(select(Node))
            if node.number not in self.names
        }
        for number in gone:
            self._end(Connection.node_number == number, leaving.REMOVED, "its node is gone")
        for offer in list(self.db.scalars(select(Offer))):
            if (offer.node_number, offer.profile_id) in offered:
                continue
            self._end(_of(offer), "profile_removed", "the profile is no longer offered there")
            self.db.delete(offer)
            if offer.node_number not in gone:
                self.changes.append(f"{offer.profile_id} on {self.names[offer.node_number]}: removed")
        self.db.flush()
        for profile in list(self.db.scalars(select(Profile))):
            if profile.profile_id not in self.plan.profiles:
                self.db.delete(profile)
                self.changes.append(f"profile {profile.profile_id}: removed")
        for number, name in gone.items():
            self.db.execute(delete(Node).where(Node.number == number))
            self.changes.append(f"node {name}: removed (number {number})")
        if gone:
            # When the node is gone its journal is read no more, by no controller either.
            leaving.close_sessions(self.db, gone, reason=leaving.REMOVED, now=self.now)

    def _end(self, criterion: ColumnElement[bool], reason: str, because: str) -> None:
        held = self.db.execute(
            select(User.name, Connection.profile_id, Connection.node_number, Node.name.label("node"))
            .join(User, User.id == Connection.user_id)
            .join(Node, Node.number == Connection.node_number)
            .where(criterion)
        ).all()
        if not held:
            return
        self.ended += connections.end(self.db, criterion, reason=reason, now=self.now)
        of_offer: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for row in held:
            node = self.names.get(row.node_number, row.node.removeprefix("~"))
            of_offer[row.profile_id, node].append(row.name)
        self.cuts += [
            Cut(profile_id, node, len(users), len(set(users)), because)
            for (profile_id, node), users in sorted(of_offer.items())
        ]
        names = sorted({row.name for row in held})
        listed = ", ".join(names[:_MOST_NAMES]) + (
            f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        )
        self.changes.append(f"cut {_counted(len(held), 'connection')}, {because}: {listed}")


def _of(offer: Offer) -> ColumnElement[bool]:
    return and_(Connection.node_number == offer.node_number, Connection.profile_id == offer.profile_id)


def _ranges(share: dict[str, Any] | None) -> str:
    return f"{share['ipv4']} {share['ipv6']}" if share else "none"


def _first(share: dict[str, Any]) -> tuple[str, str]:
    return share["gateway_ipv4"], share["gateway_ipv6"]


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _set(row: Any, what: str, columns: dict[str, Any]) -> Iterable[str]:
    """Set what differs and return a sentence per column."""
    changes = []
    for key, value in columns.items():
        before = getattr(row, key)
        if before != value:
            setattr(row, key, value)
            if key not in ("position", "capacity"):
                changes.append(f"{what}: {_difference(key, before, value)}")
            elif key == "position":
                changes.append(f"{what}: order {before} → {value}")
    return changes


def _difference(key: str, before: Any, after: Any) -> str:
    """Return what changed in one column, such as ``wireguard.ipv4 10.64.0.0/20 → 10.65.0.0/20``."""
    if isinstance(before, dict) and isinstance(after, dict):
        parts = [
            _difference(f"{key}.{k}", before.get(k), after.get(k))
            for k in after | before
            if before.get(k) != after.get(k)
        ]
        return ", ".join(parts)
    if key == "openvpn":
        was, will_be = _processes(before), _processes(after)
        return f"openvpn {was} → {will_be}" if was != will_be else "openvpn pushes other settings"
    return f"{key} {_short(before)} → {_short(after)}"


def _processes(processes: Any) -> str:
    if not isinstance(processes, list):
        return _short(processes)
    return " ".join(f"{p['protocol']}/{p['port']} {p['ipv4']} {p['ipv6']}" for p in processes) or "none"


def _short(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(str(v) for k, v in value.items() if k in ("ipv4", "ipv6"))
    return str(value)


def _settings_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what changed outside of profiles and nodes; nothing for the first plan."""
    if not before:
        return []
    return [
        _difference(key, before.get(key), after.get(key))
        for key in ("max_nodes", "agent_port", "wireguard", "openvpn")
        if before.get(key) != after.get(key)
    ]
