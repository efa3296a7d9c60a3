"""An operator ends what is others': connections, and consents for apps. Each act is an audit row."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select

from portal_app.db import retried, transaction
from portal_app.errors import N_, BadRequest, NotFound
from portal_app.models import Authorization, Connection, User
from portal_app.services import audit, authorizations, connections
from portal_app.services.connections import GONE, Ended

#: So many are ended at once: what a page lists.
MOST_ENDED = 200
_REASON = "ended_by_admin"


def end_connections(ids: Collection[str], *, actor: str, source: str | None, now: datetime) -> int:
    """End connections; returns how many there were. Raises NotFound for none."""
    if not 1 <= len(ids) <= MOST_ENDED:
        raise BadRequest(N_("Choose 1 to %(most)s connections."), most=MOST_ENDED)
    ended = _end_connections(sorted(ids), actor, source, now)
    connections.tell(ended)
    return len(ended)


@retried
def _end_connections(ids: list[str], actor: str, source: str | None, now: datetime) -> list[Ended]:
    with transaction() as db:
        ended = connections.end(db, Connection.id.in_(ids), reason=_REASON, now=now)
        if not ended:
            raise NotFound(GONE)
        for one in ended:
            audit.record(
                db, "connection ended", actor=actor, object=one.user_name, source=source, now=now,
                connection=one.connection_id, profile=one.profile_id, node=one.node.name,
            )  # fmt: skip
        return ended


def end_all_of(user: User, *, actor: str, source: str | None, now: datetime) -> int:
    """End every connection of a user, of apps and by hand; apps stay authorized. Returns how many."""
    ended = _end_all_of(user.id, user.name, actor, source, now)
    connections.tell(ended)
    return len(ended)


@retried
def _end_all_of(user_id: int, name: str, actor: str, source: str | None, now: datetime) -> list[Ended]:
    with transaction() as db:
        ended = connections.end(db, Connection.user_id == user_id, reason=_REASON, now=now)
        audit.record(
            db, "connections ended", actor=actor, object=name, source=source, now=now, connections=len(ended)
        )
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
            raise NotFound(N_("no user %(name)r"), name=name)
        which = Authorization.user_id == user_id
        if authorization_id is not None:
            which &= Authorization.id == authorization_id
        apps = db.scalars(select(Authorization.client_id).where(which)).all()
        if not apps and authorization_id is not None:
            raise NotFound(GONE)
        if not apps:
            return 0, []
        ended = authorizations.end(db, which, reason=_REASON, now=now)
        for client_id in sorted(apps):
            audit.record(db, "app ended", actor=actor, object=name, source=source, now=now, client=client_id)
        return len(apps), ended
