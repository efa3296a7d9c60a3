"""How much of each profile's ranges is in use: over all nodes, and on one. Reads only."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select

from portal_app.db import Database
from portal_app.models import Offer, Profile
from portal_app.services.fullness import Use, uses
from portal_app.services.statistics import Seen
from portal_app.statements import Statement, run
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
    display_name: str
    networks: tuple[str, ...]
    ports: tuple[str, ...]
    use: Use


_OFFERS = Statement(
    select(*Offer.__table__.columns, Profile.display_name)
    .join(Profile, Profile.profile_id == Offer.profile_id)
    .where(Offer.node_number.between(bindparam("first"), bindparam("last")))
    .order_by(Offer.node_number, Profile.position)
)
_PROFILES = Statement(select(*Profile.__table__.columns).order_by(Profile.position))


def parts(db: Database, nodes: Sequence[Seen]) -> list[Part]:
    """Return what these nodes, which are in their order, serve; in the order of numbers and profiles."""
    if not nodes:
        return []
    said = {seen.node.number: seen.info for seen in nodes}
    offers = run(db, _OFFERS, {"first": nodes[0].node.number, "last": nodes[-1].node.number})
    return [
        part
        for offer in offers
        if offer.node_number in said
        for part in _parts(offer, said[offer.node_number])
    ]


def _parts(offer: Any, info: dict[str, Any]) -> list[Part]:
    found = []
    for use in uses(offer, info):
        if use.protocol == WIREGUARD:
            shares = offer.wireguard or {}
            networks = [shares["ipv4"], shares["ipv6"]]
            ports = []
        else:
            networks = [process["ipv4"] for process in offer.openvpn]
            ports = [f"{process['protocol']}/{process['port']}" for process in offer.openvpn]
        found.append(
            Part(
                offer.node_number,
                offer.profile_id,
                offer.display_name,
                tuple(map(str, networks)),
                tuple(ports),
                use,
            )
        )
    return found


def ranges(db: Database, nodes: Sequence[Seen], of_nodes: Sequence[Part]) -> list[Range]:
    """Return the ranges of every profile in the order of the inventory; needs all nodes and their parts."""
    names = {seen.node.number: seen.node.name for seen in nodes}
    by_range: defaultdict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in of_nodes:
        by_range[part.profile_id, part.use.protocol].append(part)
    found = []
    for profile in run(db, _PROFILES):
        for protocol, range_ in ((WIREGUARD, profile.wireguard), (OPENVPN, profile.openvpn)):
            if range_ is not None:
                found.append(_range(profile, protocol, range_, by_range[profile.profile_id, protocol], names))
    return found


def _range(
    profile: Any, protocol: str, range_: dict[str, Any], of_nodes: list[Part], names: dict[int, str]
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
