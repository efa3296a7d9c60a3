"""How full a node's share of a profile is, and the alarm before it is full (reliability.md R62)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.errors import N_
from portal_app.events import log
from portal_app.models import Node, NodeStatus, Offer
from portal_app.services import audit, choice
from portal_app.texts import Percent, Text, text
from vpn_core.messages import OPENVPN, WIREGUARD

#: Percent. An alarm comes once: between the two bounds nothing is said.
ALARM, OVER = 90, 80
#: Colours of a level, as the badges of pages are called.
GOOD, WARN, BAD = "good", "warn", "bad"
_PLACES = {WIREGUARD: "WireGuard addresses", OPENVPN: "OpenVPN places"}
_REMARKS = {
    WIREGUARD: N_("profile %(profile)s: %(percent)s of %(places)s WireGuard addresses in use"),
    OPENVPN: N_("profile %(profile)s: %(percent)s of %(places)s OpenVPN places in use"),
}


@dataclass(frozen=True)
class Use:
    """Places of one protocol: WireGuard addresses given out, or OpenVPN clients attached."""

    protocol: str
    used: int
    places: int

    @property
    def percent(self) -> int:
        return min(100, 100 * self.used // self.places) if self.places else 0

    @property
    def left(self) -> int:
        return max(0, self.places - self.used)

    @property
    def level(self) -> str:
        return BAD if self.percent >= ALARM else WARN if self.percent >= OVER else GOOD

    def __str__(self) -> str:
        return f"{self.percent} % of {self.places} {_PLACES[self.protocol]}"


def uses(offer: Offer, info: Mapping[str, Any] | None) -> list[Use]:
    """Return what is in use of each protocol that a node offers of a profile, by what it said last."""
    found = []
    if offer.wireguard is not None:
        found.append(Use(WIREGUARD, offer.allocated, offer.capacity))
    if offer.openvpn:
        clients = sum(process["max_clients"] for process in offer.openvpn)
        found.append(Use(OPENVPN, choice.attached(info or {}, offer.profile_id), clients))
    return found


def of(offer: Offer, info: Mapping[str, Any] | None) -> Use | None:
    """Return how full an offer's fuller protocol is; None when it has no places at all."""
    return max(
        (use for use in uses(offer, info) if use.places), key=lambda use: use.used / use.places, default=None
    )


def remark(offer: Offer, info: Mapping[str, Any] | None) -> Text | None:
    """Return what there is to say about a nearly full share."""
    full = of(offer, info)
    if full is None:
        return None
    return text(
        _REMARKS[full.protocol], profile=offer.profile_id, percent=Percent(full.percent), places=full.places
    )


@retried
def watch(now: datetime) -> None:
    """Say which shares have become nearly full, and which have room again."""
    with transaction(read_only=True) as db:
        rows = db.execute(
            select(Offer, Node.name, NodeStatus.info)
            .join(Node, Node.number == Offer.node_number)
            .outerjoin(NodeStatus, NodeStatus.node_number == Offer.node_number)
        ).all()
    for offer, name, info in rows:
        fullness = of(offer, info)
        percent = fullness.percent if fullness else 0
        if offer.full_since is None and percent >= ALARM:
            _alarm(offer, name, fullness, now)
        elif offer.full_since is not None and percent < OVER:
            _over(offer, name, fullness)


def _alarm(offer: Offer, name: str, fullness: Use | None, now: datetime) -> None:
    with transaction() as db:
        if not _moved(db, offer, now):
            return
        audit.record(
            db,
            "node.nearly_full",
            actor="controller",
            object=name,
            now=now,
            profile=offer.profile_id,
            full=str(fullness),
        )
    log("node_nearly_full", level=logging.WARNING, node=name, profile=offer.profile_id, full=fullness)


def _over(offer: Offer, name: str, fullness: Use | None) -> None:
    with transaction() as db:
        moved = _moved(db, offer, None)
    if moved:
        log("node_has_room", node=name, profile=offer.profile_id, full=fullness)


def _moved(db: Session, offer: Offer, full_since: datetime | None) -> bool:
    """Write the new state; False when it was there already, or the offer is gone."""
    unmoved = Offer.full_since.is_(None) if full_since else Offer.full_since.is_not(None)
    moved = db.execute(
        update(Offer)
        .where(Offer.node_number == offer.node_number, Offer.profile_id == offer.profile_id, unmoved)
        .values(full_since=full_since)
        .returning(Offer.node_number)
        .execution_options(synchronize_session=False)
    )
    return moved.one_or_none() is not None
