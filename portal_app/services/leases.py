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

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from portal_app.db import run
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


_OFFER = (Offer.node_number == bindparam("node"), Offer.profile_id == bindparam("profile"))
_TAKE_FRESH = (
    update(Offer)
    .where(*_OFFER, Offer.wireguard.is_not(None), Offer.next_position < Offer.capacity)
    .values(next_position=Offer.next_position + 1, allocated=Offer.allocated + 1)
    .returning(Offer.next_position, Offer.wireguard)
)
_LONGEST_WAITING = (
    select(FreeAddress.id)
    .where(FreeAddress.node_number == bindparam("node"), FreeAddress.profile_id == bindparam("profile"))
    .order_by(FreeAddress.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_TAKE_WAITING = (
    delete(FreeAddress)
    .where(FreeAddress.id == _LONGEST_WAITING.scalar_subquery())
    .returning(FreeAddress.position, FreeAddress.freed_at)
)
_ALLOCATE = (
    update(Offer)
    .where(*_OFFER)
    .values(allocated=Offer.allocated + bindparam("count"))
    .returning(Offer.wireguard)
)
_GIVE_BACK = insert(FreeAddress)


def take(db: Session, node_number: int, profile_id: str) -> Lease | None:
    """Take a free address of a profile on a node; None when all are in use."""
    offer = {"node": node_number, "profile": profile_id}
    fresh = run(db, _TAKE_FRESH, offer).one_or_none()
    if fresh is not None:
        return _lease(fresh.next_position - 1, fresh.wireguard, None)
    waiting = run(db, _TAKE_WAITING, offer).one_or_none()
    if waiting is None:
        return None
    share = run(db, _ALLOCATE, offer | {"count": 1}).scalar_one()
    return _lease(waiting.position, share, waiting.freed_at)


def give_back(db: Session, returned: Iterable[Returned]) -> None:
    """Let addresses be given again, the first returned first."""
    rows = [vars(item) for item in returned]
    if not rows:
        return
    run(db, _GIVE_BACK, rows)
    for (node_number, profile_id), count in sorted(
        Counter((row["node_number"], row["profile_id"]) for row in rows).items()
    ):
        run(db, _ALLOCATE, {"node": node_number, "profile": profile_id, "count": -count})


def _lease(position: int, share: dict[str, str], free_since: datetime | None) -> Lease:
    ipv4, ipv6 = IPv4Network(share["ipv4"]), IPv6Network(share["ipv6"])
    addresses = client_addresses(ipv4, ipv6, position)
    return Lease(position, *addresses, ipv4.prefixlen, ipv6.prefixlen, free_since)
