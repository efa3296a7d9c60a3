"""Users and their local accounts. What a change takes away from somebody is cut at once."""

import hashlib
import secrets
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app import events
from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest, Conflict, Forbidden, NotFound
from portal_app.models import Authorization, Connection, LocalAccount, OneTimeLink, Profile, User
from portal_app.services import audit, authorizations, browser_sessions, connections, passwords, profiles
from portal_app.services.connections import Ended, Issued

if TYPE_CHECKING:
    from portal_app.agents import Agents

LINK_LIFE = timedelta(minutes=60)
LINK_IS_OVER = N_("This link has been used already or is too old. Ask for a new one.")
LONGEST_NAME = 255
LONGEST_PERMISSION = 255


def normalized(name: str) -> str:
    """Return a typed name as it is stored: NFC, so that two ways to write an accented letter are one name."""
    return unicodedata.normalize("NFC", name)


def check_name(name: str) -> str:
    """Return the name as it is stored; raises BadRequest saying why nobody can have it."""
    name = normalized(name)
    if not 1 <= len(name) <= LONGEST_NAME:
        raise BadRequest(N_("a user name has 1 to %(most)s characters"), most=LONGEST_NAME)
    if not name.isprintable() or name != name.strip():
        raise BadRequest(N_("a user name has printable characters only and no space at its ends"))
    if audit.is_no_user(name):
        # Their acts would be mixed with those of nobody, the controller, the command line or a script.
        raise BadRequest(N_("%(name)r is not for people: the audit log calls something else so"), name=name)
    return name


def check_permissions(permissions: Sequence[str]) -> list[str]:
    """Return the permissions in order, each once; raises BadRequest for one that cannot be written."""
    for permission in permissions:
        usable = permission.isprintable() and permission == permission.strip()
        if not usable or not 1 <= len(permission) <= LONGEST_PERMISSION:
            raise BadRequest(
                N_("permission %(permission)r: use 1 to %(most)s printable characters"),
                permission=permission[:60],
                most=LONGEST_PERMISSION,
            )
    return sorted(set(permissions))


def find(db: Session, name: str) -> User | None:
    return db.scalar(select(User).where(User.name == name))


def find_account(db: Session, name: str) -> tuple[User, LocalAccount] | None:
    """Return a user with a local account, whether or not it has a password yet."""
    query = select(User, LocalAccount).join(LocalAccount, LocalAccount.user_id == User.id)
    row = db.execute(query.where(User.name == name)).one_or_none()
    return None if row is None else (row[0], row[1])


def add(
    name: str,
    *,
    permissions: Sequence[str] = (),
    password: str | None = None,
    exists_ok: bool = False,
    actor: str,
    source: str | None = None,
    now: datetime,
) -> bool:
    """Make a user with a local account; without a password it waits for its one-time link.

    Returns False and changes nothing when the user exists and ``exists_ok``, else raises Conflict.
    """
    permissions = check_permissions(permissions)
    name = check_name(name)
    if password is not None:
        passwords.check_new(password, name)
    with transaction(read_only=True) as db:
        if find(db, name) is not None:
            return _already_there(name, exists_ok=exists_ok)
    password_hash = None if password is None else passwords.hash_password(password)
    return _insert(name, permissions, password_hash, exists_ok=exists_ok, actor=actor, source=source, now=now)


@retried
def _insert(
    name: str,
    permissions: list[str],
    password_hash: str | None,
    *,
    exists_ok: bool,
    actor: str,
    source: str | None,
    now: datetime,
) -> bool:
    with transaction() as db:
        if find(db, name) is not None:
            return _already_there(name, exists_ok=exists_ok)
        user = User(name=name, permissions=permissions, created_at=now)
        db.add(user)
        db.flush()
        db.add(LocalAccount(user_id=user.id, password_hash=password_hash, changed_at=now))
        audit.record(
            db, "user added", actor=actor, object=name, source=source, now=now, permissions=permissions
        )
    events.log("user_added", user=name, actor=actor)
    return True


def _already_there(name: str, *, exists_ok: bool) -> bool:
    if exists_ok:
        return False
    raise Conflict(N_("user %(name)r exists already"), name=name)


@retried
def one_time_link(
    name: str,
    *,
    check: Callable[[User], None] = lambda _user: None,
    actor: str,
    source: str | None = None,
    now: datetime,
) -> str:
    """Return the token of a new one-time link, which lets its holder set the password within 60 minutes.

    Older links of this user end. The token is kept only as a hash and goes into no log. ``check`` sees the
    user as the link is made, and raises if whoever asks may not have it.
    """
    token = secrets.token_urlsafe(32)
    with transaction() as db:
        user, _account = _locked_account(db, name)
        check(user)
        db.execute(delete_from(OneTimeLink).where(OneTimeLink.user_id == user.id))
        db.add(OneTimeLink(token_hash=_hash(token), user_id=user.id, expires_at=now + LINK_LIFE))
        audit.record(db, "one-time link made", actor=actor, object=name, source=source, now=now)
    events.log("one_time_link_made", user=name, actor=actor)
    return token


def user_of_link(db: Session, token: str, *, now: datetime) -> User | None:
    """Return whom a link belongs to as long as it is good; looking does not use it up."""
    query = select(User).join(OneTimeLink, OneTimeLink.user_id == User.id)
    return db.scalar(query.where(OneTimeLink.token_hash == _hash(token), OneTimeLink.expires_at > now))


def redeem_link(token: str, password: str, *, source: str | None, now: datetime) -> str:
    """Set the password of the link's user and return their name; the link works once (R39).

    Raises NotFound for a link that is unknown, used or too old, Forbidden, and WeakPassword, after which the
    link is still good.
    """
    with transaction(read_only=True) as db:
        user = user_of_link(db, token, now=now)
    if user is None:
        raise NotFound(LINK_IS_OVER)
    if user.is_disabled:
        raise Forbidden(N_("This account is disabled."))
    passwords.check_new(password, user.name)
    password_hash = passwords.hash_password(password)
    return _redeem(token, password_hash, source=source, now=now)


@retried
def _redeem(token: str, password_hash: str, *, source: str | None, now: datetime) -> str:
    with transaction() as db:
        used = delete_from(OneTimeLink).where(
            OneTimeLink.token_hash == _hash(token), OneTimeLink.expires_at > now
        )
        user_id = db.scalar(used.returning(OneTimeLink.user_id))
        user = None if user_id is None else db.get(User, user_id)
        if user is None:
            raise NotFound(LINK_IS_OVER)
        _store_password(db, user, password_hash, actor=user.name, source=source, now=now)
    events.log("password_set", user=user.name, source=source, by="link")
    return user.name


@retried
def set_password(name: str, password: str, *, actor: str, source: str | None = None, now: datetime) -> None:
    """Set a password and sign the user out of every browser. Raises NotFound, WeakPassword."""
    passwords.check_new(password, name)
    password_hash = passwords.hash_password(password)
    with transaction() as db:
        user, _account = _locked_account(db, name)
        _store_password(db, user, password_hash, actor=actor, source=source, now=now)
    events.log("password_set", user=name, actor=actor, source=source)


def _store_password(
    db: Session, user: User, password_hash: str, *, actor: str, source: str | None, now: datetime
) -> None:
    account = db.get(LocalAccount, user.id, with_for_update=True)
    if account is None:
        raise NotFound(N_("user %(name)r has no local account"), name=user.name)
    account.password_hash, account.changed_at = password_hash, now
    db.execute(delete_from(OneTimeLink).where(OneTimeLink.user_id == user.id))
    browser_sessions.end_all(db, user.id)
    audit.record(db, "password set", actor=actor, object=user.name, source=source, now=now)


def make_configuration(
    name: str,
    profile_id: str,
    protocol: str,
    device: str,
    *,
    prefer_tcp: bool = False,
    node: str | None = None,
    expires_in: timedelta | None = None,
    actor: str,
    source: str | None = None,
    now: datetime,
) -> Issued:
    """Make a configuration for somebody, as an operator's act: it is an audit row, and no limit of theirs
    counts.

    Raises as ``connections.create_for_portal``, and NotFound for an unknown user.
    """
    with transaction(read_only=True) as db:
        user = find(db, name)
    if user is None:
        raise NotFound(N_("no user %(name)r"), name=name)
    if user.is_disabled:
        raise Forbidden(f"{name} is disabled; enable the account first")
    return connections.create_for_portal(
        user, profile_id, protocol, device, prefer_tcp=prefer_tcp, node=node, expires_in=expires_in,
        limited=False, by=audit.By(actor, source), now=now,
    )  # fmt: skip


def disable(
    name: str, *, agents: "Agents | None" = None, actor: str, source: str | None = None, now: datetime
) -> int:
    """Block sign-in and API, end every authorization, connection and browser session of the user.

    Returns how many connections were cut. ``agents`` are the web application's unless given, here and below.
    """
    ended = _disable(name, actor=actor, source=source, now=now)
    connections.tell(ended, agents=agents)
    events.log("user_disabled", user=name, actor=actor)
    return len(ended)


@retried
def _disable(name: str, *, actor: str, source: str | None, now: datetime) -> list[Ended]:
    with transaction() as db:
        user = _locked(db, name)
        user.is_disabled = True
        ended = _end_everything(db, user, reason="user_disabled", now=now)
        audit.record(
            db, "user disabled", actor=actor, object=name, source=source, now=now, connections=len(ended)
        )
        return ended


@retried
def enable(name: str, *, actor: str, source: str | None = None, now: datetime) -> None:
    """Let a disabled user sign in again; what was ended stays ended."""
    with transaction() as db:
        user = _locked(db, name)
        user.is_disabled = False
        audit.record(db, "user enabled", actor=actor, object=name, source=source, now=now)
    events.log("user_enabled", user=name, actor=actor)


def delete(
    name: str, *, agents: "Agents | None" = None, actor: str, source: str | None = None, now: datetime
) -> int:
    """Delete the user and everything but the log, which keeps the name; returns how many were cut."""
    ended = _delete(name, actor=actor, source=source, now=now)
    connections.tell(ended, agents=agents)
    events.log("user_deleted", user=name, actor=actor)
    return len(ended)


@retried
def _delete(name: str, *, actor: str, source: str | None, now: datetime) -> list[Ended]:
    with transaction() as db:
        user = _locked(db, name)
        ended = _end_everything(db, user, reason="user_deleted", now=now)
        db.flush()
        db.execute(delete_from(User).where(User.id == user.id))
        audit.record(
            db, "user deleted", actor=actor, object=name, source=source, now=now, connections=len(ended)
        )
        return ended


def set_permissions(
    name: str,
    permissions: Sequence[str],
    *,
    access_permissions: list[str] | None,
    agents: "Agents | None" = None,
    actor: str,
    source: str | None = None,
    now: datetime,
) -> int:
    """Replace the permissions of a user and cut what they no longer allow.

    ``access_permissions`` are the portal's: who meets them no more loses everything. Browser sessions end,
    so that the next one has a new id (reliability.md W1). Returns how many connections were cut.
    """
    checked = check_permissions(permissions)
    ended = _set_permissions(
        name, checked, access_permissions=access_permissions, actor=actor, source=source, now=now
    )
    connections.tell(ended, agents=agents)
    events.log("permissions_set", user=name, actor=actor, permissions=" ".join(checked))
    return len(ended)


@retried
def _set_permissions(
    name: str,
    permissions: list[str],
    *,
    access_permissions: list[str] | None,
    actor: str,
    source: str | None,
    now: datetime,
) -> list[Ended]:
    with transaction() as db:
        user = _locked(db, name)
        if user.permissions == permissions:
            return []
        before, user.permissions = user.permissions, permissions
        browser_sessions.end_all(db, user.id)
        # Whoever has a link made under the rights before would get those of now with it.
        db.execute(delete_from(OneTimeLink).where(OneTimeLink.user_id == user.id))
        if not profiles.meets(access_permissions, permissions):
            ended = _end_everything(db, user, reason="access_lost", now=now)
        else:
            lost = [p.profile_id for p in db.scalars(select(Profile)) if not profiles.may_use(p, permissions)]
            which = (Connection.user_id == user.id) & Connection.profile_id.in_(lost)
            ended = connections.end(db, which, reason="permission_lost", now=now) if lost else []
        audit.record(
            db, audit.PERMISSIONS_SET, actor=actor, object=name, source=source, now=now,
            before=before, after=permissions, connections=len(ended),
        )  # fmt: skip
        return ended


def _locked(db: Session, name: str) -> User:
    user = db.scalar(select(User).where(User.name == name).with_for_update())
    if user is None:
        raise NotFound(N_("no user %(name)r"), name=name)
    return user


def _locked_account(db: Session, name: str) -> tuple[User, LocalAccount]:
    user = _locked(db, name)
    account = db.get(LocalAccount, user.id)
    if account is None:
        raise NotFound(N_("user %(name)r has no local account"), name=name)
    return user, account


def _end_everything(db: Session, user: User, *, reason: str, now: datetime) -> list[Ended]:
    browser_sessions.end_all(db, user.id)
    ended = authorizations.end(db, Authorization.user_id == user.id, reason=reason, now=now)
    return ended + connections.end(db, Connection.user_id == user.id, reason=reason, now=now)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
