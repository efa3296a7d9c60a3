"""The audit log: who did what to whom, from where, when (reliability.md P1, A4).

Rows are added and read here; nothing changes or takes one away but age (retention.py).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, or_, select
from sqlalchemy.orm import Session

from portal_app.db import Database
from portal_app.models import AuditEvent, User
from portal_app.services import exports, paging
from portal_app.statements import Asked, Statement, run

#: One file holds so many acts.
MOST_EXPORTED = 100_000
#: Sign-ins of a user, and acts of controllers, that a page shows.
_MOST_LATEST = 20
#: So many different actions can be chosen from; there are some dozens.
_MOST_ACTIONS = 200
ORDER = paging.Order([AuditEvent.at, AuditEvent.id], descending=True)

#: Who acts without being a user: the command line, the controller, a visitor whom nobody knows yet.
CLI, CONTROLLER, VISITOR = "cli", "controller", "visitor"
_SCRIPTS = "api:"
#: Something of a portal is another than before: its release, a setting, a key.
DEPLOYED = "portal.deployed"
PLAN_APPLIED = "plan.apply"
#: What a way of signing in notes of each try.
SIGNED_IN, SIGN_IN_FAILED = "signed in", "sign-in failed"

#: Its details have the permissions ``before`` and ``after``.
PERMISSIONS_SET = "permissions set"

#: As wide as the columns; what is longer says so by its end.
_LONGEST = {"actor": 255, "action": 60, "object": 255, "source": 60}
_INSERT = Statement(insert(AuditEvent).inline())


@dataclass(frozen=True)
class By:
    """Who does something, and from which address, as ``record`` takes it."""

    actor: str
    source: str | None


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

    ``actor`` is a user's name or one that ``is_no_user``; ``source`` the address the act came from.
    """
    db.add(AuditEvent(**_values(action, By(actor, source), object, now, details)))


def recording(action: str, *, by: By, object: str, now: datetime, **details: Any) -> Asked:
    """Return what adds one act along with other statements (``run_together``)."""
    return _INSERT, _values(action, by, object, now, details)


def _values(
    action: str, by: By, object: str | None, now: datetime, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "at": now,
        "actor": _cut("actor", by.actor),
        "action": _cut("action", action),
        "object": None if object is None else _cut("object", object),
        "source": None if by.source is None else _cut("source", by.source),
        "details": details,
    }


def is_no_user(name: str) -> bool:
    """Return whether rows have this name as the actor of what no user did."""
    folded = name.casefold()
    return folded in (CLI, CONTROLLER, VISITOR) or folded.startswith(_SCRIPTS)


_SIGN_INS = Statement(
    select(AuditEvent.at, AuditEvent.action, AuditEvent.source)
    .where(
        AuditEvent.object == bindparam("name"),
        AuditEvent.at >= bindparam("since"),
        or_(AuditEvent.action == SIGNED_IN, AuditEvent.action == SIGN_IN_FAILED),
    )
    .order_by(AuditEvent.at.desc())
    .limit(_MOST_LATEST)
)
_OF_CONTROLLERS = Statement(
    select(*AuditEvent.__table__.columns)
    .where(AuditEvent.actor == CONTROLLER)
    .order_by(AuditEvent.at.desc())
    .limit(_MOST_LATEST)
)


_DEPLOYMENT = Statement(
    select(
        *(
            select(func.max(AuditEvent.at, type_=AuditEvent.at.type))
            .where(AuditEvent.action == action)
            .scalar_subquery()
            .label(name)
            for name, action in (("of_portal", DEPLOYED), ("of_plan", PLAN_APPLIED))
        )
    )
)


def last_deployment(db: Database) -> datetime | None:
    """Return when a portal or the plan was deployed last, as far as the log remembers."""
    (row,) = run(db, _DEPLOYMENT)
    return max((at for at in row if at is not None), default=None)


def asking_sign_ins(user: User) -> Asked:
    """Return what asks when and from where a user signed in or failed to, the newest first.

    What is older than the account was somebody else who had the name.
    """
    return _SIGN_INS, {"name": user.name, "since": user.created_at}


def asking_controllers() -> Asked:
    """Return what asks for that which the controllers did and reported last, as in ``AuditEvent``."""
    return _OF_CONTROLLERS, {}


def about(db: Session, user: User, *, most: int) -> list[AuditEvent]:
    """Return the newest acts by a user and upon them, each once, the newest first.

    What is older than the account is about somebody else who had the name.
    """
    found: dict[int, AuditEvent] = {}
    # Two questions, each answered from its own index. A release before this one let users have any name.
    for column in (AuditEvent.object,) if is_no_user(user.name) else (AuditEvent.actor, AuditEvent.object):
        query = select(AuditEvent).where(column == user.name, AuditEvent.at >= user.created_at)
        found |= {row.id: row for row in db.scalars(query.order_by(AuditEvent.at.desc()).limit(most))}
    return sorted(found.values(), key=lambda row: (row.at, row.id), reverse=True)[:most]


def _cut(column: str, value: str) -> str:
    longest = _LONGEST[column]
    return value if len(value) <= longest else value[: longest - 1] + "…"


@dataclass(frozen=True)
class Filter:
    """What acts have to be; empty is any. ``begin`` and ``end``: from here on, and before."""

    actor: str = ""
    action: str = ""
    object: str = ""
    begin: datetime | None = None
    end: datetime | None = None


def page(db: Database, wanted: Filter, *, before: str = "", after: str = "") -> paging.Page:
    """Return acts as in ``AuditEvent``, newest first."""
    return paging.read(db, filtered(wanted), ORDER, before=before, after=after)


def _different_actions() -> Statement:
    """Ask for each action that follows the one before: one look into the index for each."""
    found = select(func.min(AuditEvent.action).label("action")).cte("found", recursive=True)
    following = select(func.min(AuditEvent.action)).where(AuditEvent.action > found.c.action)
    found = found.union_all(select(following.scalar_subquery()).where(found.c.action.is_not(None)))
    return Statement(select(found.c.action).where(found.c.action.is_not(None)).limit(_MOST_ACTIONS))


_ACTIONS = _different_actions()


def actions(db: Database) -> list[str]:
    """Return the actions that the log has, in their order."""
    return [row.action for row in run(db, _ACTIONS)]


def csv_lines(wanted: Filter, *, most: int = MOST_EXPORTED) -> Iterator[str]:
    """Yield the filtered acts as a CSV file in parts."""
    columns = ("at", "actor", "action", "object", "source", "details")
    found = exports.rows(filtered(wanted), ORDER, most=most)
    return exports.csv_lines(columns, found, _cells, most=most)


def json_lines(wanted: Filter, *, most: int = MOST_EXPORTED) -> Iterator[str]:
    """Yield the filtered acts, a JSON object per line; the last says so when there are more."""
    for number, event in enumerate(exports.rows(filtered(wanted), ORDER, most=most)):
        if number == most:
            yield json.dumps({"cut_after": most}) + "\n"
            return
        row = {
            "at": f"{event.at:%Y-%m-%dT%H:%M:%SZ}",
            "actor": event.actor,
            "action": event.action,
            "object": event.object,
            "source": event.source,
            "details": event.details,
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"


def filtered(wanted: Filter) -> Any:
    """Return what asks for these acts, without an order."""
    query = select(*AuditEvent.__table__.columns)
    for column, value in (
        (AuditEvent.actor, wanted.actor),
        (AuditEvent.action, wanted.action),
        (AuditEvent.object, wanted.object),
    ):
        if value:
            query = query.where(column == value)
    if wanted.begin is not None:
        query = query.where(AuditEvent.at >= wanted.begin)
    if wanted.end is not None:
        query = query.where(AuditEvent.at < wanted.end)
    return query


def _cells(event: Any) -> list[object]:
    details = json.dumps(event.details, ensure_ascii=False) if event.details else ""
    return [event.at, event.actor, event.action, event.object, event.source, details]


def former_permissions(db: Session, user: User) -> list[str] | None:
    """Return what a user had before the permissions were set last, None if the log does not know."""
    details = db.scalar(
        select(AuditEvent.details)
        .where(
            AuditEvent.object == user.name,
            AuditEvent.action == PERMISSIONS_SET,
            AuditEvent.at >= user.created_at,
        )
        .order_by(AuditEvent.at.desc(), AuditEvent.id.desc())
        .limit(1)
    )
    return None if details is None else list(details["before"])
