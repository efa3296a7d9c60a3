"""How much of each profile's ranges is in use: over all nodes, and on one. Reads only."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app.models import Node, NodeStatus, Offer, Profile
from portal_app.services.fullness import Use, uses
from vpn_core.messages import OPENVPN, WIREGUARD


@dataclass(frozen=True)
class Range:
    """A profile's range of one protocol over all nodes, and the node on which it is fullest."""

    profile_id: str
    display_name: str
    networks: tuple[str, ...]
    use: Use
    fullest: Use | None
    fullest_node: str | None


@dataclass(frozen=True)
class Part:
    """What one node serves of one profile, and how much of it is in use."""

    node_number: int
    profile_id: str
    networks: tuple[str, ...]
    ports: tuple[str, ...]
    use: Use


def parts(db: Session, *, number: int | None = None, profile_id: str | None = None) -> list[Part]:
    """Return the parts of every node and profile, or of one, in the order of numbers and profiles."""
    query = (
        select(Offer)
        .join(Profile, Profile.profile_id == Offer.profile_id)
        .order_by(Offer.node_number, Profile.position)
    )
    infos = select(NodeStatus.node_number, NodeStatus.info)
    if number is not None:
        query, infos = query.where(Offer.node_number == number), infos.where(NodeStatus.node_number == number)
    if profile_id is not None:
        query = query.where(Offer.profile_id == profile_id)
    said: dict[int, dict[str, Any]] = {node: info or {} for node, info in db.execute(infos)}
    return [part for offer in db.scalars(query) for part in _parts(offer, said.get(offer.node_number, {}))]


def _parts(offer: Offer, info: dict[str, Any]) -> list[Part]:
    found = []
    for use in uses(offer, info):
        if use.protocol == WIREGUARD:
            shares = offer.wireguard or {}
            networks = [shares["ipv4"], shares["ipv6"]]
            ports = []
        else:
            networks = [process["ipv4"] for process in offer.openvpn]
            ports = [f"{process['protocol']}/{process['port']}" for process in offer.openvpn]
        found.append(Part(offer.node_number, offer.profile_id, tuple(map(str, networks)), tuple(ports), use))
    return found


def ranges(db: Session) -> list[Range]:
    """Return the ranges of every profile in the order of the inventory."""
    names: dict[int, str] = dict(db.execute(select(Node.number, Node.name)).all())
    by_range: defaultdict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in parts(db):
        by_range[part.profile_id, part.use.protocol].append(part)
    found = []
    for profile in db.scalars(select(Profile).order_by(Profile.position)):
        for protocol, range_ in ((WIREGUARD, profile.wireguard), (OPENVPN, profile.openvpn)):
            if range_ is not None:
                found.append(_range(profile, protocol, range_, by_range[profile.profile_id, protocol], names))
    return found


def _range(
    profile: Profile, protocol: str, range_: dict[str, Any], of_nodes: list[Part], names: dict[int, str]
) -> Range:
    fullest = max(of_nodes, key=lambda part: part.use.percent, default=None)
    return Range(
        profile.profile_id,
        profile.display_name,
        tuple(str(range_[key]) for key in ("ipv4", "ipv6") if range_.get(key)),
        Use(protocol, sum(p.use.used for p in of_nodes), sum(p.use.places for p in of_nodes)),
        fullest.use if fullest else None,
        names.get(fullest.node_number) if fullest else None,
    )
