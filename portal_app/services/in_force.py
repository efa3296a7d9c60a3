"""The settings as they are in force, without anything secret, and the variable that sets each."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from portal_app.errors import N_
from portal_app.settings import Settings
from portal_app.texts import Text, text

#: Variables of the inventory that end up in settings.toml: the role's (roles/portal/vars/main.yml), or what
#: the playbooks set the role's from (playbooks/group_vars/all/roles.yml).
VARIABLES: Mapping[str, str] = {
    name: f"portal_{name.removeprefix('portal_')}"
    for name in (
        "portal_name",
        "issuer",
        "session_expiry_seconds",
        "browser_session_seconds",
        "browser_session_longest_seconds",
        "access_token_seconds",
        "authorization_code_seconds",
        "max_app_connections",
        "max_portal_connections",
        "app_gone_seconds",
        "delete_authorization_on_disconnect",
        "access_permissions",
        "admin_permissions",
        "helpdesk_permissions",
        "auditor_permissions",
        "support_contact",
        "accent_color",
        "accent_color_dark",
        "notices",
        "default_language",
        "client_sets",
        "clients",
        "retention_days",
        "audit_retention_days",
        "statistics_retention_days",
    )
} | {
    "logo_file": "portal_logo",
    "portal_url": "vpn_portal_hostname",
    "node_selection": "vpn_node_selection",
    "withdrawn": "vpn_withdrawn_certificates",
    "log_origins": "vpn_log_origins",
    "log_nat": "vpn_log_nat",
    "nat_log_days": "node_agent_nat_log_days",
    "tunnel_networks": "vpn_profiles",
    "secret_key_file": "vault_portal_secret_key",
    "client_ca_key_file": "vault_client_ca_key",
    "database_url_file": "vpn_database_url",
}
#: What these files hold is never shown.
_SECRET = ("secret_key_file", "client_ca_key_file", "management_key_file", "tls_crypt_directory")
#: Parameters of a database's URL that are no secret.
_SHOWN_PARAMETERS = ("host", "port", "sslmode", "target_session_attrs")


@dataclass(frozen=True)
class Setting:
    """``variable`` is what an inventory sets it with, None where the role decides."""

    name: str
    value: Text | str
    variable: str | None


def settings(found: Settings) -> list[Setting]:
    """Return every setting in the order of ``Settings``."""
    return [
        Setting(f.name, _shown(found, f.name, getattr(found, f.name)), VARIABLES.get(f.name))
        for f in fields(found)
    ]


def _shown(found: Settings, name: str, value: Any) -> Text | str:
    if name == "database_url_file":
        return database(found)
    if name == "clients":
        return ", ".join(str(client.get("client_id", "?")) for client in value) or text(N_("none"))
    if name in _SECRET:
        return text(N_("in a file: %(path)s"), path=str(value))
    if name.endswith("_permissions") and not value:
        return text(N_("everybody")) if value is None else text(N_("nobody"))
    if isinstance(value, bool):
        return text(N_("yes")) if value else text(N_("no"))
    if name.endswith("_seconds"):
        return text(N_("%(time)s (%(seconds)s s)"), time=timedelta(seconds=value), seconds=value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or text(N_("none"))
    return text(N_("not set")) if value is None else str(value)


def database(found: Settings) -> Text | str:
    """Return where the database is, without a password."""
    if found.database_url_file is None:
        return text(N_("SQLite in %(path)s"), path=str(found.sqlite_file))
    try:
        url = make_url(_read(found.database_url_file))
    except (OSError, ArgumentError):
        return text(N_("in a file: %(path)s"), path=str(found.database_url_file))
    if url.get_backend_name() == "sqlite":
        return text(N_("SQLite in %(path)s"), path=url.database or "")
    # Nothing else of it: parameters may hold a password, too.
    shown = {key: url.query[key] for key in _SHOWN_PARAMETERS if key in url.query}
    return text(
        N_("%(url)s (the rest in a file: %(path)s)"),
        url=url.set(username=url.username, password=None, query=shown).render_as_string(),
        path=str(found.database_url_file),
    )


def _read(path: Path) -> str:
    return path.read_text().strip()
