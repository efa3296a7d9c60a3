"""Tokens of the admin API: 256 random bits, stored as SHA-256, good for some scopes and until a date.

A token that an admin made is good only while that person is an admin; one of the command line stands for
itself.
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from portal_app import events, roles
from portal_app.db import retried, transaction
from portal_app.errors import (
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
from portal_app.services import audit, profiles, throttles
from portal_app.services.throttles import Limit
from portal_app.settings import Settings

logger = logging.getLogger(__name__)

#: By this, programs that search repositories and logs for secrets know one of ours.
PREFIX = "cwa_"
CLI = "cli"
DEFAULT_LIFE = timedelta(days=90)
LONGEST_LIFE = timedelta(days=366)
#: How old ``last_used_at`` may get before a call writes it again.
TOUCH_AFTER = timedelta(minutes=1)
#: Only wrong tokens count, so they keep nobody out who has a good one, whatever address they share.
PER_SOURCE = Limit("admin API source", burst=20, refill_seconds=10)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,59}")
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


def make(
    name: str,
    scopes: Collection[str],
    *,
    life: timedelta = DEFAULT_LIFE,
    maker: str | None = None,
    settings: Settings,
    source: str | None = None,
    now: datetime,
) -> str:
    """Make a token and return it: the only time that it is known. ``maker`` is an admin's name.

    Raises BadRequest, Conflict for a name that another token has, and Forbidden for a maker who is no admin.
    """
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"{name[:60]!r}: the name of a token has 1 to 60 letters, digits, dots, hyphens and underscores"
        )
    if not scopes:
        raise BadRequest("name at least one scope: a token without one is good for nothing")
    if unknown := sorted(set(scopes) - set(Scope)):
        raise BadRequest(f"there is no scope {unknown[0][:60]!r}; use some of {', '.join(Scope)}")
    if not timedelta(minutes=1) <= life <= LONGEST_LIFE:
        raise BadRequest(f"a token is good for a minute to {LONGEST_LIFE.days} days")
    token = PREFIX + secrets.token_urlsafe(32)
    _insert(name, sorted(set(scopes)), token, life, maker, settings, source, now)
    events.log("api_token_made", token=name, actor=maker or CLI)
    return token


@retried
def _insert(
    name: str,
    scopes: list[str],
    token: str,
    life: timedelta,
    maker: str | None,
    settings: Settings,
    source: str | None,
    now: datetime,
) -> None:
    with transaction() as db:
        user = None if maker is None else db.scalar(select(User).where(User.name == maker))
        if maker is not None and (user is None or not _is_admin(user, settings)):
            raise Forbidden("only an admin makes tokens")
        if _living(db, name) is not None:
            raise Conflict(f"token {name!r} exists already; revoke it first, or take another name")
        db.add(
            ApiToken(
                name=name, token_hash=_hash(token), scopes=scopes, user_id=user.id if user else None,
                created_by=maker or CLI, created_at=now, expires_at=now + life,
            )
        )  # fmt: skip
        audit.record(
            db, "token made", actor=maker or CLI, object=name, source=source, now=now,
            scopes=scopes, expires_at=(now + life).isoformat(timespec="seconds"),
        )  # fmt: skip


def listed(db: Session) -> list[ApiToken]:
    """Return every token that is remembered, by name; one that was revoked after the one that is good."""
    return list(db.scalars(select(ApiToken).order_by(ApiToken.name, ApiToken.id.desc())))


def state(token: ApiToken, now: datetime) -> str:
    """Return in one word whether a token is good, apart from who made it."""
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at <= now else "good"


@retried
def revoke(name_or_id: str, *, actor: str, source: str | None = None, now: datetime) -> str:
    """End a token at once and return its name. Raises NotFound when there is none that is not ended."""
    with transaction() as db:
        token = _living(db, name_or_id, lock=True)
        if token is None and name_or_id.isascii() and name_or_id.isdecimal() and len(name_or_id) < 10:
            of_id = select(ApiToken).where(ApiToken.id == int(name_or_id), ApiToken.revoked_at.is_(None))
            token = db.scalar(of_id.with_for_update())
        if token is None:
            raise NotFound(f"no token {name_or_id[:60]!r} that is not revoked already")
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
        found = db.execute(
            select(ApiToken, User).outerjoin(User, User.id == ApiToken.user_id).where(*good)
        ).one_or_none()
    if found is None:
        return None
    row, user = found
    if row.user_id is not None and (user is None or not _is_admin(user, settings)):
        return None
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


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
