"""What an operator ends that is somebody else's: a connection, or the consent for an app. Each is audited."""

from datetime import datetime

from sqlalchemy import select

from portal_app.db import retried, transaction
from portal_app.errors import NotFound
from portal_app.models import Authorization, Connection, User
from portal_app.services import audit, authorizations, connections
from portal_app.services.connections import Ended

_REASON = "ended_by_admin"


def end_connection(connection_id: str, *, actor: str, source: str | None, now: datetime) -> None:
    """End one connection and tell its node. Raises NotFound."""
    connections.tell(_end_connection(connection_id, actor, source, now))


@retried
def _end_connection(connection_id: str, actor: str, source: str | None, now: datetime) -> list[Ended]:
    with transaction() as db:
        ended = connections.end(db, Connection.id == connection_id, reason=_REASON, now=now)
        if not ended:
            raise NotFound("no such connection; it may have ended already")
        audit.record(
            db, "connection ended", actor=actor, object=connection_id, source=source, now=now,
            user=ended[0].user_name,
        )  # fmt: skip
        return ended


def end_authorizations(
    name: str, authorization_id: int | None, *, actor: str, source: str | None, now: datetime
) -> tuple[int, int]:
    """End one authorization of a user, or with None all, with their connections.

    Returns how many authorizations and connections there were. Raises NotFound for an unknown user, and for
    one authorization that is not there.
    """
    count, ended = _end_authorizations(name, authorization_id, actor, source, now)
    connections.tell(ended)
    return count, len(ended)


@retried
def _end_authorizations(
    name: str, authorization_id: int | None, actor: str, source: str | None, now: datetime
) -> tuple[int, list[Ended]]:
    with transaction() as db:
        user_id = db.scalar(select(User.id).where(User.name == name))
        if user_id is None:
            raise NotFound(f"no user {name!r}")
        which = Authorization.user_id == user_id
        if authorization_id is not None:
            which &= Authorization.id == authorization_id
        apps = db.scalars(select(Authorization.client_id).where(which)).all()
        if not apps and authorization_id is not None:
            raise NotFound("no such authorization; it may have ended already")
        if not apps:
            return 0, []
        ended = authorizations.end(db, which, reason=_REASON, now=now)
        audit.record(
            db, "app revoked", actor=actor, object=name, source=source, now=now,
            apps=sorted(set(apps)), connections=len(ended),
        )  # fmt: skip
        return len(apps), ended
