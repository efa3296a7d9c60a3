"""Who may do what on the pages of administration and in the admin API.

A role is held by one of the permissions that the settings name for it; a user may hold several. Whoever
holds none is a user, and has the pages of their own things only.
"""

from collections.abc import Collection
from enum import StrEnum

from portal_app.services import profiles
from portal_app.settings import Settings


class Right(StrEnum):
    """What one act needs. Denied is what no role gives."""

    #: See how the service is, who is connected and what each user has.
    SEE = "see"
    #: Ask who had an address, and read history and audit log.
    SEARCH = "search"
    #: End connections, and the authorizations of apps.
    END = "end"
    #: Hand out a link for a new password to somebody without a role.
    RESET = "reset"
    #: Change users and nodes.
    MANAGE = "manage"


RIGHTS = {
    "helpdesk": frozenset({Right.SEE, Right.END, Right.RESET}),
    "auditor": frozenset({Right.SEE, Right.SEARCH}),
    "admin": frozenset(Right),
}


def held(permissions: Collection[str], settings: Settings) -> list[str]:
    """Return the roles that these permissions give."""
    needed = {
        "helpdesk": settings.helpdesk_permissions,
        "auditor": settings.auditor_permissions,
        "admin": settings.admin_permissions,
    }
    return [role for role, any_of in needed.items() if profiles.meets(any_of, permissions)]


def rights(permissions: Collection[str], settings: Settings) -> frozenset[Right]:
    """Return what a holder of these permissions may do beyond their own things."""
    return frozenset().union(*(RIGHTS[role] for role in held(permissions, settings)))
