"""Tokens of the admin API: 256 random bits, stored as SHA-256, good for some scopes and until a date.

A token that an admin made is good only while that person is an admin; one of the command line stands for
itself. The pages, the command line and the admin API share this.
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import Select, bindparam, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from portal_app import events, roles
from portal_app.db import Database, retried, transaction
from portal_app.errors import (
    N_,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    PortalError,
    TooManyRequests,
    Unavailable,
)
from portal_app.models import ApiToken, User
from portal_app.roles import Right
from portal_app.services import audit, paging, profiles, throttles
from portal_app.services.throttles import Limit
from portal_app.settings import Settings
from portal_app.statements import Asked, Statement, run

logger = logging.getLogger(__name__)

#: By this, programs that search repositories and logs for secrets know one of ours.
PREFIX = "cwa_"
DEFAULT_LIFE = timedelta(days=90)
LONGEST_LIFE = timedelta(days=366)
#: How old ``last_used_at`` may get before a call writes it again.
TOUCH_AFTER = timedelta(minutes=1)
#: Only wrong tokens count, so they keep nobody out who has a good one, whatever address they share.
PER_SOURCE = Limit("admin API source", burst=20, refill_seconds=10)
LONGEST_NAME = 60
_NAME = re.compile(rf"[a-zA-Z0-9][a-zA-Z0-9._-]{{0,{LONGEST_NAME - 1}}}")
_TOKEN = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")


class Scope(StrEnum):
    """What a token is good for."""

    USERS_READ = "users:read"
    USERS_WRITE = "users:write"
    CONNECTIONS_READ = "connections:read"
    CONNECTIONS_WRITE = "connections:write"
    CONFIGURATIONS_WRITE = "configurations:write"
    NODES_READ = "nodes:read"
    NODES_WRITE = "nodes:write"
    HISTORY_READ = "history:read"
    AUDIT_READ = "audit:read"


#: What each scope lets a script do, in words for people.
LETS = {
    Scope.USERS_READ: N_("See users and the apps that they authorized"),
    Scope.USERS_WRITE: N_(
        "Add, change, disable and delete users, end what they authorized, make links for a new password"
    ),
    Scope.CONNECTIONS_READ: N_("See the connections of everybody"),
    Scope.CONNECTIONS_WRITE: N_("End connections"),
    Scope.CONFIGURATIONS_WRITE: N_("Make configurations for any user, and get them with their private keys"),
    Scope.NODES_READ: N_("See nodes, profiles and the state of the service"),
    Scope.NODES_WRITE: N_("Set maintenance of nodes, drain and reconcile them"),
    Scope.HISTORY_READ: N_("Read who was connected when, with which addresses"),
    Scope.AUDIT_READ: N_("Read the audit log"),
}


class BadToken(PortalError):
    """No token, or one that is not good (any more); which of these is not said."""

    status = 401


@dataclass(frozen=True)
class Caller:
    """Whose token a call came with. ``made_by`` is None for one of the command line."""

    token_id: int
    name: str
    scopes: frozenset[str]
    made_by: str | None

    @property
    def actor(self) -> str:
        """Return what the audit log calls it."""
        return f"api:{self.name}"


@dataclass(frozen=True)
class Listed:
    """A token, and in a word how it is: good, expired, revoked, or suspended while its maker is no admin."""

    token: ApiToken
    state: str


def make(
    name: str,
    scopes: Collection[str],
    *,
    life: timedelta = DEFAULT_LIFE,
    maker: str | None = None,
    check: Callable[[Session], None] = lambda _db: None,
    settings: Settings,
    source: str | None = None,
    now: datetime,
) -> str:
    """Make a token and return it: the only time that it is known. ``maker`` is an admin's name.

    ``check`` is called in the transaction that makes it, and may refuse. Raises BadRequest, Conflict for a
    name that another token has, and Forbidden for a maker who is no admin.
    """
    if not _NAME.fullmatch(name):
        raise BadRequest(
            N_(
                "The name of a token has 1 to %(most)s letters from a to z, digits, dots, hyphens and"
                " underscores, and begins with a letter or a digit."
            ),
            most=LONGEST_NAME,
        )
    if not scopes:
        raise BadRequest(N_("Choose at least one scope: a token without one is good for nothing."))
    if unknown := sorted(set(scopes) - set(Scope)):
        raise BadRequest(
            N_("There is no scope %(scope)s; there are %(scopes)s."),
            scope=repr(unknown[0][:60]),
            scopes=", ".join(Scope),
        )
    if not timedelta(minutes=1) <= life <= LONGEST_LIFE:
        raise BadRequest(
            N_("A token is good for a minute at least and %(most)s days at most."), most=LONGEST_LIFE.days
        )
    token = PREFIX + secrets.token_urlsafe(32)
    _insert(name, sorted(set(scopes)), token, life, maker, check, settings, source, now)
    events.log("api_token_made", token=name, actor=maker or audit.CLI)
    return token


@retried
def _insert(
    name: str,
    scopes: list[str],
    token: str,
    life: timedelta,
    maker: str | None,
    check: Callable[[Session], None],
    settings: Settings,
    source: str | None,
    now: datetime,
) -> None:
    with transaction() as db:
        check(db)
        user = None if maker is None else db.scalar(select(User).where(User.name == maker))
        if maker is not None and (user is None or not _is_admin(user, settings)):
            raise Forbidden(N_("Only an administrator makes tokens."))
        if _living(db, name) is not None:
            raise Conflict(
                N_("A token called %(name)s exists already. Revoke that one first, or take another name."),
                name=name,
            )
        db.add(
            ApiToken(
                name=name, token_hash=_hash(token), scopes=scopes, user_id=user.id if user else None,
                created_by=maker or audit.CLI, created_at=now, expires_at=now + life,
            )
        )  # fmt: skip
        audit.record(
            db, "token made", actor=maker or audit.CLI, object=name, source=source, now=now,
            scopes=scopes, expires_at=(now + life).isoformat(timespec="seconds"),
        )  # fmt: skip


def listed(db: Session, settings: Settings, *, now: datetime) -> list[Listed]:
    """Return every token that is remembered, by name; one that was revoked after the one that is good."""
    rows = db.execute(_with_makers().order_by(ApiToken.name, ApiToken.id.desc())).all()
    return [_listed(token, maker, settings, now) for token, maker in rows]


def page(
    db: Session,
    settings: Settings,
    *,
    revoked: bool = False,
    before: str = "",
    after: str = "",
    now: datetime,
) -> paging.Page:
    """Return tokens as ``Listed``: by name those that are not revoked, or the revoked ones, newest first."""
    if revoked:
        query, order = ApiToken.revoked_at.is_not(None), paging.Order([ApiToken.id], descending=True)
    else:
        # The index that lets one living token have a name is in this order, too.
        query, order = ApiToken.revoked_at.is_(None), paging.Order([ApiToken.name])
    found = paging.read(db, _with_makers().where(query), order, before=before, after=after)
    return replace(found, rows=[_listed(token, maker, settings, now) for token, maker, *_ in found.rows])


_COUNT = Statement(
    select(func.count().label("living")).where(
        ApiToken.user_id == bindparam("user"),
        ApiToken.revoked_at.is_(None),
        ApiToken.expires_at > bindparam("now"),
    )
)


def counting(user_id: int, *, now: datetime) -> Asked:
    """Return what asks how many tokens a user made are ``living``: neither revoked nor expired."""
    return _COUNT, {"user": user_id, "now": now}


def count_of(db: Database, user_id: int, *, now: datetime) -> int:
    """Return how many these are."""
    (row,) = run(db, *counting(user_id, now=now))
    return int(row.living)


def _with_makers() -> Select[ApiToken, User]:
    return select(ApiToken, User).outerjoin(User, User.id == ApiToken.user_id)


def _listed(token: ApiToken, maker: User | None, settings: Settings, now: datetime) -> Listed:
    if token.revoked_at is not None:
        state = "revoked"
    elif token.expires_at <= now:
        state = "expired"
    else:
        state = "good" if _is_backed(token, maker, settings) else "suspended"
    return Listed(token, state)


def _is_backed(token: ApiToken, maker: User | None, settings: Settings) -> bool:
    """Tell whether a token stands for itself, or its maker is an admin now."""
    return token.user_id is None or (maker is not None and _is_admin(maker, settings))


def revoke(name_or_id: str, *, actor: str, source: str | None = None, now: datetime) -> str:
    """End a token at once and return its name. Raises NotFound when there is none that is not ended."""

    def find(db: Session) -> ApiToken | None:
        token = _living(db, name_or_id, lock=True)
        if token is None and name_or_id.isascii() and name_or_id.isdecimal() and len(name_or_id) < 10:
            token = _of_number(db, int(name_or_id))
        return token

    return _revoke(find, name_or_id, actor, source, now)


def revoke_number(token_id: int, *, actor: str, source: str | None = None, now: datetime) -> str:
    """As ``revoke``, of the one token with this number, whatever others are called."""
    return _revoke(lambda db: _of_number(db, token_id), str(token_id), actor, source, now)


@retried
def _revoke(
    find: Callable[[Session], ApiToken | None],
    called: str,
    actor: str,
    source: str | None,
    now: datetime,
) -> str:
    with transaction() as db:
        token = find(db)
        if token is None:
            raise NotFound(
                N_("There is no token %(name)s, or it is revoked already."), name=called[:LONGEST_NAME]
            )
        token.revoked_at = now
        audit.record(db, "token revoked", actor=actor, object=token.name, source=source, now=now)
        name = token.name
    events.log("api_token_revoked", token=name, actor=actor)
    return name


def find(token: str, *, source: str | None, settings: Settings, now: datetime) -> Caller:
    """Return who calls. Looked up by the hash, so that how long it takes says nothing about a token.

    Raises BadToken, and TooManyRequests for a source that has sent many of them. Each wrong one that is
    counted is a log line (A3).
    """
    found = _find(token, settings, now) if _TOKEN.fullmatch(token) else None
    if found is None:
        _count_bad(source, now)
        raise BadToken(
            "the token is not good: it is unknown, was revoked, has expired, or its maker is no admin"
        )
    row, maker = found
    if row.last_used_at is None or now - row.last_used_at >= TOUCH_AFTER:
        try:
            _touch(row.id, now)
        except (Unavailable, DBAPIError):
            # A database that only reads still answers what only reads (R28).
            logger.warning("use of token %s not noted: the database does not take it", row.name)
    return Caller(row.id, row.name, frozenset(row.scopes) & set(Scope), maker)


def _find(token: str, settings: Settings, now: datetime) -> tuple[ApiToken, str | None] | None:
    good = (ApiToken.token_hash == _hash(token), ApiToken.revoked_at.is_(None), ApiToken.expires_at > now)
    with transaction(read_only=True) as db:
        found = db.execute(_with_makers().where(*good)).one_or_none()
    if found is None or not _is_backed(found[0], found[1], settings):
        return None
    row, user = found
    return row, user.name if user is not None else None


def _is_admin(user: User, settings: Settings) -> bool:
    has_access = not user.is_disabled and profiles.meets(settings.access_permissions, user.permissions)
    return has_access and Right.MANAGE in roles.rights(user.permissions, settings)


@retried
def _touch(token_id: int, now: datetime) -> None:
    with transaction() as db:
        db.execute(update(ApiToken).where(ApiToken.id == token_id).values(last_used_at=now))


@retried
def _count_bad(source: str | None, now: datetime) -> None:
    """Raise TooManyRequests once a source has sent too many; a flood of them costs a read each, and fills no
    log: that the bucket became empty is said once.
    """
    buckets = [PER_SOURCE.bucket(throttles.network(source))]
    with transaction(read_only=True) as db:
        wait = throttles.wait_seconds(db, buckets, now=now)
    if wait == 0:
        with transaction() as db:
            wait = throttles.take(db, buckets, now=now)
            is_last = wait == 0 and throttles.wait_seconds(db, buckets, now=now) > 0
        if wait == 0:
            events.log("api_token_refused", level=logging.WARNING, source=source)
        if is_last:
            events.log("api_tokens_throttled", level=logging.WARNING, source=source)
    if wait > 0:
        error = TooManyRequests("too many calls with a wrong token; wait a moment")
        error.retry_after = int(wait) + 1
        raise error


def _living(db: Session, name: str, *, lock: bool = False) -> ApiToken | None:
    query = select(ApiToken).where(ApiToken.name == name, ApiToken.revoked_at.is_(None))
    return db.scalar(query.with_for_update() if lock else query)


def _of_number(db: Session, token_id: int) -> ApiToken | None:
    query = select(ApiToken).where(ApiToken.id == token_id, ApiToken.revoked_at.is_(None))
    return db.scalar(query.with_for_update())


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
