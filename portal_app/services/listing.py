"""What the admin API lists: users, authorizations, connections, sessions, acts. Reads only.

Each list has one order, for which the database has an index, and is read page by page (paging.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from portal_app.errors import BadRequest
from portal_app.models import (
    Authorization,
    Connection,
    LocalAccount,
    Node,
    User,
    VpnSession,
)
from portal_app.names import begins, folded
from portal_app.services import audit, history, paging
from portal_app.services.paging import Order, Page


@dataclass(frozen=True)
class Part:
    """Which part of a list is wanted; an empty cursor is its begin."""

    cursor: str = ""
    size: int = paging.PAGE_SIZE


USERS = Order([User.name])
#: By what a search goes through, so that the database reads what it finds and no more.
SEARCHED_USERS = Order([folded(User.name), User.id])
AUTHORIZATIONS = Order([Authorization.id])
#: By what never changes: a script that reads page after page meets each one once, whatever comes and goes.
CONNECTIONS = Order([Connection.id])

_HAS_PASSWORD = exists().where(LocalAccount.user_id == User.id, LocalAccount.password_hash.is_not(None))
_HELD = select(func.count(Connection.id)).where(Connection.user_id == User.id).scalar_subquery()
_USERS = select(User, _HAS_PASSWORD, _HELD)
_IS_OPEN = exists().where(VpnSession.connection_id == Connection.id, VpnSession.ended_at.is_(None))


@dataclass(frozen=True)
class UserRow:
    """A user, whether a password is set, and how many connections there are."""

    user: User
    has_password: bool
    connections: int


@dataclass(frozen=True)
class ConnectionRow:
    """A connection, whose it is, and the open sessions of it."""

    connection: Connection
    user: str
    node: str
    client_id: str | None
    sessions: Sequence[VpnSession]


@dataclass(frozen=True)
class ConnectionFilter:
    """What connections have to be; None is any."""

    user: str | None = None
    profile_id: str | None = None
    node: str | None = None
    protocol: str | None = None
    active: bool | None = None


def users(
    db: Session, *, disabled: bool | None, search: str = "", part: Part
) -> tuple[list[UserRow], str | None]:
    """Return users by name, and the cursor of what follows. ``search`` is the begin of a name."""
    query = _USERS if disabled is None else _USERS.where(User.is_disabled.is_(disabled))
    if search:
        query = query.where(begins(User.name, search))
    page = _read(db, query, SEARCHED_USERS if search else USERS, part)
    return [UserRow(*row[:3]) for row in page.rows], page.after


def every_user(db: Session) -> list[UserRow]:
    """Return each user by name."""
    return [UserRow(*row) for row in db.execute(_USERS.order_by(User.name))]


def user(db: Session, name: str) -> UserRow | None:
    row = db.execute(_USERS.where(User.name == name)).one_or_none()
    return None if row is None else UserRow(*row)


def authorizations(db: Session, user_id: int, part: Part) -> tuple[list[Authorization], str | None]:
    """Return the authorizations of a user, the oldest first."""
    page = _read(db, select(Authorization).where(Authorization.user_id == user_id), AUTHORIZATIONS, part)
    return [row[0] for row in page.rows], page.after


def connections(db: Session, wanted: ConnectionFilter, part: Part) -> tuple[list[ConnectionRow], str | None]:
    """Return connections in the order of their ids."""
    page = _read(db, _connections().where(*_of_connection(wanted)), CONNECTIONS, part)
    return _with_sessions(db, page.rows), page.after


def connection(db: Session, connection_id: str) -> ConnectionRow | None:
    row = db.execute(_connections().where(Connection.id == connection_id)).one_or_none()
    return None if row is None else _with_sessions(db, [row])[0]


def _connections() -> Any:
    return (
        select(Connection, User.name, Node.name, Authorization.client_id)
        .join(User, User.id == Connection.user_id)
        .join(Node, Node.number == Connection.node_number)
        .outerjoin(Authorization, Authorization.id == Connection.authorization_id)
    )


def _of_connection(wanted: ConnectionFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.user is not None:
        found.append(User.name == wanted.user)
    if wanted.profile_id is not None:
        found.append(Connection.profile_id == wanted.profile_id)
    if wanted.node is not None:
        found.append(Node.name == wanted.node)
    if wanted.protocol is not None:
        found.append(Connection.protocol == wanted.protocol)
    if wanted.active is not None:
        found.append(_IS_OPEN if wanted.active else ~_IS_OPEN)
    return found


def _with_sessions(db: Session, rows: Sequence[Any]) -> list[ConnectionRow]:
    """Read the open sessions of some connections at once."""
    of: dict[str, list[VpnSession]] = {}
    open_ones = select(VpnSession).where(
        VpnSession.connection_id.in_([row[0].id for row in rows]), VpnSession.ended_at.is_(None)
    )
    for session in db.scalars(open_ones.order_by(VpnSession.started_at, VpnSession.session_id)):
        of.setdefault(session.connection_id, []).append(session)
    return [ConnectionRow(c, user, node, client, of.get(c.id, [])) for c, user, node, client, *_ in rows]


def sessions(db: Session, wanted: history.Filter, part: Part) -> tuple[list[Any], str | None]:
    """Return sessions as ``history.page`` does, the newest first."""
    page = _read(db, history.filtered(wanted), history.ORDER, part)
    return page.rows, page.after


def acts(db: Session, wanted: audit.Filter, part: Part) -> tuple[list[Any], str | None]:
    """Return rows of the audit log, the newest first."""
    page = _read(db, audit.filtered(wanted), audit.ORDER, part)
    return page.rows, page.after


def _read(db: Session, query: Any, order: Order, part: Part) -> Page:
    """Read a part; raises BadRequest for a cursor that is none of this list, whose begin nobody asked for."""
    if part.cursor and not paging.is_cursor(part.cursor, order):
        raise BadRequest("cursor: use what 'next' of the page before was")
    return paging.read(db, query, order, after=part.cursor, size=part.size)
