"""An operator ends somebody else's consent for apps, one or all. Each app is an audit row."""

from datetime import datetime

from sqlalchemy import select

from portal_app.db import retried, transaction
from portal_app.errors import NotFound
from portal_app.models import Authorization, User
from portal_app.services import audit, authorizations, connections
from portal_app.services.connections import Ended

_REASON = "ended_by_admin"


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
        for client_id in sorted(apps):
            audit.record(db, "app ended", actor=actor, object=name, source=source, now=now, client=client_id)
        return len(apps), ended
