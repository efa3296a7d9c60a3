"""How the service is used: nodes, profiles, active sessions. Reads only."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from portal_app.certificates import Certificate
from portal_app.db import Database
from portal_app.errors import N_
from portal_app.models import Connection, Node, NodeStatus, Offer, Profile, VpnSession
from portal_app.services import fullness
from portal_app.services.nodes import UP
from portal_app.statements import Statement, run_together
from portal_app.texts import Text, text
from vpn_core.messages import OPENVPN, WIREGUARD

#: No node has a higher number.
HIGHEST = 2**31 - 1
UP_STATE, DOWN, MAINTENANCE, HELD, NEVER_SEEN = "up", "down", "maintenance", "held", "never seen"


@dataclass(frozen=True)
class NodeReport:
    """A node as the controller last saw it. ``state`` is one word; ``remarks`` say what is wrong."""

    number: int
    name: str
    hostname: str
    agent_address: str
    state: str
    connections: int
    active: int
    load_percent: int | None
    cpu_count: int | None
    version: str | None
    software: dict[str, str]
    uptime_seconds: int | None
    answered_at: datetime | None
    failing_since: datetime | None
    reconciled_at: datetime | None
    generation: int
    certificate_serial: str | None
    certificate_ends: datetime | None
    remarks: tuple[str, ...]

    @property
    def wanted_cpus(self) -> float:
        """How many CPU what runs there would keep busy; more than there are is waiting."""
        return (self.load_percent or 0) * (self.cpu_count or 0) / 100


@dataclass(frozen=True)
class ProfileReport:
    """The columns of spec portal.md, section 7. Active: in use now; allocated: addresses given out."""

    profile_id: str
    active_connection_count: int
    max_connection_count: int
    percentage_in_use: int
    openvpn_max_connection_count: int
    openvpn_active_connection_count: int
    wireguard_max_connection_count: int
    wireguard_active_connection_count: int
    wireguard_allocated_ip_count: int
    wireguard_free_ip_count: int
    wireguard_percentage_allocated: int

    @property
    def fullest(self) -> int:
        """Return the higher of both percentages: what an alert looks at."""
        return max(self.percentage_in_use, self.wireguard_percentage_allocated)


@dataclass(frozen=True)
class Seen:
    """A node, its status once it was asked, and what there is to say about its nearly full shares.

    Both have what a ``Node`` and a ``NodeStatus`` have, and are only to read.
    """

    node: Node
    status: NodeStatus | None
    full: list[Text]

    @property
    def info(self) -> dict[str, Any]:
        """What it said last; empty before."""
        return (self.status.info if self.status else None) or {}


_FIRST: Any = bindparam("first")
_LAST: Any = bindparam("last")
_NODES = Statement(
    select(*Node.__table__.columns).where(Node.number.between(_FIRST, _LAST)).order_by(Node.number)
)
_STATUS = Statement(
    select(*NodeStatus.__table__.columns).where(NodeStatus.node_number.between(_FIRST, _LAST))
)
_FULL = Statement(
    select(*Offer.__table__.columns)
    .where(Offer.node_number.between(_FIRST, _LAST), Offer.full_since.is_not(None))
    .order_by(Offer.profile_id)
)


def seen(db: Database, first: int = 0, last: int = HIGHEST) -> list[Seen]:
    """Return every node from one number to another, in their order."""
    between = {"first": first, "last": last}
    found, states, offers = run_together(db, [(one, between) for one in (_NODES, _STATUS, _FULL)])
    status = {row.node_number: row for row in states}
    full: defaultdict[int, list[Text]] = defaultdict(list)
    for offer in offers:
        own = status.get(offer.node_number)
        if (said := fullness.remark(offer, own.info if own else None)) is not None:
            full[offer.node_number].append(said)
    return [Seen(node, status.get(node.number), full[node.number]) for node in found]


def nodes(db: Session, *, now: datetime) -> list[NodeReport]:
    """Return a report on every node. It counts everybody's connections, which takes a while."""
    connections = connections_of_nodes(db)
    return [report(one, connections=connections.get(one.node.number, 0), now=now) for one in seen(db)]


def node(db: Session, number: int, *, now: datetime) -> NodeReport | None:
    """Return a report on one node, None when there is none with this number."""
    count = select(func.count()).select_from(Connection).where(Connection.node_number == number)
    connections = db.scalar(count) or 0
    return next((report(one, connections=connections, now=now) for one in seen(db, number, number)), None)


def connections_of_nodes(db: Session) -> dict[int, int]:
    """Return how many connections each node has; those without any are not in it."""
    query = select(Connection.node_number, func.count()).group_by(Connection.node_number)
    return dict(db.execute(query).all())


def report(seen: Seen, *, connections: int, now: datetime) -> NodeReport:
    """Return the report on a node that has so many connections."""
    node, status, info = seen.node, seen.status, seen.info
    load = info.get("rel_load_average") or []
    certificate = _certificate(info)
    return NodeReport(
        number=node.number,
        name=node.name,
        hostname=node.hostname,
        agent_address=node.agent_address,
        state=state(status, now),
        connections=connections,
        active=info.get("w_peer_count", 0) + info.get("o_client_count", 0),
        load_percent=load[0] if load else None,
        cpu_count=info.get("cpu_count"),
        version=info.get("v"),
        software=info.get("software") or {},
        uptime_seconds=info.get("node_uptime"),
        answered_at=status.answered_at if status else None,
        failing_since=status.failing_since if status else None,
        reconciled_at=status.reconciled_at if status else None,
        generation=node.generation,
        certificate_serial=f"{certificate.serial_number:x}" if certificate else None,
        certificate_ends=certificate.not_after if certificate else None,
        remarks=tuple(map(str, (*_remarks(status, info, now), *seen.full))),
    )


def state(status: NodeStatus | None, now: datetime) -> str:
    """Return a node's state in one word; ``up`` is the only one in which it takes new connections."""
    if status is None or status.answered_at is None:
        return NEVER_SEEN if status is None or status.error is None else DOWN
    if status.error is not None and (status.info or {}).get("held"):
        return HELD
    if status.failing_since is not None or status.answered_at < now - UP:
        return DOWN
    return MAINTENANCE if status.maintenance_mode else UP_STATE


def _remarks(status: NodeStatus | None, info: dict[str, Any], now: datetime) -> list[Text | str]:
    if status is None:
        return []
    return [*([status.error] if status.error else []), *problems(info, now)]


def problems(info: dict[str, Any], now: datetime) -> list[Text | str]:
    """Return what is wrong with a node, by what it said last and the certificate it showed."""
    found: list[Text | str] = [str(problem) for problem in info.get("problems") or []]
    skew = info.get("clock_skew_seconds", 0)
    if abs(skew) > 5:
        message = N_("clock is %(seconds)s s ahead") if skew > 0 else N_("clock is %(seconds)s s behind")
        found.append(text(message, seconds=abs(skew)))
    certificate = _certificate(info)
    if certificate and certificate.warning(now):
        ends = N_("certificate ends on %(day)s; run site.yml, which renews it")
        found.append(text(ends, day=certificate.not_after.date()))
    return found


def _certificate(info: dict[str, Any]) -> Certificate | None:
    return Certificate.from_dict(info["certificate"]) if info.get("certificate") else None


@dataclass(frozen=True)
class Live:
    """Who is connected now: users, and connections by profile and protocol."""

    users: int
    connections: Mapping[tuple[str, str], int]

    @property
    def total(self) -> int:
        return sum(self.connections.values())


def live(db: Session) -> Live:
    """Count; where many are connected this takes a while."""
    users = db.scalar(
        select(func.count(VpnSession.user_name.distinct())).where(VpnSession.ended_at.is_(None))
    )
    return Live(users or 0, _active(db))


def _active(db: Session) -> defaultdict[tuple[str, str], int]:
    active: defaultdict[tuple[str, str], int] = defaultdict(int)
    counted = db.execute(
        select(VpnSession.profile_id, VpnSession.protocol, func.count(VpnSession.connection_id.distinct()))
        .where(VpnSession.ended_at.is_(None))
        .group_by(VpnSession.profile_id, VpnSession.protocol)
    )
    for profile_id, protocol, count in counted:
        active[profile_id, protocol] = count
    return active


def profiles(db: Session) -> list[ProfileReport]:
    """Return every profile in the order of the inventory."""
    active = _active(db)
    offers: defaultdict[str, list[Offer]] = defaultdict(list)
    for offer in db.scalars(select(Offer)):
        offers[offer.profile_id].append(offer)
    ids = db.scalars(select(Profile.profile_id).order_by(Profile.position)).all()
    return [
        _profile(profile_id, offers[profile_id], active[profile_id, WIREGUARD], active[profile_id, OPENVPN])
        for profile_id in ids
    ]


def _profile(profile_id: str, offers: list[Offer], wireguard: int, openvpn: int) -> ProfileReport:
    addresses = sum(offer.capacity for offer in offers)
    clients = sum(process["max_clients"] for offer in offers for process in offer.openvpn)
    allocated = sum(offer.allocated for offer in offers)
    return ProfileReport(
        profile_id=profile_id,
        active_connection_count=wireguard + openvpn,
        max_connection_count=addresses + clients,
        percentage_in_use=_percent(wireguard + openvpn, addresses + clients),
        openvpn_max_connection_count=clients,
        openvpn_active_connection_count=openvpn,
        wireguard_max_connection_count=addresses,
        wireguard_active_connection_count=wireguard,
        wireguard_allocated_ip_count=allocated,
        wireguard_free_ip_count=addresses - allocated,
        wireguard_percentage_allocated=_percent(allocated, addresses),
    )


def _percent(part: int, whole: int) -> int:
    return 100 * part // whole if whole else 0
