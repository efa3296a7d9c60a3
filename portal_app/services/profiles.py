"""Profiles as a user may see and use them."""

from collections.abc import Collection, Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal_app.models import Profile


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


def offered(db: Session, user: HasPermissions) -> list[Profile]:
    """Return the profiles that ``user`` sees: highest priority first, then in the order of the inventory."""
    permissions = user.permissions
    found = db.scalars(select(Profile).order_by(Profile.priority.desc(), Profile.position))
    return [profile for profile in found if may_use(profile, permissions)]


def find_offered(db: Session, user: HasPermissions, profile_id: str) -> Profile | None:
    """Return one profile if ``user`` may use it; unknown, hidden and forbidden look the same."""
    profile = db.get(Profile, profile_id)
    return profile if profile is not None and may_use(profile, user.permissions) else None
