"""Authorizations: a user's consent for one app, its code, its tokens, and its end.

Codes and tokens are random strings; only their SHA-256 is stored. A code or refresh token that comes twice
is proof that two hold it, so the whole authorization ends, with its connections (RFC 9700, section 4.14;
design.md, "Tokens").
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from portal_app.application import portal
from portal_app.db import Database, connected, retried, transaction
from portal_app.errors import PortalError
from portal_app.events import log
from portal_app.models import (
    AccessToken,
    Authorization,
    AuthorizationCode,
    Connection,
    RefreshToken,
    User,
)
from portal_app.services import audit, connections, ending, profiles
from portal_app.services.connections import Ended, Holder
from portal_app.statements import Asked, Rows, Statement, run

#: An answer may be lost: the refresh token before the living one is good once more for so long
#: (reliability.md R16).
GRACE = timedelta(seconds=30)
_CHUNK = 500


class InvalidGrant(PortalError):
    """The app has to send its user through the browser again."""


class WrongRequest(PortalError):
    """A parameter of a token request does not belong to the code or token."""


@dataclass(frozen=True)
class Tokens:
    access_token: str
    refresh_token: str
    expires_in: int


@dataclass(frozen=True)
class _Refused:
    """An outcome that has to be committed before it is raised."""

    error: PortalError
    ended: tuple[Ended, ...] = ()
    event: dict[str, Any] | None = None


@dataclass(frozen=True)
class Bearer:
    """Who an access token stands for at this moment."""

    holder: Holder
    scope: str


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    """Return 256 random bits, base64url."""
    return secrets.token_urlsafe(32)


def expiry(now: datetime) -> datetime:
    """Return when a session that begins now ends; never after the client CA."""
    settings = portal().settings
    return min(now + timedelta(seconds=settings.session_expiry_seconds), portal().signer.not_after)


@retried
def create(
    user: User,
    client_id: str,
    *,
    scope: str,
    redirect_uri: str,
    code_challenge: str,
    source: str | None = None,
    now: datetime,
) -> str:
    """Record a user's consent and return the code that the app changes for tokens."""
    code = new_token()
    code_expires_at = now + timedelta(seconds=portal().settings.authorization_code_seconds)
    with transaction() as db:
        authorization_id = db.execute(
            insert(Authorization)
            .values(
                user_id=user.id,
                client_id=client_id,
                scope=scope,
                authorized_at=now,
                expires_at=expiry(now),
            )
            .returning(Authorization.id)
        ).scalar_one()
        db.execute(
            insert(AuthorizationCode).values(
                code_hash=hashed(code),
                authorization_id=authorization_id,
                redirect_uri=redirect_uri,
                code_challenge=code_challenge,
                expires_at=code_expires_at,
            )
        )
        audit.record(db, "app approved", actor=user.name, object=client_id, source=source, now=now)
    log("authorize", user=user.name, client=client_id, authorization=authorization_id)
    return code


def redeem_code(
    code: str, *, client_id: str, redirect_uri: str, code_challenge: str, now: datetime
) -> Tokens:
    """Change a code for the first tokens. ``code_challenge`` is what the request's verifier gives.

    Raises WrongRequest for another client or redirect URI, InvalidGrant for a code that is unknown,
    expired, of another challenge, or used: a second use ends what the first one gave.
    """
    return _settled(_redeem_code(code, client_id, redirect_uri, code_challenge, now))


@retried
def _redeem_code(
    code: str, client_id: str, redirect_uri: str, code_challenge: str, now: datetime
) -> Tokens | _Refused:
    with transaction() as db:
        # The row is locked: of two at once, the second one sees that the code was used.
        found = db.execute(
            _locked_with(AuthorizationCode, AuthorizationCode.code_hash == hashed(code))
        ).one_or_none()
        if found is None:
            return _Refused(InvalidGrant("the code is not known"))
        row, authorization, user = found.AuthorizationCode, found.Authorization, found.User
        if authorization.client_id != client_id or row.redirect_uri != redirect_uri:
            return _Refused(
                WrongRequest("client_id or redirect_uri is not the one of the authorization request")
            )
        if row.used_at is not None:
            return _end_for_replay(db, authorization, user, "code_reuse", now)
        if row.expires_at <= now:
            return _Refused(InvalidGrant("the code has expired"))
        if not secrets.compare_digest(row.code_challenge, code_challenge):
            return _Refused(InvalidGrant("the code verifier does not match"))
        if refused := _not_allowed(authorization, user, now):
            return refused
        row.used_at = now
        db.flush()
        return _new_tokens(db, authorization, None, now)


def refresh(refresh_token: str, *, client_id: str, scope: str | None, now: datetime) -> Tokens:
    """Change a refresh token for its successor.

    Raises InvalidGrant for anything wrong with the token; one that was used before ends the authorization,
    except for the grace rule. Raises WrongRequest for another scope.
    """
    return _settled(_refresh(refresh_token, client_id, scope, now))


@retried
def _refresh(refresh_token: str, client_id: str, scope: str | None, now: datetime) -> Tokens | _Refused:
    with transaction() as db:
        found = db.execute(
            _locked_with(RefreshToken, RefreshToken.token_hash == hashed(refresh_token))
        ).one_or_none()
        if found is None:
            return _Refused(InvalidGrant("the refresh token is not known"))
        token, authorization, user = found.RefreshToken, found.Authorization, found.User
        if authorization.client_id != client_id:
            return _Refused(InvalidGrant("the refresh token belongs to another client"))
        if scope is not None and scope != authorization.scope:
            return _Refused(WrongRequest("scope is not the one of the authorization"))
        if refused := _not_allowed(authorization, user, now):
            return refused
        if token.used_at is not None:
            successors = db.scalars(
                select(RefreshToken).where(RefreshToken.parent_hash == token.token_hash)
            ).all()
            if not _grace_applies(token, successors, now):
                return _end_for_replay(db, authorization, user, "refresh_replay", now)
            # The answer with the successor was lost: it dies unused, and what came with it.
            successors[0].used_at = now
            db.execute(delete(AccessToken).where(AccessToken.authorization_id == authorization.id))
        else:
            token.used_at = now
            db.execute(
                delete(AccessToken).where(
                    AccessToken.authorization_id == authorization.id, AccessToken.expires_at <= now
                )
            )
        db.flush()
        return _new_tokens(db, authorization, token.token_hash, now)


def _grace_applies(token: RefreshToken, successors: Sequence[RefreshToken], now: datetime) -> bool:
    """Tell whether a used token may be used once more: recently used, its only successor untouched."""
    return (
        len(successors) == 1
        and successors[0].used_at is None
        and token.used_at is not None
        and now - token.used_at <= GRACE
    )


_HELD = Statement(ending.ROWS.where(Connection.authorization_id == bindparam("authorization")))
_BEARER = Statement(
    select(
        Authorization.id,
        Authorization.client_id,
        Authorization.scope,
        Authorization.expires_at,
        User.id.label("user_id"),
        User.name,
        User.permissions,
    )
    .join(AccessToken, AccessToken.authorization_id == Authorization.id)
    .join(User, User.id == Authorization.user_id)
    .where(
        AccessToken.token_hash == bindparam("token_hash"),
        AccessToken.expires_at > bindparam("now"),
        Authorization.expires_at > bindparam("now"),
        User.is_disabled.is_(False),
    )
)


def bearer(access_token: str, now: datetime) -> Asked:
    """Return what to ask for whom a token stands for (``bearer_of``).

    Account state and permissions are looked up now, not remembered from the sign-in.
    """
    return _BEARER, {"token_hash": hashed(access_token), "now": now}


def bearer_of(found: Rows) -> Bearer | None:
    """Return whom a token stands for; None when it or anything behind it is not good (any more)."""
    row = found.one_or_none()
    if row is None or row.client_id not in portal().clients:
        return None
    if not profiles.meets(portal().settings.access_permissions, row.permissions):
        return None
    holder = Holder(row.user_id, row.name, row.permissions, row.client_id, row.id, row.expires_at)
    return Bearer(holder, row.scope)


@retried
def disconnect(holder: Holder, *, now: datetime) -> None:
    """End what an app holds; with ``delete_authorization_on_disconnect`` the authorization, too."""
    with connected() as db:
        if portal().settings.delete_authorization_on_disconnect:
            ended = end(db, Authorization.id == holder.authorization_id, reason="disconnect", now=now)
        else:
            held = run(db, _HELD, {"authorization": holder.authorization_id})
            ended = ending.end_found(db, held, reason="disconnect", now=now, last=True)
    connections.tell(ended)


@retried
def revoke_token(token: str, *, client_id: str, now: datetime) -> None:
    """End the authorization that a token of this client belongs to (RFC 7009); an unknown token is no
    error.
    """
    with transaction() as db:
        criterion = Authorization.id.in_(
            select(AccessToken.authorization_id)
            .where(AccessToken.token_hash == hashed(token))
            .union(select(RefreshToken.authorization_id).where(RefreshToken.token_hash == hashed(token)))
        )
        ended = end(db, criterion & (Authorization.client_id == client_id), reason="revoked_by_app", now=now)
    connections.tell(ended)


def end(db: Database, criterion: ColumnElement[bool], *, reason: str, now: datetime) -> list[Ended]:
    """Delete authorizations that match, with codes, tokens and connections, in the caller's transaction.

    The caller passes the result to ``connections.tell`` after its commit.
    """
    found = db.execute(
        select(Authorization.id, Authorization.client_id, Authorization.user_id)
        .where(criterion)
        .order_by(Authorization.id)
        .with_for_update()
    ).all()
    ended: list[Ended] = []
    for start in range(0, len(found), _CHUNK):
        ids = [row.id for row in found[start : start + _CHUNK]]
        ended += connections.end(db, Connection.authorization_id.in_(ids), reason=reason, now=now)
        db.execute(
            delete(Authorization)
            .where(Authorization.id.in_(ids))
            .execution_options(synchronize_session=False)
        )
    for row in found:
        log(
            "authorization_end",
            authorization=row.id,
            client=row.client_id,
            user_id=row.user_id,
            reason=reason,
        )
    return ended


def _locked_with(kind: Any, criterion: ColumnElement[bool]) -> Any:
    """Select a code or token with its authorization and user; the authorization's lock lets one request in
    at a time.
    """
    return (
        select(kind, Authorization, User)
        .join(Authorization, Authorization.id == kind.authorization_id)
        .join(User, User.id == Authorization.user_id)
        .where(criterion)
        .with_for_update(of=(kind, Authorization))
        .execution_options(populate_existing=True)
    )


def _not_allowed(authorization: Authorization, user: User, now: datetime) -> _Refused | None:
    if authorization.expires_at <= now:
        return _Refused(InvalidGrant("the session has ended"))
    if user.is_disabled or not profiles.meets(portal().settings.access_permissions, user.permissions):
        return _Refused(InvalidGrant("the account may not use this service"))
    return None


def _new_tokens(db: Session, authorization: Authorization, parent: bytes | None, now: datetime) -> Tokens:
    lasts = timedelta(seconds=portal().settings.access_token_seconds)
    expires_at = min(now + lasts, authorization.expires_at)
    tokens = Tokens(new_token(), new_token(), int((expires_at - now).total_seconds()))
    db.execute(
        insert(RefreshToken).values(
            token_hash=hashed(tokens.refresh_token),
            authorization_id=authorization.id,
            parent_hash=parent,
            issued_at=now,
        )
    )
    db.execute(
        insert(AccessToken).values(
            token_hash=hashed(tokens.access_token), authorization_id=authorization.id, expires_at=expires_at
        )
    )
    db.execute(
        update(Authorization)
        .where(Authorization.id == authorization.id)
        .values(last_used_at=now)
        .execution_options(synchronize_session=False)
    )
    return tokens


def _end_for_replay(
    db: Session, authorization: Authorization, user: User, reason: str, now: datetime
) -> _Refused:
    event = {"user": user.name, "client": authorization.client_id, "authorization": authorization.id}
    ended = end(db, Authorization.id == authorization.id, reason=reason, now=now)
    error = InvalidGrant("used before: the authorization has ended")
    return _Refused(error, tuple(ended), event | {"reason": reason})


def _settled(outcome: Tokens | _Refused) -> Tokens:
    """Return tokens; or, after the commit, tell the nodes and raise."""
    if isinstance(outcome, Tokens):
        return outcome
    if outcome.event is not None:
        log("replay", **outcome.event)
    connections.tell(list(outcome.ended))
    raise outcome.error
