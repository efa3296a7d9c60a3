"""Pages of administration: a module for each section. Every view names the right it needs (``requires``)."""

from dataclasses import dataclass

from flask import Blueprint, current_app, request

from portal_app import login
from portal_app.errors import N_
from portal_app.roles import Right

bp = Blueprint("admin", __name__, url_prefix="/admin")


@dataclass(frozen=True)
class Section:
    """One entry beside the pages. ``text`` is translated where it is shown."""

    endpoint: str
    text: str
    right: Right = Right.SEE

    @property
    def here(self) -> bool:
        """Tell whether the page of this request belongs to the section: it is below its address."""
        rule = request.url_rule.rule if request.url_rule else ""
        own = next(current_app.url_map.iter_rules(self.endpoint)).rule
        return rule == own or (own != "/admin/" and rule.startswith(own + "/"))


SECTIONS = (
    Section("admin.overview", N_("Overview")),
    Section("admin.connections", N_("Connections")),
    Section("admin.users", N_("Users")),
    Section("admin.nodes", N_("Nodes")),
    Section("admin.profiles", N_("Profiles")),
    Section("admin.who_had", N_("Who had it"), Right.SEARCH),
    Section("admin.history", N_("History"), Right.SEARCH),
    Section("admin.statistics", N_("Statistics")),
    Section("admin.audit", N_("Audit log"), Right.SEARCH),
    Section("admin.tokens", N_("API tokens"), Right.MANAGE),
    Section("admin.system", N_("System")),
)


@bp.app_template_global()
def sections() -> list[Section]:
    """Return the sections that this user may see."""
    rights = login.required().rights
    return [s for s in SECTIONS if s.right in rights and s.endpoint in current_app.view_functions]


# Each adds its views to ``bp``.
from portal_app.views.admin import (  # noqa: E402
    audit,  # noqa: F401
    connections,  # noqa: F401
    history,  # noqa: F401
    nodes,  # noqa: F401
    overview,  # noqa: F401
    profiles,  # noqa: F401
    statistics,  # noqa: F401
    system,  # noqa: F401
    tokens,  # noqa: F401
    users,  # noqa: F401
    who_had,  # noqa: F401
)
