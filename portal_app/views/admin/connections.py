"""Who holds which connection."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from flask import render_template
from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from portal_app.db import transaction
from portal_app.login import requires
from portal_app.models import Connection, Node, User, VpnSession
from portal_app.roles import Right
from portal_app.services import paging
from portal_app.views import forms
from portal_app.views.admin import bp


@dataclass(frozen=True)
class ConnectionView:
    connection: Connection
    user: str
    node: str
    active: bool
    addresses: tuple[str, ...]


@bp.get("/connections")
@requires(Right.SEE)
def connections() -> str:
    search = forms.query("search")
    with transaction(read_only=True) as db:
        found = _search(search)
        total = db.scalar(select(func.count()).select_from(Connection).join(User).where(*found)) or 0
        page = paging.read(
            db,
            select(Connection, User.name, Node.name)
            .join(User, User.id == Connection.user_id)
            .outerjoin(Node, Node.number == Connection.node_number)
            .where(*found),
            paging.Order([Connection.created_at, Connection.id], descending=True),
            before=forms.query("before", 999),
            after=forms.query("after", 999),
        )
        rows = _views(db, page.rows)
    return render_template("admin/connections.html", rows=rows, total=total, page=page, search=search)


def _search(search: str) -> list[ColumnElement[bool]]:
    """Match an address exactly, of a connection or its session; anything else is part of a user's name."""
    if not search:
        return []
    try:
        address = str(ip_address(search))
    except ValueError:
        return [User.name.icontains(search, autoescape=True)]
    in_use = select(VpnSession.connection_id).where(
        VpnSession.ended_at.is_(None),
        or_(VpnSession.ipv4 == address, VpnSession.ipv6 == address, VpnSession.origin == address),
    )
    return [or_(Connection.ipv4 == address, Connection.ipv6 == address, Connection.id.in_(in_use))]


def _views(db: Session, rows: list[Any]) -> list[ConnectionView]:
    sessions: dict[str, list[VpnSession]] = {}
    open_ones = select(VpnSession).where(
        VpnSession.connection_id.in_([connection.id for connection, _user, _node in rows]),
        VpnSession.ended_at.is_(None),
    )
    for session in db.scalars(open_ones):
        sessions.setdefault(session.connection_id, []).append(session)
    views = []
    for connection, user, node in rows:
        leased = [connection.ipv4, connection.ipv6]
        used = [address for s in sessions.get(connection.id, []) for address in (s.ipv4, s.ipv6)]
        addresses = tuple(dict.fromkeys(filter(None, leased + used)))
        views.append(
            ConnectionView(
                connection, user, node or str(connection.node_number), connection.id in sessions, addresses
            )
        )
    return views
