"""Forget what need not be kept: what has expired, and the records whose time is over (reliability.md P4)."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, select, tuple_

from portal_app.db import retried, transaction
from portal_app.models import (
    AccessToken,
    AddressUse,
    ApiToken,
    AuditEvent,
    BackgroundError,
    Base,
    BrowserSession,
    IdempotentCall,
    OneTimeLink,
    RefusedConnect,
    Throttle,
    UsageDay,
    UsageSample,
    VpnSession,
)
from portal_app.services import background_errors, idempotency, usage

#: Rows per transaction, so that no user waits for housekeeping (R27).
_BATCH = 1000
#: A bucket that was not touched for a day is full again, whatever its rule.
_THROTTLES = timedelta(days=1)
#: Acts of administrators are kept longer than who had which address, unless it is set otherwise.
AUDIT = timedelta(days=365)


def prune(
    *, retention: timedelta, audit: timedelta = AUDIT, statistics: timedelta | None = None, now: datetime
) -> dict[str, int]:
    """Delete what is over; returns how many rows of each table went.

    Sessions and addresses are kept for ``retention`` after their end; what is still open stays. What was
    counted per day (``UsageDay``) is kept for ``statistics``, or for ever; acts for ``audit``.
    """
    before = now - retention
    rules: list[tuple[type[Base], Sequence[Any], ColumnElement[bool]]] = [
        (AccessToken, [AccessToken.token_hash], AccessToken.expires_at <= now),
        (BrowserSession, [BrowserSession.token_hash], BrowserSession.expires_at <= now),
        (OneTimeLink, [OneTimeLink.token_hash], OneTimeLink.expires_at <= now),
        (
            IdempotentCall,
            [IdempotentCall.token_id, IdempotentCall.key],
            IdempotentCall.created_at <= now - idempotency.KEPT,
        ),
        (ApiToken, [ApiToken.id], ApiToken.expires_at <= now - audit),
        (Throttle, [Throttle.bucket], Throttle.updated_at <= now - _THROTTLES),
        (VpnSession, [VpnSession.node_number, VpnSession.session_id], VpnSession.ended_at <= before),
        (AddressUse, [AddressUse.id], AddressUse.ended_at <= before),
        (RefusedConnect, [RefusedConnect.user_id], RefusedConnect.at <= before),
        (
            UsageSample,
            list(UsageSample.__table__.primary_key),
            UsageSample.slot <= usage.slot_of(now - usage.SAMPLES_KEPT),
        ),
        (
            BackgroundError,
            [BackgroundError.key],
            BackgroundError.last_seen_at <= now - background_errors.KEPT,
        ),
        (AuditEvent, [AuditEvent.id], AuditEvent.at <= now - max(audit, retention)),
    ]
    if statistics is not None:
        first = (now - statistics).date().isoformat()
        rules.append((UsageDay, list(UsageDay.__table__.primary_key), UsageDay.day < first))
    return {
        model.__tablename__: gone
        for model, key, criterion in rules
        if (gone := _delete_all(model, key, criterion))
    }


def _delete_all(model: type[Base], key: Sequence[Any], criterion: ColumnElement[bool]) -> int:
    total = 0
    while True:
        gone = _delete_some(model, key, criterion)
        total += gone
        if gone < _BATCH:
            return total


@retried
def _delete_some(model: type[Base], key: Sequence[Any], criterion: ColumnElement[bool]) -> int:
    # Looking first without the right to write: SQLite's one writer is not kept waiting for nothing.
    with transaction(read_only=True) as db:
        found = db.execute(select(*key).where(criterion).limit(_BATCH)).all()
    if not found:
        return 0
    chosen = (
        key[0].in_([row[0] for row in found])
        if len(key) == 1
        else tuple_(*key).in_([tuple(r) for r in found])
    )
    with transaction() as db:
        result = db.execute(delete(model).where(chosen, criterion).returning(key[0]))
        return len(result.all())
