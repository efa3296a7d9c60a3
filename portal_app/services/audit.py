"""The audit log: who did what to whom, from where, when (reliability.md P1, A4)."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app.models import AuditEvent

#: As wide as the columns; what is longer says so by its end.
_LONGEST = {"actor": 255, "action": 60, "object": 255, "source": 60}


def record(
    db: Session,
    action: str,
    *,
    actor: str,
    object: str | None = None,
    source: str | None = None,
    now: datetime,
    **details: Any,
) -> None:
    """Add one act in the caller's transaction; ``details`` are JSON types and never hold a secret.

    ``actor`` is a user's name, ``cli`` or ``controller``; ``source`` the address the act came from.
    """
    db.add(
        AuditEvent(
            at=now,
            actor=_cut("actor", actor),
            action=_cut("action", action),
            object=None if object is None else _cut("object", object),
            source=None if source is None else _cut("source", source),
            details=details,
        )
    )


def about(db: Session, name: str, *, most: int) -> list[AuditEvent]:
    """Return the newest acts by a user and upon them, each once, the newest first."""
    found: dict[int, AuditEvent] = {}
    # Two questions, each answered from its own index.
    for column in (AuditEvent.actor, AuditEvent.object):
        query = select(AuditEvent).where(column == name).order_by(AuditEvent.at.desc()).limit(most)
        found |= {row.id: row for row in db.scalars(query)}
    return sorted(found.values(), key=lambda row: (row.at, row.id), reverse=True)[:most]


def _cut(column: str, value: str) -> str:
    longest = _LONGEST[column]
    return value if len(value) <= longest else value[: longest - 1] + "…"
