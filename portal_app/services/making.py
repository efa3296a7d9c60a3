"""The transaction that makes one connection, its row, its address, and the end of what it replaces; and the
one that takes it back where no node admits it.

Everything was decided before (``connections``), and is looked at again here under locks.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, insert, or_, select, update

from portal_app.application import portal
from portal_app.db import Database, connected, retried, transaction
from portal_app.errors import Forbidden, InvalidToken, KeyInUse, NotFound
from portal_app.models import AddressUse, Authorization, Connection, Profile, User
from portal_app.services import audit, choice, ending, leases, nodes, profiles, transports
from portal_app.services.ending import Ended, end, tell
from portal_app.statements import Asked, Statement, run_together
from vpn_core.messages import WIREGUARD, Authority
from vpn_core.messages import Connection as ConnectionMessage


@dataclass(frozen=True)
class Holder:
    """Who a connection is for. Without ``authorization_id`` it was made on the portal's pages."""

    user_id: int
    user_name: str
    permissions: list[str]
    client_id: str | None = None
    authorization_id: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Order:
    """One connection to be made: everything that was decided before an address is taken."""

    holder: Holder
    profile: Profile
    display_name: str
    expires_at: datetime
    now: datetime
    public_key: str | None = None
    private_key: str | None = None
    from_portal: bool = False
    limited: bool = True
    by: audit.By | None = None


@dataclass(frozen=True)
class Made:
    """A committed row, and what its node and its user are told."""

    row: ConnectionMessage
    authority: Authority
    candidate: choice.Candidate
    why: str
    lease: leases.Lease | None
    wireguard_port: int
    ended: list[Ended] = field(default_factory=list)


class NoPlaceError(Exception):
    """The candidate takes nobody after all, and why; so nothing was ended for it."""


_OF_OWNER = Statement(ending.ROWS.where(Connection.user_id == bindparam("user")))
_OF_OWNER_OR_KEY = Statement(
    ending.ROWS.where(or_(Connection.user_id == bindparam("user"), Connection.public_key == bindparam("key")))
)
_LOCK_USER = Statement(
    select(User.is_disabled, User.permissions)
    .where(User.id == bindparam("user"))
    .with_for_update(key_share=True)
)
_USE_AUTHORIZATION = Statement(
    update(Authorization)
    .where(Authorization.id == bindparam("authorization"), Authorization.expires_at > bindparam("now"))
    .values(last_used_at=bindparam("now"))
    .returning(Authorization.id)
)
_INSERT, _RECORD_USE = Statement(insert(Connection).inline()), Statement(insert(AddressUse).inline())


@retried
def make(
    wish: Order, attempt: transports.Attempt, candidate: choice.Candidate, why: str, *, withdrawn: str | None
) -> Made:
    """Commit the row of one connection at ``candidate``, and the end of what it replaces."""
    holder, now = wish.holder, wish.now
    with connected() as db:
        key = wish.public_key if attempt.protocol == WIREGUARD else None
        permissions, found = _lock_holder(db, holder, key, now)
        reasons, of_limit = _to_end(wish, attempt, found, withdrawn)
        replaced = [row for row in found if row.id in reasons]
        number = candidate.node.number
        # Read under the lock that applying a plan takes, too: what one of them takes away the other sees.
        advanced, offer = nodes.advance_to_offer(
            db, {number} | {row.node_number for row in replaced}, number, wish.profile.profile_id
        )
        if offer is None or number not in advanced:
            raise NoPlaceError("full")
        if offer.maintenance_mode:
            raise NoPlaceError("in maintenance")
        if not profiles.may_use(offer, permissions):
            raise NotFound('no such "profile_id"')
        why = choice.with_rules(why, f"{profiles.allowance(offer, permissions)}; {of_limit}")
        ended = ending.end_rows(db, replaced, advanced, lambda row: reasons[row.id], now)
        generation = advanced[number].generation
        if any(item.node.number == number for item in ended):
            generation = nodes.next_generation(db, number)
        lease, started_at = None, now
        if attempt.protocol == WIREGUARD:
            lease = leases.take_of(db, number, wish.profile.profile_id, offer)
            if lease is None:
                raise NoPlaceError("full")
            started_at = max(now, lease.free_since or now)
        elif not _has_room(db, candidate, wish.profile.profile_id):
            raise NoPlaceError("full")
        row: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "user_id": holder.user_id,
            "authorization_id": holder.authorization_id,
            "node_number": number,
            "profile_id": wish.profile.profile_id,
            "protocol": attempt.protocol,
            "public_key": wish.public_key if attempt.protocol == WIREGUARD else None,
            "position": lease.position if lease else None,
            "ipv4": lease.ipv4 if lease else None,
            "ipv6": lease.ipv6 if lease else None,
            "display_name": wish.display_name,
            "created_at": started_at,
            "expires_at": wish.expires_at,
            "generation": generation,
            "choice": why,
        }
        written: list[Asked] = [(_INSERT, row)]
        if lease:
            copied = ("profile_id", "node_number", "protocol", "ipv4", "ipv6")
            use = {key: row[key] for key in copied} | {
                "connection_id": row["id"],
                "user_name": holder.user_name,
                "client_id": holder.client_id,
                "device": wish.display_name,
                "choice": why,
                "started_at": started_at,
            }
            written.append((_RECORD_USE, use))
        written += _recording_withdrawn(wish, [item for item in ended if item.connection_id == withdrawn])
        written += _recording(wish, "configuration made", row["id"], candidate.node.name)
        authority = advanced[number].authority
        port = nodes.wireguard_port(db, authority.deployment_id, offer.plan_applied_at)
        run_together(db, written, last=True)
    return Made(nodes.message_of(row), authority, candidate, why, lease, port, ended)


def _has_room(db: Database, candidate: choice.Candidate, profile_id: str) -> bool:
    """Tell whether an OpenVPN server takes one more client. Few places were left when the node was heard: who
    got in since then is counted, under the node's lock.
    """
    if candidate.reported_free is None:
        return True
    number, heard_at = candidate.node.number, candidate.heard_at
    return nodes.admitted_since(db, number, profile_id, heard_at) < candidate.reported_free


def _lock_holder(
    db: Database, holder: Holder, public_key: str | None, now: datetime
) -> tuple[list[str], Sequence[Any]]:
    """Make the user's connects wait for each other, and look again at what may have ended meanwhile (R35,
    R38, R40). Returns the permissions that the user has now, and the connections of the user and of the key.
    """
    asked: list[Asked] = [(_LOCK_USER, {"user": holder.user_id})]
    if holder.authorization_id is not None:
        asked.append((_USE_AUTHORIZATION, {"authorization": holder.authorization_id, "now": now}))
    if public_key is None:
        asked.append((_OF_OWNER, {"user": holder.user_id}))
    else:
        asked.append((_OF_OWNER_OR_KEY, {"user": holder.user_id, "key": public_key}))
    users, *used, found = run_together(db, asked)
    user = users.one_or_none()
    if user is None or user.is_disabled:
        raise InvalidToken("the account is disabled or gone")
    if not profiles.meets(portal().settings.access_permissions, user.permissions):
        raise InvalidToken("the account may not use this service")
    if used and not used[0]:
        raise InvalidToken("the authorization has ended")
    return user.permissions, found


def _to_end(
    wish: Order, attempt: transports.Attempt, found: Collection[Any], withdrawn: str | None
) -> tuple[dict[str, str], str]:
    """Return what a new connection ends, by id, with the reason, and what the limit decided. Raises KeyInUse
    and Forbidden.
    """
    holder, settings = wish.holder, portal().settings
    if any(row.user_id != holder.user_id for row in found):
        raise KeyInUse("the public key belongs to another user")
    reasons: dict[str, str] = {}
    for row in found:
        if row.id == withdrawn:
            reasons[row.id] = "withdrawn"
        elif holder.authorization_id is not None and row.authorization_id == holder.authorization_id:
            reasons[row.id] = "replaced"
        elif (
            row.public_key is not None and row.public_key == wish.public_key and attempt.protocol == WIREGUARD
        ):
            reasons[row.id] = "same_key"
    living = [row for row in found if row.id not in reasons and row.expires_at > wish.now]
    if wish.from_portal:
        held = sum(row.authorization_id is None for row in living)
        if not wish.limited:
            return reasons, "made by an operator, whom no limit binds"
        if held >= settings.max_portal_connections:
            raise Forbidden(
                f"{settings.max_portal_connections} configurations are allowed; end one of yours first"
            )
        return reasons, f"{held + 1} of {settings.max_portal_connections} configurations by hand"
    of_apps = sorted(
        (row for row in living if row.authorization_id is not None), key=lambda r: (r.created_at, r.id)
    )
    surplus = of_apps[: max(0, len(of_apps) - (settings.max_app_connections - 1))]
    reasons |= {row.id: "device_limit" for row in surplus}
    kept = len(of_apps) - len(surplus) + 1
    ending_oldest = "".join(f", ends the oldest: {row.display_name}" for row in surplus[:1])
    return reasons, f"{kept} of {settings.max_app_connections} connections of apps{ending_oldest}"


@retried
def withdraw(wish: Order, made: Made) -> None:
    """Take back a connection that no node admitted. The node may have heard of it: it is told, unless it is
    silent.
    """
    with transaction() as db:
        ended = end(db, Connection.id == made.row.connection_id, reason="withdrawn", now=wish.now)
        run_together(db, _recording_withdrawn(wish, ended))
    tell(ended, wait=False)


def _recording_withdrawn(wish: Order, ended: Sequence[Ended]) -> list[Asked]:
    return [
        asked
        for item in ended
        for asked in _recording(wish, "configuration withdrawn", item.connection_id, item.node.name)
    ]


def _recording(wish: Order, action: str, connection_id: str, node: str) -> list[Asked]:
    """Return what records an operator's act, in the transaction that does it; nothing for users' own."""
    if wish.by is None:
        return []
    return [
        audit.recording(
            action,
            by=wish.by,
            object=wish.holder.user_name,
            now=wish.now,
            connection=connection_id,
            profile=wish.profile.profile_id,
            node=node,
        )
    ]
