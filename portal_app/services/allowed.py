"""What users hold although they may not have it any more, since a setting changed: it is ended.

Changes of an account, a profile or a permission cut at once where they are made. What is left is what
nobody made at the portal: an app or an access permission that another inventory took away (reliability.md
O19), and what slipped through between two changes.
"""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from portal_app.db import retried, transaction
from portal_app.models import Authorization, BrowserSession, Connection, Profile, User
from portal_app.services import authorizations, browser_sessions, connections, profiles
from portal_app.services.connections import Ended

_CHUNK = 500


def connections_without_permission(db: Session, profile: Profile) -> list[str]:
    """Return the connections of a profile whose users may not use it."""
    if profile.permissions is None and not profile.hidden:
        return []
    held = db.execute(
        select(Connection.id, User.permissions)
        .join(User, User.id == Connection.user_id)
        .where(Connection.profile_id == profile.profile_id)
    )
    return [row.id for row in held if not profiles.may_use(profile, row.permissions)]


def end_forbidden(
    clients: Collection[str], access_permissions: list[str] | None, now: datetime
) -> list[Ended]:
    """End what no registered app, no access permission or no profile's permission stands behind.

    The caller passes the result to ``connections.tell``.
    """
    with transaction(read_only=True) as db:
        unknown = db.scalars(select(Authorization.id).where(Authorization.client_id.not_in(clients))).all()
        without_access = _users_without_access(db, access_permissions)
        lost = [
            i
            for profile in db.scalars(select(Profile)).all()
            for i in connections_without_permission(db, profile)
        ]
    ended = []
    for start in range(0, len(unknown), _CHUNK):
        ids = unknown[start : start + _CHUNK]
        ended += _end(Authorization.id.in_(ids), None, "client_removed", now)
    for start in range(0, len(without_access), _CHUNK):
        users = without_access[start : start + _CHUNK]
        ended += _end(Authorization.user_id.in_(users), Connection.user_id.in_(users), "access_lost", now)
        _sign_out(users)
    for start in range(0, len(lost), _CHUNK):
        ended += _end(None, Connection.id.in_(lost[start : start + _CHUNK]), "permission_lost", now)
    return ended


def _users_without_access(db: Session, access_permissions: list[str] | None) -> list[int]:
    if access_permissions is None:
        return []
    holds_something = or_(
        *(User.id.in_(select(model.user_id)) for model in (Authorization, Connection, BrowserSession))
    )
    held = db.execute(select(User.id, User.permissions).where(holds_something))
    return [row.id for row in held if not profiles.meets(access_permissions, row.permissions)]


@retried
def _end(
    of_apps: ColumnElement[bool] | None, others: ColumnElement[bool] | None, reason: str, now: datetime
) -> list[Ended]:
    ended = []
    with transaction() as db:
        if of_apps is not None:
            ended += authorizations.end(db, of_apps, reason=reason, now=now)
        if others is not None:
            ended += connections.end(db, others, reason=reason, now=now)
    return ended


@retried
def _sign_out(users: Collection[int]) -> None:
    with transaction() as db:
        for user_id in users:
            browser_sessions.end_all(db, user_id)
