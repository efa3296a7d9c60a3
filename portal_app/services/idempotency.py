"""Calls that may come twice because an answer was lost: done once, answered the same for a day.

A key belongs to the token that sent it. What failed for certain is forgotten, so that repeating it tries
again; of what may have been done the key is kept without an answer. An answer with a secret is not kept: that
it was given is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, update
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.errors import Conflict, PortalError
from portal_app.models import IdempotentCall

KEPT = timedelta(days=1)


class AnotherRequest(PortalError):
    """The key came before with a request that was another one."""

    status = 422


@dataclass(frozen=True)
class Key:
    """The idempotency key of one token, with what it came with."""

    token_id: int
    key: str
    digest: bytes


@dataclass(frozen=True)
class Kept:
    """What was answered to the first of two same calls."""

    status: int
    body: str


def digest(parts: Sequence[bytes]) -> bytes:
    """Return what tells requests apart: each part with its length, so that none runs into the next."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8) + part)
    return whole.digest()


@retried
def begin(key: Key, *, now: datetime) -> Kept | None:
    """Return what was answered before; None for a call that is new, which ``finish`` or ``forget`` ends.

    Raises AnotherRequest, and Conflict when the first one is under way, or its answer held a secret.
    """
    with transaction() as db:
        row = db.get(IdempotentCall, (key.token_id, key.key), with_for_update=True)
        if row is not None and row.created_at <= now - KEPT:
            db.delete(row)
            db.flush()
            row = None
        if row is None:
            # Two at once: one of them gets this row, the other one repeats and finds it.
            _insert(db, key, now)
            return None
    if row.digest != key.digest:
        raise AnotherRequest("this Idempotency-Key came before with another request; use a new one")
    if row.status is None:
        raise Conflict(
            "a call with this Idempotency-Key is under way, or was cut short: wait, then look whether it was"
            " done, and repeat it with another key if not"
        )
    if row.body is None:
        raise Conflict(
            "a call with this Idempotency-Key was done already; its answer held a secret and is kept nowhere"
        )
    return Kept(row.status, row.body)


@retried
def finish(key: Key, status: int, body: str | None) -> None:
    """Keep what was answered; ``body`` is None where it holds a secret."""
    with transaction() as db:
        db.execute(update(IdempotentCall).where(*_is(key)).values(status=status, body=body))


@retried
def forget(key: Key) -> None:
    """Let a call that failed and changed nothing come again."""
    with transaction() as db:
        db.execute(delete(IdempotentCall).where(*_is(key)))


def _insert(db: Session, key: Key, now: datetime) -> None:
    db.add(IdempotentCall(token_id=key.token_id, key=key.key, digest=key.digest, created_at=now))


def _is(key: Key) -> tuple[ColumnElement[bool], ...]:
    return (IdempotentCall.token_id == key.token_id, IdempotentCall.key == key.key)
