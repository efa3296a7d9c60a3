"""Browser sessions in a table: revocable, good at every portal, stored hashed.

A row exists only for somebody who signed in; visitors cost nothing here.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, func, inspect, select, update
from sqlalchemy.orm import Session

from portal_app import systems
from portal_app.db import Database
from portal_app.models import BrowserSession, User
from portal_app.statements import Statement, at_most, run

#: How old ``last_seen_at`` may get before a request writes it again: reading a page writes at most once a
#: minute.
TOUCH_AFTER = timedelta(minutes=1)

_OF_USER = tuple(attribute.key for attribute in inspect(User).column_attrs)
USED_FORMS_KEPT = 50
#: How many sessions of a user are listed.
MOST_LISTED = 50

#: Every page begins with it.
_FIND = Statement(
    select(
        *(getattr(User, key) for key in _OF_USER),
        BrowserSession.signed_in_at,
        BrowserSession.created_at.label("began_at"),
        BrowserSession.last_seen_at.label("session_seen_at"),
    )
    .join(User, User.id == BrowserSession.user_id)
    .where(
        BrowserSession.token_hash == bindparam("token_hash"),
        BrowserSession.expires_at > bindparam("now"),
        BrowserSession.last_seen_at > bindparam("last"),
    )
)


@dataclass(frozen=True)
class Found:
    """A living session: whose it is, as the database has them now, and when they signed in."""

    user: User
    signed_in_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True)
class Listed:
    """One browser in which a user is signed in. ``browser`` and ``system`` are "" when they are not known."""

    signed_in_at: datetime
    last_seen_at: datetime
    browser: str
    system: str
    is_this: bool


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def begin(db: Session, user: User, *, longest: timedelta, user_agent: str = "", now: datetime) -> str:
    """Sign ``user`` in and return the new session's token, which only the cookie keeps.

    Of the browser its kind and its system are kept, so that the user tells one session from another.
    """
    token = secrets.token_urlsafe(32)
    db.add(
        BrowserSession(
            token_hash=token_hash(token),
            user_id=user.id,
            data={"browser": systems.browser_of(user_agent), "system": systems.system_of(user_agent)},
            created_at=now,
            signed_in_at=now,
            last_seen_at=now,
            expires_at=now + longest,
        )
    )
    user.last_seen_at = now
    return token


def find(db: Database, token: str, *, idle: timedelta, now: datetime) -> Found | None:
    """Return a living session: neither idle for too long nor past its absolute end."""
    row = run(db, _FIND, {"token_hash": token_hash(token), "now": now, "last": now - idle}).one_or_none()
    if row is None:
        return None
    user = User(**{key: getattr(row, key) for key in _OF_USER})
    return Found(user, row.signed_in_at or row.began_at, row.session_seen_at)


def touch(db: Session, token: str, user: User, *, now: datetime) -> None:
    here = BrowserSession.token_hash == token_hash(token)
    db.execute(update(BrowserSession).where(here).values(last_seen_at=now))
    db.execute(update(User).where(User.id == user.id).values(last_seen_at=now))


def use_form(db: Session, token: str, form_key: str) -> bool:
    """Note that a form was sent; False when it was before: a reload must not make a thing twice."""
    query = select(BrowserSession).where(BrowserSession.token_hash == token_hash(token)).with_for_update()
    session = db.scalar(query)
    if session is None:
        return False
    used: list[str] = session.data.get("used_forms", [])
    if form_key in used:
        return False
    session.data = session.data | {"used_forms": [*used, form_key][-USED_FORMS_KEPT:]}
    return True


def count_others(db: Session, user_id: int, token: str, *, idle: timedelta, now: datetime) -> int:
    """Return in how many other browsers the user is signed in."""
    query = select(func.count()).where(
        BrowserSession.user_id == user_id,
        BrowserSession.token_hash != token_hash(token),
        BrowserSession.expires_at > now,
        BrowserSession.last_seen_at > now - idle,
    )
    return db.scalar(query) or 0


def listed(db: Session, user_id: int, token: str, *, idle: timedelta, now: datetime) -> list[Listed]:
    """Return where the user is signed in: the browser with this token first, then by when it was seen."""
    this = token_hash(token)
    query = (
        select(BrowserSession)
        .where(
            BrowserSession.user_id == user_id,
            BrowserSession.expires_at > now,
            BrowserSession.last_seen_at > now - idle,
        )
        .order_by((BrowserSession.token_hash != this), BrowserSession.last_seen_at.desc())
        .limit(at_most(MOST_LISTED))
    )
    return [
        Listed(
            signed_in_at=row.signed_in_at or row.created_at,
            last_seen_at=row.last_seen_at,
            browser=str(row.data.get("browser", "")),
            system=systems.SYSTEMS.get(str(row.data.get("system", "")), ""),
            is_this=row.token_hash == this,
        )
        for row in db.scalars(query)
    ]


def was_idle(db: Session, token: str, *, idle: timedelta, now: datetime) -> bool:
    """Tell whether a session is over because nobody used it, and for no other reason."""
    query = select(BrowserSession.last_seen_at).where(
        BrowserSession.token_hash == token_hash(token), BrowserSession.expires_at > now
    )
    last_seen_at = db.scalar(query)
    return last_seen_at is not None and last_seen_at <= now - idle


def end(db: Session, token: str) -> None:
    db.execute(delete(BrowserSession).where(BrowserSession.token_hash == token_hash(token)))


def sign_out(db: Session, token: str, *, idle: timedelta, now: datetime) -> str | None:
    """End a session; returns the name of the user who was signed in by it, None when it was over before."""
    ended = db.execute(
        delete(BrowserSession)
        .where(BrowserSession.token_hash == token_hash(token))
        .returning(BrowserSession.user_id, BrowserSession.expires_at, BrowserSession.last_seen_at)
    ).one_or_none()
    if ended is None or ended.expires_at <= now or ended.last_seen_at <= now - idle:
        return None
    return db.scalar(select(User.name).where(User.id == ended.user_id))


def end_all(db: Session, user_id: int) -> None:
    """Sign the user out of every browser, on all portals."""
    db.execute(delete(BrowserSession).where(BrowserSession.user_id == user_id))


def end_others(db: Session, user_id: int, token: str) -> int:
    """Sign the user out of every browser but the one with this token; returns how many rows went."""
    gone = db.scalars(
        delete(BrowserSession)
        .where(BrowserSession.user_id == user_id, BrowserSession.token_hash != token_hash(token))
        .returning(BrowserSession.token_hash)
    )
    return len(gone.all())
