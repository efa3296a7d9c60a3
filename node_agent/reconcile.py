"""What turns the peers that are into the peers that should be. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Peer(NamedTuple):
    """A WireGuard peer; ``extras`` names what this node never sets (preshared key, keepalive).

    A tuple, because all of a node's peers are compared every few seconds.
    """

    allowed_ips: frozenset[str]
    extras: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Remove:
    public_key: str


@dataclass(frozen=True)
class Set:
    public_key: str
    peer: Peer


Change: TypeAlias = Remove | Set


def changes(
    wanted: Mapping[str, Peer], observed: Mapping[str, Peer], *, keep: frozenset[str] | None = frozenset()
) -> Iterator[Change]:
    """Yield what turns ``observed`` into ``wanted``; removals first: they free addresses.

    ``keep`` are keys that are left as they are though nobody wants them; None keeps all of them.
    """
    for key in observed.keys() - wanted.keys():
        if keep is not None and key not in keep:
            yield Remove(key)
    # `wg set` does not take a preshared key or keepalive away with certainty: such a peer is made anew.
    for key, peer in wanted.items():
        if key in observed and observed[key].extras != peer.extras:
            yield Remove(key)
    for key, peer in wanted.items():
        if observed.get(key) != peer:
            yield Set(key, peer)
