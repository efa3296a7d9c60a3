"""Profiles as a user may see and use them."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import bindparam, select

from portal_app.db import Database
from portal_app.models import Profile
from portal_app.statements import Asked, Statement, run


class HasPermissions(Protocol):
    """A user, or the owner of an access token."""

    @property
    def permissions(self) -> list[str]: ...


def meets(needed: Sequence[str] | None, permissions: Collection[str]) -> bool:
    """Tell whether one of the ``needed`` permissions is there. None lets everybody in, an empty list nobody.

    >>> meets(None, []), meets([], ["staff"]), meets(["staff", "guest"], ["staff"])
    (True, False, True)
    """
    return needed is None or any(permission in permissions for permission in needed)


class Restricted(Protocol):
    """A profile, or what was read of it."""

    @property
    def hidden(self) -> bool: ...

    @property
    def permissions(self) -> list[str] | None: ...


def may_use(profile: Restricted, permissions: Collection[str]) -> bool:
    return not profile.hidden and meets(profile.permissions, permissions)


_COLUMNS = select(*Profile.__table__.columns)
_ALL = Statement(_COLUMNS.order_by(Profile.priority.desc(), Profile.position))
_ONE = Statement(_COLUMNS.where(Profile.profile_id == bindparam("profile")))


#: What to ask for all profiles, and for one; ``among`` says which of them a user may use.
ALL: Asked = (_ALL, {})


def one(profile_id: str) -> Asked:
    return _ONE, {"profile": profile_id}


def refusal(found: Iterable[Any], user: HasPermissions) -> str:
    """Say why none of these profiles is in ``among``."""
    profile = next(iter(found), None)
    if profile is None:
        return "there is no such profile"
    if profile.hidden:
        return "the profile is hidden"
    has = ", ".join(user.permissions) or "none"
    return (
        f"the profile needs one of {', '.join(profile.permissions) or 'no permissions'}; the user has {has}"
    )


def allowance(profile: Restricted, permissions: Collection[str]) -> str:
    """Say why ``may_use`` is so."""
    if profile.permissions is None:
        return "open to everybody"
    return f"allowed by {', '.join(one for one in profile.permissions if one in permissions)}"


def among(found: Iterable[Any], user: HasPermissions) -> list[Any]:
    """Return the profiles that ``user`` may use: unknown, hidden and forbidden look the same."""
    permissions = user.permissions
    return [profile for profile in found if may_use(profile, permissions)]


def offered(db: Database, user: HasPermissions) -> list[Any]:
    """Return the profiles that ``user`` sees: highest priority first, then in the order of the inventory.

    They are rows with the columns of ``Profile``.
    """
    return among(run(db, *ALL), user)
