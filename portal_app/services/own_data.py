"""What the portal knows about one user, for that user. Nothing in it lets anybody in: no key, no hash.

How a connect was decided is not in it: that is about nodes, and profiles that the user may not know of.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.errors import N_, TooManyRequests
from portal_app.models import (
    AddressUse,
    Authorization,
    BrowserSession,
    Connection,
    LocalAccount,
    RefusedConnect,
    User,
    VpnSession,
)
from portal_app.services import audit, throttles
from portal_app.services.throttles import Limit

#: It reads much, and nobody needs it often.
PER_USER = Limit("own data", burst=5, refill_seconds=600)
#: Of the lists that grow with use, the newest so many.
MOST = 5000


def export(user: User, *, retention: timedelta, source: str | None, now: datetime) -> dict[str, Any]:
    """Return everything about a user as JSON types, after noting in the audit log that it was asked for.

    Raises TooManyRequests. While much is read, nobody waits: that transaction writes nothing.
    """
    _ask(user, source, now)
    return _read(user, retention, now)


@retried
def _ask(user: User, source: str | None, now: datetime) -> None:
    with transaction() as db:
        wait = throttles.take(db, [PER_USER.bucket(str(user.id))], now=now)
        if wait == 0:
            audit.record(db, "own data exported", actor=user.name, object=user.name, source=source, now=now)
    if wait > 0:
        error = TooManyRequests(
            N_("You have asked for what is stored about you several times. Try again in some minutes.")
        )
        error.retry_after = int(wait) + 1
        raise error


@retried
def _read(user: User, retention: timedelta, now: datetime) -> dict[str, Any]:
    with transaction(read_only=True) as db:
        return found_about(db, user, retention=retention, now=now)


def found_about(db: Session, user: User, *, retention: timedelta, now: datetime) -> dict[str, Any]:
    """Return everything about a user as JSON types.

    ``complete`` is false where a list was longer than ``MOST``. Sessions and addresses go back as far as
    ``retention``.
    """
    account = db.get(LocalAccount, user.id)
    refused = db.get(RefusedConnect, user.id)
    authorizations = _rows(db, Authorization, Authorization.user_id == user.id, Authorization.id)
    connections = _rows(db, Connection, Connection.user_id == user.id, Connection.created_at)
    browsers = _rows(db, BrowserSession, BrowserSession.user_id == user.id, BrowserSession.last_seen_at)
    sessions = _remembered(db, VpnSession, user)
    addresses = _remembered(db, AddressUse, user)
    events = audit.about(db, user, most=MOST)
    return {
        "exported_at": _time(now),
        "complete": max(map(len, (connections, browsers, sessions, addresses, events))) < MOST,
        "kept": {"sessions_and_addresses_days": retention.days},
        "user": {
            "name": user.name,
            "permissions": user.permissions,
            "disabled": user.is_disabled,
            "created_at": _time(user.created_at),
            "last_seen_at": _time(user.last_seen_at),
            "password_changed_at": _time(account.changed_at) if account else None,
        },
        "authorizations": [
            _fields(row, "client_id", "scope", "authorized_at", "expires_at", "last_used_at")
            for row in authorizations
        ],
        "connections": [
            _fields(
                row, "id", "authorization_id", "profile_id", "protocol", "display_name", "node_number",
                "ipv4", "ipv6", "created_at", "expires_at",
            )
            for row in connections
        ],
        "browser_sessions": [
            _fields(row, "signed_in_at", "last_seen_at", "expires_at")
            | {key: row.data.get(key, "") for key in ("browser", "system")}
            for row in browsers
        ],
        "vpn_sessions": [
            _fields(
                row, "connection_id", "node_number", "profile_id", "protocol", "ipv4", "ipv6", "origin",
                "started_at", "ended_at", "received_bytes", "sent_bytes",
            )
            for row in sessions
        ],
        "addresses": [
            _fields(
                row, "connection_id", "client_id", "device", "profile_id", "protocol", "node_number", "ipv4",
                "ipv6", "started_at", "ended_at", "end_reason",
            )
            for row in addresses
        ],
        "last_refused_connect": _fields(refused, "at", "device", "profile_id", "answer")
        if refused
        else None,
        "acts": [_event(row, user) for row in events],
    }  # fmt: skip


def _rows(db: Session, model: Any, which: Any, order: Any) -> list[Any]:
    return list(db.scalars(select(model).where(which).order_by(order.desc()).limit(MOST)))


def _remembered(db: Session, model: type[AddressUse] | type[VpnSession], user: User) -> list[Any]:
    """Return what is kept by name. What is older than the account is about somebody else who had it."""
    return _rows(
        db, model, (model.user_name == user.name) & (model.started_at >= user.created_at), model.started_at
    )


def _event(row: Any, user: User) -> dict[str, Any]:
    """Return an act. Where somebody else did it from is about them."""
    found = _fields(row, "at", "actor", "action", "object")
    return found | {"source": row.source if row.actor == user.name else None, "details": row.details}


def _fields(row: Any, *names: str) -> dict[str, Any]:
    return {name: _plain(getattr(row, name)) for name in names}


def _plain(value: Any) -> Any:
    return _time(value) if isinstance(value, datetime) else value


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
