"""What a user connects with: apps that they approved and configurations that they downloaded, in one list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select, update
from sqlalchemy.orm import Session

from portal_app.db import Database
from portal_app.errors import NotFound
from portal_app.models import AddressUse, Authorization, Connection, Node, Profile, User, VpnSession
from portal_app.oauth.clients import Client
from portal_app.services import audit, authorizations, connections
from portal_app.services.connections import Ended
from portal_app.statements import Statement, run

#: How many devices, tunnels and earlier sessions a user sees.
MOST, MOST_EARLIER = 200, 20


@dataclass(frozen=True)
class Use:
    """One session of a connection, as the journal says. ``device`` is "" when its connection has ended."""

    device: str
    profile: str
    protocol: str
    node: str
    addresses: tuple[str, ...]
    origin: str | None
    started_at: datetime
    ended_at: datetime | None
    received_bytes: int | None
    sent_bytes: int | None
    connection_id: str


@dataclass(frozen=True)
class Device:
    """One app or one downloaded configuration.

    ``used_at`` is when it was seen last, None for never. An app has no connection (``connection_id`` "")
    while it is not connected; ``uses`` are what is open now.
    """

    name: str
    authorization_id: int | None
    connection_id: str
    profile: str
    protocol: str
    made_at: datetime
    until: datetime
    used_at: datetime | None
    uses: Sequence[Use] = field(default_factory=list)

    @property
    def is_app(self) -> bool:
        return self.authorization_id is not None


@dataclass(frozen=True)
class Overview:
    """``ending`` are tunnels that are open although their configuration has ended: they go by themselves."""

    devices: list[Device]
    ending: list[Use]
    earlier: list[Use]


def _living(user_id: Any, now: Any) -> tuple[ColumnElement[bool], ...]:
    return (Authorization.user_id == user_id, Authorization.expires_at > now)


def _downloaded(user_id: Any, now: Any) -> tuple[ColumnElement[bool], ...]:
    return (
        Connection.user_id == user_id,
        # Not "is null": SQLite would look through the downloads of everybody, by the index of that column.
        func.coalesce(Connection.authorization_id, 0) == 0,
        Connection.expires_at > now,
    )


def overview(db: Database, user: User, clients: Mapping[str, Client], *, now: datetime) -> Overview:
    """Return what a user connects with, what was used last first, and what was used before."""
    active = _uses(db, user, _OPEN)
    devices = _devices(db, user, clients, active, now)
    known = {device.connection_id for device in devices}
    return Overview(
        devices=devices,
        ending=[use for use in active if use.connection_id not in known],
        earlier=_uses(db, user, _OVER),
    )


def current(db: Database, user: User, clients: Mapping[str, Client], *, now: datetime) -> list[Device]:
    """Return the devices alone."""
    active = _uses(db, user, _OPEN)
    return _devices(db, user, clients, active, now)


def _devices(
    db: Database, user: User, clients: Mapping[str, Client], active: Sequence[Use], now: datetime
) -> list[Device]:
    by_connection: dict[str, list[Use]] = {}
    for use in active:
        by_connection.setdefault(use.connection_id, []).append(use)
    found = _apps(db, user, clients, by_connection, now) + downloads(db, user, by_connection, now=now)
    return sorted(found, key=lambda device: device.used_at or device.made_at, reverse=True)


_SEEN = select(
    func.max(func.coalesce(VpnSession.ended_at, VpnSession.started_at), type_=VpnSession.started_at.type)
).where(VpnSession.connection_id == Connection.id)
_DOWNLOADS = Statement(
    select(
        Connection.id,
        Connection.display_name,
        Connection.protocol,
        Connection.created_at,
        Connection.expires_at,
        Profile.display_name.label("profile"),
        # When the nodes saw it last; of what is open, when that began.
        _SEEN.scalar_subquery().label("used_at"),
    )
    .join(Profile, Profile.profile_id == Connection.profile_id)
    .where(*_downloaded(bindparam("user"), bindparam("now")))
    .order_by(Connection.created_at.desc())
    .limit(MOST)
)


def downloads(
    db: Database, user: User, active: Mapping[str, Sequence[Use]] | None = None, *, now: datetime
) -> list[Device]:
    """Return a user's downloaded configurations, the newest first."""
    return [
        Device(
            name=row.display_name,
            authorization_id=None,
            connection_id=row.id,
            profile=row.profile,
            protocol=row.protocol,
            made_at=row.created_at,
            until=row.expires_at,
            used_at=row.used_at,
            uses=(active or {}).get(row.id, []),
        )
        for row in run(db, _DOWNLOADS, {"user": user.id, "now": now})
    ]


def counts(db: Session, user: User, *, now: datetime) -> tuple[int, int, int]:
    """Return how many apps, downloaded configurations and open tunnels a user has."""
    apps = select(func.count(Authorization.id)).where(*_living(user.id, now))
    downloaded = select(func.count(Connection.id)).where(*_downloaded(user.id, now))
    own = select(Connection.id).where(Connection.user_id == user.id)
    tunnels = select(func.count(VpnSession.session_id)).where(
        VpnSession.connection_id.in_(own), VpnSession.ended_at.is_(None)
    )
    return (db.scalar(apps) or 0, db.scalar(downloaded) or 0, db.scalar(tunnels) or 0)


def revoke(db: Session, user: User, authorization_id: int, source: str | None, now: datetime) -> list[Ended]:
    """End one of the user's apps with its connection; raises NotFound. The caller tells the nodes."""
    which = (Authorization.id == authorization_id) & (Authorization.user_id == user.id)
    client_id = db.scalar(select(Authorization.client_id).where(which))
    if client_id is None:
        raise NotFound(connections.GONE)
    ended = authorizations.end(db, which, reason="revoked_by_user", now=now)
    audit.record(
        db, "app revoked", actor=user.name, object=user.name, source=source, now=now, client=client_id
    )
    return ended


def end(db: Session, user: User, connection_id: str, source: str | None, now: datetime) -> list[Ended]:
    """End one of the user's connections, made by an app or by hand; raises NotFound."""
    which = (Connection.id == connection_id) & (Connection.user_id == user.id)
    ended = connections.end(db, which, reason="ended_by_user", now=now)
    if not ended:
        raise NotFound(connections.GONE)
    audit.record(
        db, "connection ended", actor=user.name, object=user.name, source=source, now=now,
        connection=connection_id, profile=ended[0].profile_id, node=ended[0].node.name,
    )  # fmt: skip
    return ended


def rename(db: Session, user: User, connection_id: str, name: str, source: str | None, now: datetime) -> None:
    """Give one of the user's downloaded configurations another name; raises NotFound."""
    renamed = db.execute(
        update(Connection)
        .where(Connection.id == connection_id, *_downloaded(user.id, now))
        .values(display_name=name)
        .returning(Connection.id)
        .execution_options(synchronize_session=False)
    )
    if renamed.one_or_none() is None:
        raise NotFound(connections.GONE)
    db.execute(
        update(AddressUse)
        .where(AddressUse.connection_id == connection_id, AddressUse.ended_at.is_(None))
        .values(device=name)
        .execution_options(synchronize_session=False)
    )
    audit.record(
        db, "configuration renamed", actor=user.name, object=connection_id, source=source, now=now, name=name
    )


_APPS = Statement(
    select(
        Authorization.id,
        Authorization.client_id,
        Authorization.authorized_at,
        Authorization.expires_at,
        Authorization.last_used_at,
        Connection.id.label("connection_id"),
        Connection.protocol,
        Profile.display_name.label("profile"),
    )
    .outerjoin(Connection, Connection.authorization_id == Authorization.id)
    .outerjoin(Profile, Profile.profile_id == Connection.profile_id)
    .where(*_living(bindparam("user"), bindparam("now")))
    .order_by(Authorization.authorized_at.desc())
    .limit(MOST)
)


def _apps(
    db: Database,
    user: User,
    clients: Mapping[str, Client],
    active: Mapping[str, Sequence[Use]],
    now: datetime,
) -> list[Device]:
    return [
        Device(
            name=clients[app.client_id].name if app.client_id in clients else app.client_id,
            authorization_id=app.id,
            connection_id=app.connection_id or "",
            profile=app.profile or "",
            protocol=app.protocol or "",
            made_at=app.authorized_at,
            until=app.expires_at,
            used_at=app.last_used_at,
            uses=active.get(app.connection_id, []),
        )
        for app in run(db, _APPS, {"user": user.id, "now": now})
    ]


def _of_uses(which: ColumnElement[bool], most: int) -> Statement:
    own = (Connection.id == VpnSession.connection_id) & (Connection.user_id == bindparam("user"))
    return Statement(
        select(
            *VpnSession.__table__.columns,
            Node.name.label("node"),
            Profile.display_name.label("profile"),
            Connection.display_name.label("device"),
        )
        .outerjoin(Node, Node.number == VpnSession.node_number)
        .outerjoin(Profile, Profile.profile_id == VpnSession.profile_id)
        .outerjoin(Connection, own)
        # What is older than the account is about somebody else who had the name.
        .where(VpnSession.user_name == bindparam("name"), VpnSession.started_at >= bindparam("since"), which)
        .order_by(VpnSession.started_at.desc())
        .limit(most)
    )


_OPEN = _of_uses(VpnSession.ended_at.is_(None), MOST)
_OVER = _of_uses(VpnSession.ended_at.is_not(None), MOST_EARLIER)


def _uses(db: Database, user: User, which: Statement) -> list[Use]:
    return [
        Use(
            device=row.device or "",
            profile=row.profile or row.profile_id,
            protocol=row.protocol,
            node=row.node or str(row.node_number),
            addresses=tuple(filter(None, (row.ipv4, row.ipv6))),
            origin=row.origin,
            started_at=row.started_at,
            ended_at=row.ended_at,
            received_bytes=row.received_bytes,
            sent_bytes=row.sent_bytes,
            connection_id=row.connection_id,
        )
        for row in run(db, which, {"user": user.id, "name": user.name, "since": user.created_at})
    ]
