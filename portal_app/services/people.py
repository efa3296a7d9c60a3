"""Users as administrators see them: lists, all about one, and why somebody may use what they may use."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    bindparam,
    cast,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session

from portal_app import roles
from portal_app.db import Database, is_postgresql
from portal_app.errors import N_, Forbidden, NotFound
from portal_app.models import (
    AddressUse,
    Authorization,
    Connection,
    LocalAccount,
    Node,
    Profile,
    RefusedConnect,
    User,
    VpnSession,
)
from portal_app.names import begins, folded
from portal_app.roles import Right
from portal_app.services import audit, paging, profiles, tokens
from portal_app.settings import Settings
from portal_app.statements import Asked, Rows, Statement, run, run_together
from vpn_core.messages import WIREGUARD

#: What of a user's past and of their acts one page shows.
MOST_SHOWN = 20
NO_USER = N_("There is no such user. Perhaps somebody has deleted it.")


@dataclass(frozen=True)
class Row:
    """One user of a list (a row with what a ``User`` has): the roles, and the permissions that give none;
    ``connections`` are the configurations held.
    """

    user: Any
    roles: list[str]
    permissions: list[str]
    connections: int


@dataclass(frozen=True)
class Verdict:
    """Whether one profile (a row with what a ``Profile`` has) is for a user, by which rule: nothing is asked,
    hidden, has, lacks.
    """

    profile: Any
    allowed: bool
    rule: str
    permissions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """What would be cut with a user, and how much may be held; ``None`` for what has no limit."""

    of_apps: int
    by_hand: int
    apps: int
    #: Of the admin API: they go with the account, and are suspended while it is disabled or no admin's.
    tokens: int

    @property
    def connections(self) -> int:
        return self.of_apps + self.by_hand


@dataclass(frozen=True)
class SignIn:
    at: datetime
    successful: bool
    source: str | None


_GET = Statement(select(*User.__table__.columns).where(User.id == bindparam("user")))


@dataclass(frozen=True)
class Decision:
    """How a connect was decided. ``result`` is refused, connected (its connection is there) or ended; ``why``
    is None where that is not known. Of a refused one ``answer`` is what the app read, and it has neither
    protocol nor node.
    """

    at: datetime
    device: str
    profile: str
    result: str
    protocol: str
    node: str
    why: str | None
    answer: str = ""


@dataclass(frozen=True)
class About:
    """What the page of a user says: whether a password is kept here, and whether there is one by now; what
    they hold; the last sessions as in ``VpnSession``, with the names of ``profile`` and ``node`` or None; the
    last sign-ins; which profiles are theirs; and how the last connects were decided.
    """

    has_account: bool
    has_password: bool
    held: Held
    history: Rows
    sign_ins: list[SignIn]
    verdicts: list[Verdict]
    decisions: list[Decision]


def get(db: Database, user_id: int) -> User:
    """Return a user, to read; raises NotFound."""
    row = run(db, _GET, {"user": user_id}).one_or_none()
    if row is None:
        raise NotFound(NO_USER)
    return User(**row._asdict())


def read(
    db: Database,
    settings: Settings,
    *,
    search: str = "",
    state: str = "",
    by_time: bool = False,
    descending: bool = False,
    before: str = "",
    after: str = "",
) -> paging.Page:
    """Return a page of ``Row``. ``search`` is the begin of a name; ``state``: active, disabled, role."""
    found: list[ColumnElement[bool]] = []
    if search:
        found.append(begins(User.name, search))
    if state == "active":
        found.append(User.is_disabled.is_(False))
    elif state == "disabled":
        found.append(User.is_disabled == true())
    elif state == "role":
        found.append(_has_one_of(db, _of_roles(settings)))
    order = [User.created_at, User.id] if by_time else [folded(User.name), User.id]
    page = paging.read(
        db,
        select(*User.__table__.columns).where(*found),
        paging.Order(order, descending=descending),
        before=before,
        after=after,
    )
    by_user = (
        select(Connection.user_id, func.count())
        .where(Connection.user_id.in_([user.id for user in page.rows]))
        .group_by(Connection.user_id)
    )
    counts: dict[int, int] = dict(db.execute(by_user).all())
    of_roles = _of_roles(settings)
    rows = [
        Row(
            user,
            roles.held(user.permissions, settings),
            [one for one in user.permissions if one not in of_roles],
            counts.get(user.id, 0),
        )
        for user in page.rows
    ]
    return paging.Page(rows, page.before, page.after)


#: What is older than an account is about somebody else who had the name.
_HISTORY = Statement(
    select(
        *VpnSession.__table__.columns,
        Profile.display_name.label("profile"),
        Node.name.label("node"),
    )
    .outerjoin(Profile, Profile.profile_id == VpnSession.profile_id)
    .outerjoin(Node, Node.number == VpnSession.node_number)
    .where(VpnSession.user_name == bindparam("name"), VpnSession.started_at >= bindparam("since"))
    .order_by(VpnSession.started_at.desc())
    .limit(MOST_SHOWN)
)


_OWNED = Connection.user_id == bindparam("user")
_HELD = Statement(
    select(
        *(
            select(func.count()).where(*which).scalar_subquery().label(name)
            for name, which in {
                "of_apps": (_OWNED, Connection.authorization_id.is_not(None)),
                # Not "is null": SQLite would look through the downloads of everybody.
                "by_hand": (_OWNED, func.coalesce(Connection.authorization_id, 0) == 0),
                "apps": (
                    Authorization.user_id == bindparam("user"), Authorization.expires_at > bindparam("now"),
                ),
            }.items()
        )
    )
)  # fmt: skip


def held(db: Database, user: User, *, now: datetime) -> Held:
    (row,), (made,) = run_together(db, _asking_held(user, now))
    return _held(row, made)


def _asking_held(user: User, now: datetime) -> list[Asked]:
    return [(_HELD, {"user": user.id, "now": now}), tokens.counting(user.id, now=now)]


def _held(row: Any, made: Any) -> Held:
    return Held(row.of_apps, row.by_hand, row.apps, made.living)


_HAS_PASSWORD = Statement(
    select(LocalAccount.password_hash.is_not(None).label("is_set")).where(
        LocalAccount.user_id == bindparam("user")
    )
)


_REFUSED = Statement(
    select(
        RefusedConnect.at,
        RefusedConnect.device,
        RefusedConnect.answer,
        RefusedConnect.why,
        func.coalesce(Profile.display_name, RefusedConnect.profile_id).label("profile"),
    )
    .outerjoin(Profile, Profile.profile_id == RefusedConnect.profile_id)
    .where(RefusedConnect.user_id == bindparam("user"))
)


_DECISIONS = Statement(
    select(
        Connection.id,
        Connection.created_at,
        Connection.display_name,
        Connection.protocol,
        Connection.choice,
        func.coalesce(Profile.display_name, Connection.profile_id).label("profile"),
        Node.name.label("node"),
    )
    .outerjoin(Profile, Profile.profile_id == Connection.profile_id)
    .join(Node, Node.number == Connection.node_number)
    .where(Connection.user_id == bindparam("user"))
    .order_by(Connection.created_at.desc())
    .limit(MOST_SHOWN)
)


#: Each connection that has ended, whether it was ever used or not, since when it was there: of WireGuard its
#: address says so, of OpenVPN the use without one (``ending``). What no node admitted nobody had.
_ENDED = Statement(
    select(
        AddressUse.connection_id,
        AddressUse.started_at.label("created_at"),
        AddressUse.device,
        AddressUse.protocol,
        AddressUse.choice,
        func.coalesce(Profile.display_name, AddressUse.profile_id).label("profile"),
        func.coalesce(Node.name, cast(AddressUse.node_number, String)).label("node"),
    )
    .outerjoin(Profile, Profile.profile_id == AddressUse.profile_id)
    .outerjoin(Node, Node.number == AddressUse.node_number)
    .where(
        AddressUse.user_name == bindparam("name"),
        AddressUse.started_at >= bindparam("since"),
        AddressUse.ended_at.is_not(None),
        or_(AddressUse.protocol == WIREGUARD, and_(AddressUse.ipv4.is_(None), AddressUse.ipv6.is_(None))),
        func.coalesce(AddressUse.end_reason, "") != "withdrawn",
    )
    .order_by(AddressUse.started_at.desc())
    .limit(MOST_SHOWN)
)


def about(db: Database, user: User, *, now: datetime) -> About:
    """Read all of it at once."""
    own, remembered = {"user": user.id}, {"name": user.name, "since": user.created_at}
    account, sessions, sign_ins, profile_rows, connections, ended, refused, (row,), (made,) = run_together(
        db,
        [
            (_HAS_PASSWORD, own),
            (_HISTORY, remembered),
            audit.asking_sign_ins(user),
            profiles.ALL,
            (_DECISIONS, own),
            (_ENDED, remembered),
            (_REFUSED, own),
            *_asking_held(user, now),
        ],
    )
    return About(
        has_account=bool(account),
        has_password=any(one.is_set for one in account),
        held=_held(row, made),
        history=sessions,
        sign_ins=[SignIn(act.at, act.action == audit.SIGNED_IN, act.source) for act in sign_ins],
        verdicts=[_verdict(profile, user.permissions) for profile in profile_rows],
        decisions=_decisions(refused, connections, ended),
    )


def _decisions(refused: Rows, living: Rows, ended: Rows) -> list[Decision]:
    """Return what was decided last, the latest first."""
    found = [
        Decision(row.at, row.device, row.profile, "refused", "", "", row.why, row.answer) for row in refused
    ]
    found += [
        Decision(
            row.created_at, row.display_name, row.profile, "connected", row.protocol, row.node, row.choice
        )
        for row in living
    ]
    # One that ends while this is read may be among both.
    known = {row.id for row in living}
    found += [
        Decision(row.created_at, row.device or "", row.profile, "ended", row.protocol, row.node, row.choice)
        for row in ended
        if row.connection_id not in known
    ]
    return sorted(found, key=lambda one: one.at, reverse=True)[:MOST_SHOWN]


def loses(
    db: Session, user: User, permissions: Collection[str], settings: Settings, *, now: datetime
) -> Held:
    """Return what ``users.set_permissions`` would cut."""
    if sorted(set(permissions)) == user.permissions:
        return Held(0, 0, 0, 0)
    if not profiles.meets(settings.access_permissions, permissions):
        return held(db, user, now=now)
    lost = [row.profile_id for row in run(db, *profiles.ALL) if not _verdict(row, permissions).allowed]
    rows = db.execute(
        select(Connection.authorization_id.is_not(None), func.count())
        .where(Connection.user_id == user.id, Connection.profile_id.in_(lost))
        .group_by(Connection.authorization_id.is_not(None))
    )
    counts = {bool(of_app): count for of_app, count in rows}
    stays_admin = Right.MANAGE in roles.rights(permissions, settings)
    made = 0 if stays_admin else tokens.count_of(db, user.id, now=now)
    return Held(counts.get(True, 0), counts.get(False, 0), 0, made)


def known_permissions(db: Session, settings: Settings) -> list[str]:
    """Return the permissions that mean something in this deployment."""
    found = set(_of_roles(settings)) | set(settings.access_permissions or [])
    for needed in db.scalars(select(Profile.permissions)):
        found |= set(needed or [])
    return sorted(found)


def check_may_reset(user: User, rights: Collection[Right], settings: Settings) -> None:
    """Raise Forbidden for a link to somebody's password that would lend their role."""
    if Right.MANAGE in rights or (Right.RESET in rights and not roles.held(user.permissions, settings)):
        return
    raise Forbidden(
        N_("%(name)s has a role in administration; only an administrator makes a link for them."),
        name=user.name,
    )


def check_other(user: User, by: User) -> None:
    """Raise Forbidden for what nobody does to themself."""
    if user.id == by.id:
        raise Forbidden(N_("This is your own account. Ask another administrator to do this."))


def check_keeps_role(user: User, by: User, permissions: Collection[str], settings: Settings) -> None:
    """Raise Forbidden for who would no longer be an administrator by their own act."""
    if user.id == by.id and Right.MANAGE not in roles.rights(permissions, settings):
        raise Forbidden(
            N_("You would no longer be an administrator. Ask another administrator to take that from you.")
        )


def _verdict(profile: Any, permissions: Collection[str]) -> Verdict:
    if profile.hidden:
        return Verdict(profile, False, "hidden")
    if profile.permissions is None:
        return Verdict(profile, True, "everybody")
    has = tuple(one for one in profile.permissions if one in permissions)
    if has:
        return Verdict(profile, True, "has", has)
    return Verdict(profile, False, "lacks", tuple(profile.permissions))


def _of_roles(settings: Settings) -> list[str]:
    return sorted(
        {*settings.admin_permissions, *settings.helpdesk_permissions, *settings.auditor_permissions}
    )


def _has_one_of(db: Database, permissions: Sequence[str]) -> ColumnElement[bool]:
    """Match users with one of these permissions. The text is looked at first, which is fast and nearly
    exact.
    """
    if not permissions:
        return false()
    text = cast(User.permissions, String)
    likely = or_(*(text.contains(json.dumps(one), autoescape=True) for one in permissions))
    each = func.json_array_elements_text if is_postgresql(db) else func.json_each
    items = each(User.permissions).table_valued("value")
    return and_(likely, exists(select(literal(1)).select_from(items).where(items.c.value.in_(permissions))))
