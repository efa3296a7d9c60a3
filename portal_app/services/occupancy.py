"""Who is connected where, and how full each node's share of a profile is. Reads only."""

from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from portal_app.models import Node, Offer, VpnSession
from vpn_core.messages import OPENVPN, WIREGUARD


@dataclass(frozen=True)
class Connected:
    """Connections with an open session, and how many users they are of."""

    connections: int = 0
    users: int = 0


@dataclass(frozen=True)
class Share:
    """A profile's WireGuard addresses on a node: in use now, given out, and all there are."""

    profile_id: str
    connected: Connected
    allocated: int
    capacity: int


@dataclass(frozen=True)
class Process:
    """An OpenVPN process of a node; ``capacity`` is its max-clients."""

    name: str
    profile_id: str
    protocol: str
    port: int
    connected: Connected
    capacity: int


@dataclass(frozen=True)
class NodeOccupancy:
    """One node; ``wireguard`` counts over all profiles, whose users may be the same."""

    node: str
    number: int
    wireguard: Connected
    shares: tuple[Share, ...]
    processes: tuple[Process, ...]


def nodes(db: Session) -> list[NodeOccupancy]:
    """Return every node in the order of the numbers."""
    # Profiles in the order of their ids: the plan has the inventory's order for whoever wants it.
    offers: defaultdict[int, list[Offer]] = defaultdict(list)
    for offer in db.scalars(select(Offer).order_by(Offer.node_number, Offer.profile_id)):
        offers[offer.node_number].append(offer)
    of_share = _wireguard(db, VpnSession.node_number, VpnSession.profile_id)
    of_node = _wireguard(db, VpnSession.node_number)
    of_process = _openvpn(db, offers)
    return [
        NodeOccupancy(
            node=name,
            number=number,
            wireguard=of_node.get((number,), Connected()),
            shares=tuple(
                Share(
                    o.profile_id, of_share.get((number, o.profile_id), Connected()), o.allocated, o.capacity
                )
                for o in offers[number]
                if o.wireguard
            ),
            processes=tuple(
                Process(
                    name=p["name"],
                    profile_id=o.profile_id,
                    protocol=p["protocol"],
                    port=p["port"],
                    connected=of_process.get((number, p["name"]), Connected()),
                    capacity=p["max_clients"],
                )
                for o in offers[number]
                for p in o.openvpn
            ),
        )
        for number, name in db.execute(select(Node.number, Node.name).order_by(Node.number)).all()
    ]


def _wireguard(db: Session, *columns: Any) -> dict[tuple[Any, ...], Connected]:
    counted = select(
        *columns,
        func.count(VpnSession.connection_id.distinct()),
        func.count(VpnSession.user_name.distinct()),
    ).where(VpnSession.ended_at.is_(None), VpnSession.protocol == WIREGUARD)
    return {tuple(row[:-2]): Connected(*row[-2:]) for row in db.execute(counted.group_by(*columns))}


def _openvpn(db: Session, offers: dict[int, list[Offer]]) -> dict[tuple[int, str], Connected]:
    """Count per process: whose pool a session's address is of."""
    pools = [
        (offer.node_number, offer.profile_id, IPv4Network(process["ipv4"]), process["name"])
        for of_node in offers.values()
        for offer in of_node
        for process in offer.openvpn
    ]
    of_profile: defaultdict[tuple[int, str], list[tuple[IPv4Network, str]]] = defaultdict(list)
    for number, profile_id, network, name in pools:
        of_profile[number, profile_id].append((network, name))
    connections: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    users: defaultdict[tuple[int, str], set[str | None]] = defaultdict(set)
    rows = db.execute(
        select(
            VpnSession.node_number,
            VpnSession.profile_id,
            VpnSession.ipv4,
            VpnSession.connection_id,
            VpnSession.user_name,
        ).where(VpnSession.ended_at.is_(None), VpnSession.protocol == OPENVPN, VpnSession.ipv4.is_not(None))
    )
    for row in rows:
        address = IPv4Address(row.ipv4)
        for network, name in of_profile[row.node_number, row.profile_id]:
            if address in network:
                connections[row.node_number, name].add(row.connection_id)
                users[row.node_number, name].add(row.user_name)
    return {key: Connected(len(ids), len(users[key])) for key, ids in connections.items()}
