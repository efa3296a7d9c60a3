"""Whether people can connect, in words for them: what a connect would find now, without any node's name."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from portal_app.services import choice, nodes, profiles
from portal_app.services.choice import Candidate
from portal_app.settings import Settings
from portal_app.statements import run
from vpn_core.look import Planned
from vpn_core.messages import OPENVPN, WIREGUARD

AVAILABLE, LIMITED, UNAVAILABLE = "available", "limited", "unavailable"
#: Fewer nodes than this share of a profile's take new connections: it is slower, or a way is missing.
_FEW = 0.5
#: Less than this share of its places is free.
_NEARLY_FULL = 0.05


@dataclass(frozen=True)
class ProfileStatus:
    profile_id: str
    display_name: str
    state: str


def of_profiles(db: Session, user: profiles.HasPermissions, *, now: datetime) -> list[ProfileStatus]:
    """Return how each profile is that the user may use, in the order in which they see them."""
    return [
        ProfileStatus(
            profile.profile_id,
            profile.display_name,
            _state(run(db, *nodes.offering(profile.profile_id)), now),
        )
        for profile in profiles.offered(db, user)
    ]


def worst(found: Sequence[ProfileStatus]) -> str:
    """Sum several profiles up: unavailable only if nothing works."""
    states = {profile.state for profile in found}
    if len(states) == 1:
        return states.pop()
    return LIMITED if states else UNAVAILABLE


def planned(settings: Settings, *, now: datetime) -> list[Planned]:
    """Return the announced work that is not over yet, the next first."""
    return [notice for notice in settings.planned if notice.ends_at > now]


def _state(rows: Sequence[Any], now: datetime) -> str:
    taking: dict[int, Candidate] = {}
    for protocol in (WIREGUARD, OPENVPN):
        for candidate in choice.choose(rows, protocol, now).candidates:
            taking.setdefault(candidate.node.number, candidate)
    if not taking:
        return UNAVAILABLE
    places = sum(max(row.capacity, sum(process["max_clients"] for process in row.openvpn)) for row in rows)
    free = sum(candidate.free for candidate in taking.values())
    few = len(taking) < len(rows) and len(taking) <= _FEW * len(rows)
    return LIMITED if few or free < _NEARLY_FULL * places else AVAILABLE
