"""What a user connects with: apps that they approved and configurations that they downloaded, in one list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from portal_app.errors import NotFound
from portal_app.models import Authorization, Connection, Node, Profile, User, VpnSession
from portal_app.oauth.clients import Client
from portal_app.services import audit, authorizations, connections
from portal_app.services.connections import Ended

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


def overview(db: Session, user: User, clients: Mapping[str, Client], *, now: datetime) -> Overview:
    """Return what a user connects with, what was used last first, and what was used before."""
    active = _uses(db, user, VpnSession.ended_at.is_(None), most=MOST)
    devices = _devices(db, user, clients, active, now)
    known = {device.connection_id for device in devices}
    return Overview(
        devices=devices,
        ending=[use for use in active if use.connection_id not in known],
        earlier=_uses(db, user, VpnSession.ended_at.is_not(None), most=MOST_EARLIER),
    )


def current(db: Session, user: User, clients: Mapping[str, Client], *, now: datetime) -> list[Device]:
    """Return the devices alone."""
    active = _uses(db, user, VpnSession.ended_at.is_(None), most=MOST)
    return _devices(db, user, clients, active, now)


def _devices(
    db: Session, user: User, clients: Mapping[str, Client], active: Sequence[Use], now: datetime
) -> list[Device]:
    by_connection: dict[str, list[Use]] = {}
    for use in active:
        by_connection.setdefault(use.connection_id, []).append(use)
    found = _apps(db, user, clients, by_connection, now) + downloads(db, user, by_connection, now=now)
    return sorted(found, key=lambda device: device.used_at or device.made_at, reverse=True)


def downloads(
    db: Session, user: User, active: Mapping[str, Sequence[Use]] | None = None, *, now: datetime
) -> list[Device]:
    """Return a user's downloaded configurations, the newest first."""
    query = (
        select(Connection, Profile.display_name)
        .join(Profile, Profile.profile_id == Connection.profile_id)
        .where(*_downloaded(user, now))
        .order_by(Connection.created_at.desc())
        .limit(MOST)
    )
    rows = db.execute(query).all()
    seen = _last_seen(db, [connection.id for connection, _profile in rows])
    return [
        Device(
            name=connection.display_name,
            authorization_id=None,
            connection_id=connection.id,
            profile=profile,
            protocol=connection.protocol,
            made_at=connection.created_at,
            until=connection.expires_at,
            used_at=seen.get(connection.id),
            uses=(active or {}).get(connection.id, []),
        )
        for connection, profile in rows
    ]


def counts(db: Session, user: User, *, now: datetime) -> tuple[int, int, int]:
    """Return how many apps, downloaded configurations and open tunnels a user has."""
    apps = select(func.count(Authorization.id)).where(*_living(user, now))
    downloaded = select(func.count(Connection.id)).where(*_downloaded(user, now))
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
        .where(Connection.id == connection_id, *_downloaded(user, now))
        .values(display_name=name)
        .returning(Connection.id)
        .execution_options(synchronize_session=False)
    )
    if renamed.one_or_none() is None:
        raise NotFound(connections.GONE)
    audit.record(
        db, "configuration renamed", actor=user.name, object=connection_id, source=source, now=now, name=name
    )


def _living(user: User, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (Authorization.user_id == user.id, Authorization.expires_at > now)


def _downloaded(user: User, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        Connection.user_id == user.id,
        # Not "is null": SQLite would look through the downloads of everybody, by the index of that column.
        func.coalesce(Connection.authorization_id, 0) == 0,
        Connection.expires_at > now,
    )


def _apps(
    db: Session,
    user: User,
    clients: Mapping[str, Client],
    active: Mapping[str, Sequence[Use]],
    now: datetime,
) -> list[Device]:
    query = (
        select(Authorization, Connection, Profile.display_name)
        .outerjoin(Connection, Connection.authorization_id == Authorization.id)
        .outerjoin(Profile, Profile.profile_id == Connection.profile_id)
        .where(*_living(user, now))
        .order_by(Authorization.authorized_at.desc())
        .limit(MOST)
    )
    return [
        Device(
            name=clients[app.client_id].name if app.client_id in clients else app.client_id,
            authorization_id=app.id,
            connection_id="" if connection is None else connection.id,
            profile=profile or "",
            protocol="" if connection is None else connection.protocol,
            made_at=app.authorized_at,
            until=app.expires_at,
            used_at=app.last_used_at,
            uses=[] if connection is None else active.get(connection.id, []),
        )
        for app, connection, profile in db.execute(query)
    ]


def _last_seen(db: Session, ids: Sequence[str]) -> dict[str, datetime]:
    """Return when the nodes saw a connection last: now for what is open is when that began."""
    if not ids:
        return {}
    moment = func.max(
        func.coalesce(VpnSession.ended_at, VpnSession.started_at), type_=VpnSession.started_at.type
    )
    query = (
        select(VpnSession.connection_id, moment)
        .where(VpnSession.connection_id.in_(ids))
        .group_by(VpnSession.connection_id)
    )
    return dict(db.execute(query).all())


def _uses(db: Session, user: User, which: ColumnElement[bool], *, most: int) -> list[Use]:
    query = (
        select(VpnSession, Node.name, Profile.display_name, Connection.display_name.label("device"))
        .outerjoin(Node, Node.number == VpnSession.node_number)
        .outerjoin(Profile, Profile.profile_id == VpnSession.profile_id)
        .outerjoin(Connection, (Connection.id == VpnSession.connection_id) & (Connection.user_id == user.id))
        # What is older than the account is about somebody else who had the name.
        .where(VpnSession.user_name == user.name, VpnSession.started_at >= user.created_at, which)
        .order_by(VpnSession.started_at.desc())
        .limit(most)
    )
    return [
        Use(
            device=device or "",
            profile=profile or session.profile_id,
            protocol=session.protocol,
            node=node or str(session.node_number),
            addresses=tuple(filter(None, (session.ipv4, session.ipv6))),
            origin=session.origin,
            started_at=session.started_at,
            ended_at=session.ended_at,
            received_bytes=session.received_bytes,
            sent_bytes=session.sent_bytes,
            connection_id=session.connection_id,
        )
        for session, node, profile, device in db.execute(query)
    ]
