"""Connections: made, replaced, ended. A row and a generation first, a call to the node second.

No transaction spans a call to a node. What a call could not do, the reconcile round repairs.
"""

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import func, select

from portal_app.application import portal
from portal_app.db import Database, connected, transaction
from portal_app.errors import (
    N_,
    BadRequest,
    Forbidden,
    NoCapacity,
    NoCommonProtocol,
    NodeBusy,
    NodeRefused,
    NodeUnreachable,
    NotFound,
    PortalError,
    Superseded,
    Unavailable,
)
from portal_app.events import log
from portal_app.models import Connection, User
from portal_app.render import client_config
from portal_app.services import audit, choice, machines, nodes, profiles, refusals, transports
from portal_app.services.ending import CUT_SECONDS, Ended, end, tell
from portal_app.services.making import Holder, Made, NoPlaceError, Order, make, withdraw
from portal_app.statements import Asked, Rows, run_together
from vpn_core.messages import OPENVPN, WIREGUARD, Admit

__all__ = ["Ended", "Holder", "Issued", "Wanted", "connect", "create_for_portal", "end", "tell"]

logger = logging.getLogger(__name__)

#: What somebody reads who ends something that is there no more.
GONE = N_("It is not there, or has ended already.")

#: The app waits 10 s; every /connect is answered within 5, once a thread has begun with it (reliability.md
#: R42, R54, R96).
BUDGET_SECONDS = 4.5
ADMIT_SECONDS = 1.4


@dataclass(frozen=True)
class Wanted:
    """What an app asks for (spec api-v3.md 7.1)."""

    profile_id: str
    public_key: str | None
    accepts: frozenset[str]
    prefer_tcp: bool = False


@dataclass(frozen=True)
class Issued:
    """A configuration to hand out. ``config`` may hold a private key: never stored, cached or logged.

    ``file_name`` is what it is saved as, of a configuration made on the portal's pages.
    """

    config: str
    content_type: str
    expires_at: datetime
    connection_id: str
    file_name: str


@dataclass(frozen=True)
class _Serving:
    """The nodes of a profile as they were read, and where the app gives an address of it back."""

    rows: Sequence[Any]
    held: Collection[int]


@dataclass(frozen=True)
class Prepared:
    """A connect whose request was found good: what to make, in which order to try, until when (monotonic)."""

    wish: Order
    attempts: Sequence[transports.Attempt]
    serving: _Serving
    ends_at: float


def connect(holder: Holder, wanted: Wanted, *, now: datetime) -> Issued:
    """Replace what this authorization holds by one new connection, usable when this returns.

    Validates first. Raises NotFound when the user may not use the profile, NoCommonProtocol when nothing
    the app can do is offered, KeyInUse for another user's public key, NoCapacity when no node that answers
    has room.
    """
    ends_at = budget_end()
    with connected(read_only=True) as db:
        read = run_together(db, offered(wanted.profile_id))
        prepared = prepare(db, holder, wanted, read, now=now, ends_at=ends_at)
    return issue(prepared)


def budget_end() -> float:
    """Return until when (monotonic) a connect that begins now tries; what it reads first is part of it."""
    return time.monotonic() + BUDGET_SECONDS


def offered(profile_id: str) -> list[Asked]:
    """Return what to ask for a profile and the nodes that offer it."""
    return [profiles.one(profile_id), nodes.offering(profile_id)]


def prepare(
    db: Database, holder: Holder, wanted: Wanted, read: Sequence[Rows], *, now: datetime, ends_at: float
) -> Prepared:
    """Validate what ``connect`` gets, and look at what was ``offered``; changes nothing."""
    if portal().settings.max_app_connections < 1:
        raise Forbidden("no API configuration downloads allowed")
    profile, offering = _allowed(holder, read)
    if profile is None:
        raise _because(NotFound('no such "profile_id"'), profiles.refusal(read[0], holder))
    accepts, has_key = wanted.accepts, wanted.public_key is not None
    offers = transports.supported(profile)
    order = transports.in_order(
        offers,
        accepts,
        has_key=has_key,
        preferred=profile.preferred_protocol,
        prefer_tcp=wanted.prefer_tcp,
    )
    if not order:
        raise _because(
            NoCommonProtocol("no common VPN protocol between the app and this profile"),
            transports.nothing_in_common(offers, accepts, has_key=has_key),
        )
    serving = _serving(db, holder, offering)
    wish = Order(
        holder=holder,
        profile=profile,
        display_name=device_name(holder),
        expires_at=holder.expires_at or now,
        now=now,
        public_key=wanted.public_key,
    )
    return Prepared(wish, transports.attempts(order, prefer_tcp=wanted.prefer_tcp), serving, ends_at)


def device_name(holder: Holder) -> str:
    """Return what a connection of an app is called."""
    client = portal().clients.get(holder.client_id or "")
    return (client.name if client else holder.client_id or "app")[:64]


def _because(error: PortalError, why: str) -> PortalError:
    """Return an error with what administrators read about it."""
    error.add_note(why)
    return error


def issue(prepared: Prepared) -> Issued:
    """Make what was prepared; the caller's transaction has ended by then."""
    return _first_that_answers(prepared.wish, prepared.attempts, prepared.serving, prepared.ends_at)


def create_for_portal(
    user: User,
    profile_id: str,
    protocol: str,
    display_name: str,
    *,
    prefer_tcp: bool = False,
    node: str | None = None,
    expires_in: timedelta | None = None,
    limited: bool = True,
    by: audit.By | None = None,
    now: datetime,
) -> Issued:
    """Make a configuration with a key of the server's making, to be downloaded once.

    ``node`` names the only one that will do; an operator (``limited`` false) is not bound by how many a user
    may have. With ``by`` it is an audit row, and so is its end if no node takes it. It is good as long as a
    session, or ``expires_in``. Raises BadRequest when that is longer, Forbidden when the user has as many as
    allowed, NotFound, NoCommonProtocol and NoCapacity as ``connect``.
    """
    settings = portal().settings
    longest = timedelta(seconds=settings.session_expiry_seconds)
    lasts = longest if expires_in is None else expires_in
    if lasts > longest:
        raise BadRequest(
            f"expires_in: at most {settings.session_expiry_seconds} seconds, as long as a session lasts"
        )
    ends_at = budget_end()
    holder = Holder(user.id, user.name, list(user.permissions))
    if limited and settings.max_portal_connections < 1:
        raise Forbidden(N_("configurations cannot be made here; use the app"))
    with transaction(read_only=True) as db:
        profile, offering = _allowed(holder, run_together(db, offered(profile_id)))
        if profile is None:
            raise NotFound(N_("no such profile"))
        if {WIREGUARD: profile.wireguard, OPENVPN: profile.openvpn}.get(protocol) is None:
            raise NoCommonProtocol(N_("the profile does not offer %(protocol)s"), protocol=protocol)
        serving = _serving(db, holder, [row for row in offering if node in (None, row.name)])
    private_key, public_key = client_config.wireguard_key_pair() if protocol == WIREGUARD else (None, None)
    wish = Order(
        holder=holder,
        profile=profile,
        display_name=display_name[:64],
        expires_at=min(now + lasts, portal().signer.not_after),
        now=now,
        public_key=public_key,
        private_key=private_key,
        from_portal=True,
        limited=limited,
        by=by,
    )
    attempt = transports.Attempt(protocol, prefer_tcp, "asked for")
    try:
        return _first_that_answers(wish, [attempt], serving, ends_at)
    except refusals.NOTED as error:
        refusals.note(user.id, display_name, profile_id, error, now=now)
        raise


def _allowed(holder: Holder, read: Sequence[Rows]) -> tuple[Any, Sequence[Any]]:
    """Return a profile, None if this user may not use it, and the nodes that offer it."""
    found, offering = read
    allowed = profiles.among(found, holder)
    return (allowed[0] if allowed else None), offering


def _serving(db: Database, holder: Holder, rows: Sequence[Any]) -> _Serving:
    held: Collection[int] = ()
    # Only a full node has to know whether the app's own address comes back.
    if holder.authorization_id is not None and any(row.allocated >= row.capacity > 0 for row in rows):
        held = set(
            db.scalars(
                select(Connection.node_number).where(
                    Connection.authorization_id == holder.authorization_id,
                    Connection.profile_id == rows[0].profile_id,
                    Connection.position.is_not(None),
                )
            )
        )
    return _Serving(rows, held)


def _first_that_answers(
    wish: Order, attempts: Sequence[transports.Attempt], serving: _Serving, ends_at: float
) -> Issued:
    """Try node after node and protocol after protocol until one admits the connection."""
    made: Made | None = None
    passed: list[str] = []
    try:
        for attempt in attempts:
            chosen = choice.choose(
                serving.rows,
                attempt.protocol,
                wish.now,
                selection=portal().settings.node_selection,
                held=serving.held,
            )
            left_out = dict(chosen.left_out)
            for candidate in chosen.candidates:
                name = candidate.node.name
                if ends_at - time.monotonic() < 0.2:
                    left_out[name] = "not asked, the time is over"
                    continue
                how = f"{attempt.protocol}: {attempt.reason}" if attempt.reason else ""
                why = chosen.explain(candidate, left_out, passed, how)
                withdrawn = made.row.connection_id if made else None
                try:
                    made = make(wish, attempt, candidate, why, withdrawn=withdrawn)
                except NoPlaceError as error:
                    left_out[name] = str(error)
                    continue
                issued = _issue(wish, attempt, made)
                if (trouble := _admit(wish, made, ends_at)) is None:
                    _log_connect(wish, made)
                    return issued
                left_out[name] = trouble
            passed.append(f"no {attempt.protocol}: {choice.listed(left_out) or 'no node offers it'}")
    except Exception:
        if made is not None:
            # Nobody gets to know of this connection. A database that is away keeps it until the next connect.
            with suppress(Unavailable):
                withdraw(wish, made)
        raise
    if made is not None:
        withdraw(wish, made)
    why = choice.cut("; ".join(passed), refusals.LONGEST_WHY)
    log(
        "no_capacity",
        level=logging.WARNING,
        user=wish.holder.user_name,
        profile=wish.profile.profile_id,
        why=why,
    )
    raise _because(NoCapacity(N_("no capacity: no VPN server of this profile has room at the moment")), why)


def _admit(wish: Order, made: Made, ends_at: float) -> str | None:
    """Tell the nodes; None when the connection is usable, else what is wrong. A node that does not answer is
    kept out of the way.
    """
    # A key or address first leaves its old connection, else the old one's removal would hit the new one.
    moving = [item for item in made.ended if _moves(item, made)]
    tell([item for item in made.ended if item not in moving], wait=False)
    tell(moving, seconds=max(0.1, min(CUT_SECONDS, ends_at - time.monotonic())))
    try:
        _admit_to_known(made, wish.now, ends_at)
    except NodeRefused as error:
        if error.agent_status == 409 and not _exists(made.row.connection_id):
            raise Superseded("ended by a later request of the same app") from error
        # Fast, and perhaps only about this profile: no reason to keep others away.
        logger.warning("admission refused: %s", error)
        return "refused"
    except NodeBusy as error:
        logger.warning("admission in no time: %s", error)
        return "too busy"
    except NodeUnreachable as error:
        logger.warning("admission without answer: %s", error)
        nodes.mark_suspect(made.candidate.node.number, wish.now)
        return "did not answer"
    return None


def _admit_to_known(made: Made, now: datetime, ends_at: float) -> None:
    """Let the machine admit that the controller has heard, also when it has rebooted, but no other (R60)."""
    agents, node = portal().agents, made.candidate.node
    admit = partial(
        agents.admit, node, Admit(made.authority, made.row), seconds=ADMIT_SECONDS, ends_at=ends_at
    )
    try:
        admit(boot_id=made.candidate.boot_id)
    except NodeRefused as error:
        if error.agent_status != 412:
            raise
        left = max(0.1, min(ADMIT_SECONDS, ends_at - time.monotonic()))
        admit(boot_id=machines.present_boot(agents, node, now, seconds=left))


def _moves(item: Ended, made: Made) -> bool:
    same_key = item.public_key is not None and item.public_key == made.row.public_key
    same_address = item.ipv4 is not None and item.ipv4 == made.row.ipv4
    return item.node.number == made.candidate.node.number and (same_key or same_address)


def _exists(connection_id: str) -> bool:
    with transaction(read_only=True) as db:
        found = db.scalar(select(func.count()).select_from(Connection).where(Connection.id == connection_id))
    return bool(found)


def _issue(wish: Order, attempt: transports.Attempt, made: Made) -> Issued:
    certificate = None
    if attempt.protocol == OPENVPN:
        certificate = portal().signer.issue(
            made.row.connection_id, wish.profile.profile_id, expires_at=wish.expires_at, now=wish.now
        )
    config = client_config.render(
        client_config.Facts(
            profile=wish.profile,
            hostname=made.candidate.hostname,
            expires_at=wish.expires_at,
            from_portal=wish.from_portal,
            tcp_first=attempt.tcp_first,
            lease=made.lease,
            node_public_key=made.candidate.wireguard_public_key,
            private_key=wish.private_key,
            port=made.wireguard_port,
            certificate=certificate,
        ),
        portal(),
    )
    return Issued(
        config=config,
        content_type=transports.OPENVPN_TYPE if attempt.protocol == OPENVPN else transports.WIREGUARD_TYPE,
        expires_at=wish.expires_at,
        connection_id=made.row.connection_id,
        file_name=_file_name(wish, attempt) if wish.from_portal else "",
    )


def _file_name(wish: Order, attempt: transports.Attempt) -> str:
    return client_config.file_name(
        portal().settings.host_name,
        wish.profile.profile_id,
        wish.display_name,
        attempt.protocol,
        wish.now,
    )


def _log_connect(wish: Order, made: Made) -> None:
    log(
        "connect",
        user=wish.holder.user_name,
        client=wish.holder.client_id,
        connection=made.row.connection_id,
        profile=made.row.profile_id,
        protocol=made.row.protocol,
        node=made.candidate.node.name,
        ipv4=made.row.ipv4,
        ipv6=made.row.ipv6,
        expires=wish.expires_at,
        choice=made.why,
    )
