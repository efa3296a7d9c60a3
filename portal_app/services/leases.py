"""WireGuard addresses: taken and given back in a constant number of steps, however many are in use.

Addresses that were never used come first, then the one that waits longest, so that an address rests before
it is given again. Callers hold the node's lock (``nodes.lock``); the unique constraints of ``connections``
are the second line.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from portal_app.models import FreeAddress, Offer
from vpn_core.ranges import client_addresses


@dataclass(frozen=True)
class Lease:
    """One client's place in a node's range. Nobody had the address at or after ``free_since``."""

    position: int
    ipv4: str
    ipv6: str
    ipv4_prefix: int
    ipv6_prefix: int
    free_since: datetime | None


@dataclass(frozen=True)
class Returned:
    node_number: int
    profile_id: str
    position: int
    freed_at: datetime


def take(db: Session, node_number: int, profile_id: str) -> Lease | None:
    """Take a free address of a profile on a node; None when all are in use."""
    offer = (Offer.node_number == node_number, Offer.profile_id == profile_id)
    fresh = db.execute(
        update(Offer)
        .where(*offer, Offer.wireguard.is_not(None), Offer.next_position < Offer.capacity)
        .values(next_position=Offer.next_position + 1, allocated=Offer.allocated + 1)
        .returning(Offer.next_position, Offer.wireguard)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if fresh is not None:
        return _lease(fresh.next_position - 1, fresh.wireguard, None)
    longest_waiting = (
        select(FreeAddress.id)
        .where(FreeAddress.node_number == node_number, FreeAddress.profile_id == profile_id)
        .order_by(FreeAddress.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    waiting = db.execute(
        delete(FreeAddress)
        .where(FreeAddress.id == longest_waiting.scalar_subquery())
        .returning(FreeAddress.position, FreeAddress.freed_at)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if waiting is None:
        return None
    share = db.execute(
        update(Offer)
        .where(*offer)
        .values(allocated=Offer.allocated + 1)
        .returning(Offer.wireguard)
        .execution_options(synchronize_session=False)
    ).scalar_one()
    return _lease(waiting.position, share, waiting.freed_at)


def give_back(db: Session, returned: Iterable[Returned]) -> None:
    """Let addresses be given again, the first returned first."""
    rows = [vars(item) for item in returned]
    if not rows:
        return
    db.execute(insert(FreeAddress), rows)
    for (node_number, profile_id), count in sorted(
        Counter((row["node_number"], row["profile_id"]) for row in rows).items()
    ):
        db.execute(
            update(Offer)
            .where(Offer.node_number == node_number, Offer.profile_id == profile_id)
            .values(allocated=Offer.allocated - count)
            .execution_options(synchronize_session=False)
        )


def _lease(position: int, share: dict[str, str], free_since: datetime | None) -> Lease:
    ipv4, ipv6 = IPv4Network(share["ipv4"]), IPv6Network(share["ipv6"])
    addresses = client_addresses(ipv4, ipv6, position)
    return Lease(position, *addresses, ipv4.prefixlen, ipv6.prefixlen, free_since)
