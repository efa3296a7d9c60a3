"""WireGuard addresses: taken and given back in a constant number of steps, however many are in use.

Addresses that were never used come first, then the one that waits longest, so that an address rests before
it is given again. Callers hold the node's lock (``nodes.lock``); the unique constraints of ``connections``
are the second line.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from sqlalchemy import bindparam, delete, insert, select, update

from portal_app.db import Database
from portal_app.models import FreeAddress, Offer
from portal_app.statements import Asked, Statement, run, run_together
from vpn_core.ranges import client_addresses


@dataclass(frozen=True)
class Lease:
    """One client's place in a node's range, which is ``networks``. Nobody had the address at or after
    ``free_since``.
    """

    position: int
    ipv4: str
    ipv6: str
    networks: tuple[str, str]
    free_since: datetime | None


class Offered(Protocol):
    """An offer as it was read; ``wireguard`` is the node's share of the range."""

    wireguard: dict[str, str] | None
    next_position: int
    capacity: int


@dataclass(frozen=True)
class Returned:
    node_number: int
    profile_id: str
    position: int
    freed_at: datetime


_OFFER = (Offer.node_number == bindparam("node"), Offer.profile_id == bindparam("profile"))
_FIND = Statement(select(Offer.wireguard, Offer.next_position, Offer.capacity).where(*_OFFER))
_TAKE_FRESH = Statement(
    update(Offer).where(*_OFFER).values(next_position=Offer.next_position + 1, allocated=Offer.allocated + 1)
)
_WAITING = select(FreeAddress.id).where(
    FreeAddress.node_number == bindparam("node"), FreeAddress.profile_id == bindparam("profile")
)
_LONGEST_WAITING = _WAITING.order_by(FreeAddress.id).limit(1).with_for_update(skip_locked=True)
_ALLOCATE_WAITING = Statement(
    update(Offer).where(*_OFFER, _WAITING.exists()).values(allocated=Offer.allocated + 1)
)
_TAKE_WAITING = Statement(
    delete(FreeAddress)
    .where(FreeAddress.id == _LONGEST_WAITING.scalar_subquery())
    .returning(FreeAddress.position, FreeAddress.freed_at)
)
_ALLOCATE = Statement(update(Offer).where(*_OFFER).values(allocated=Offer.allocated + bindparam("count")))
_GIVE_BACK = Statement(insert(FreeAddress).inline())


def take(db: Database, node_number: int, profile_id: str) -> Lease | None:
    """Take a free address of a profile on a node; None when all are in use."""
    which = {"node": node_number, "profile": profile_id}
    found = run(db, _FIND, which).one_or_none()
    return None if found is None else take_of(db, node_number, profile_id, found)


def take_of(db: Database, node_number: int, profile_id: str, offer: Offered) -> Lease | None:
    """As ``take``, of an offer that was read under the node's lock."""
    which = {"node": node_number, "profile": profile_id}
    if offer.wireguard is None:
        return None
    if offer.next_position < offer.capacity:
        run(db, _TAKE_FRESH, which)
        return _lease(offer.next_position, offer.wireguard, None)
    _, found = run_together(db, [(_ALLOCATE_WAITING, which), (_TAKE_WAITING, which)])
    waiting = found.one_or_none()
    if waiting is None:
        return None
    return _lease(waiting.position, offer.wireguard, waiting.freed_at)


def giving_back(returned: Iterable[Returned]) -> Iterator[Asked]:
    """Yield what lets addresses be given again, the first returned first (``run_together``)."""
    counts: Counter[tuple[int, str]] = Counter()
    for item in returned:
        counts[item.node_number, item.profile_id] += 1
        yield _GIVE_BACK, vars(item)
    for (node_number, profile_id), count in sorted(counts.items()):
        yield _ALLOCATE, {"node": node_number, "profile": profile_id, "count": -count}


@functools.lru_cache(maxsize=1024)
def _networks(ipv4: str, ipv6: str) -> tuple[IPv4Network, IPv6Network]:
    return IPv4Network(ipv4), IPv6Network(ipv6)


def _lease(position: int, share: dict[str, str], free_since: datetime | None) -> Lease:
    ipv4, ipv6 = _networks(share["ipv4"], share["ipv6"])
    addresses = client_addresses(ipv4, ipv6, position)
    return Lease(position, *addresses, (share["ipv4"], share["ipv6"]), free_since)
