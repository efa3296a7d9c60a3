"""Settings of the portal: one TOML file, read once, unknown keys refused. Secrets are paths to files."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from portal_app.errors import SettingsError
from vpn_core.colour import accent_problem
from vpn_core.look import Planned, is_contact, planned

DEFAULT_FILE = Path("/etc/causeway/portal/settings.toml")
#: The certificate of the own CA that the portal's certificate is from; where it is from another one, no file.
OWN_TLS_CA = Path("/etc/causeway/tls/ca.crt")
#: Of a certificate from elsewhere that the system does not know (``vpn_portal_ca``).
TRUSTED_TLS_CA = Path("/etc/causeway/tls/trusted.crt")


@dataclass(frozen=True)
class Settings:
    """What ``settings.toml`` says; ``docs/variables.md`` explains each key by the variable that sets it.

    ``portal_url`` is the origin that apps and browsers use. Durations are seconds. A permission list: absent
    means everybody, empty means nobody.
    """

    portal_url: str
    secret_key_file: Path
    client_ca_certificate_file: Path
    client_ca_key_file: Path
    server_ca_certificate_file: Path
    management_ca_certificate_file: Path
    management_certificate_file: Path
    management_key_file: Path
    tls_crypt_directory: Path
    state_directory: Path
    database_url_file: Path | None = None
    portal_name: str = "Causeway"
    issuer: str | None = None
    session_expiry_seconds: int = 90 * 86400
    browser_session_seconds: int = 1800
    browser_session_longest_seconds: int = 12 * 3600
    access_token_seconds: int = 3600
    authorization_code_seconds: int = 60
    max_app_connections: int = 3
    max_portal_connections: int = 3
    app_gone_seconds: int = 72 * 3600
    delete_authorization_on_disconnect: bool = False
    access_permissions: list[str] | None = None
    admin_permissions: list[str] = field(default_factory=lambda: ["admin"])
    helpdesk_permissions: list[str] = field(default_factory=lambda: ["helpdesk"])
    auditor_permissions: list[str] = field(default_factory=lambda: ["auditor"])
    client_sets: list[str] = field(default_factory=lambda: ["eduVPN", "LC"])
    clients: list[dict[str, Any]] = field(default_factory=list)
    node_selection: str = "weighted"
    withdrawn: list[str] = field(default_factory=list)
    log_origins: bool = False
    log_nat: bool = False
    nat_log_days: int = 7
    retention_days: int = 30
    audit_retention_days: int = 365
    statistics_retention_days: int = 0  # for ever
    tunnel_networks: list[str] = field(default_factory=list)
    support_contact: str = ""
    logo_file: Path | None = None
    accent_color: str = ""
    accent_color_dark: str = ""
    notices: list[dict[str, Any]] = field(default_factory=list)
    default_language: str = "en"

    @property
    def support_url(self) -> str:
        """Where the support contact leads; "" when there is none."""
        contact = self.support_contact
        return contact if not contact or contact.startswith("https://") else f"mailto:{contact}"

    @property
    def planned(self) -> list[Planned]:
        """The notices, the next one first."""
        found = [planned(entry) for entry in self.notices]
        return sorted(found, key=lambda notice: notice.starts_at)

    @property
    def database_url(self) -> str:
        """The database's URL: from its file (it may hold a password), or SQLite in the state directory."""
        if self.database_url_file is None:
            return f"sqlite:///{self.sqlite_file}"
        return self.database_url_file.read_text().strip()

    @property
    def sqlite_file(self) -> Path:
        """Where the database is unless another one is named."""
        return self.state_directory / "portal.sqlite"

    @property
    def issuer_identity(self) -> str:
        """``iss`` of RFC 9207: the origin without trailing slash, unless set."""
        return self.issuer or self.portal_url

    @property
    def audit_days(self) -> int:
        """How long acts are kept: no shorter than what they are about."""
        return max(self.audit_retention_days, self.retention_days)

    @property
    def host_name(self) -> str:
        return urlsplit(self.portal_url).hostname or ""

    @classmethod
    def load(cls, path: Path = DEFAULT_FILE) -> "Settings":
        """Read and check a settings file; raises SettingsError naming file, key and fix."""
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: not TOML: {error}") from error
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "settings") -> "Settings":
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise SettingsError(
                    f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
                )
            values[key] = Path(value) if "Path" in str(known[key].type) and isinstance(value, str) else value
            _check_type(f"{where}: {key}", values[key], str(known[key].type))
        for name, f in known.items():
            if name not in values and f.default is MISSING and f.default_factory is MISSING:
                raise SettingsError(f"{where}: '{name}' is missing")
        settings = cls(**values)
        settings._check_values(where)
        return settings

    def _check_values(self, where: str) -> None:
        url = urlsplit(self.portal_url)
        if url.scheme != "https" or not url.hostname or url.path or url.query or url.fragment:
            raise SettingsError(
                f"{where}: portal_url: {self.portal_url!r} must be like https://vpn.example.org"
            )
        if self.node_selection not in ("weighted", "random"):
            raise SettingsError(
                f"{where}: node_selection: {self.node_selection!r} must be 'weighted' or 'random'"
            )
        if bad := [s for s in self.withdrawn if not re.fullmatch("[0-9a-fA-F]{1,40}", str(s))]:
            raise SettingsError(f"{where}: withdrawn: {bad[0]!r} is no serial number in hex")
        for name in (
            "session_expiry_seconds",
            "browser_session_seconds",
            "access_token_seconds",
            "nat_log_days",
            "retention_days",
            "audit_retention_days",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{where}: {name}: must be positive")
        if self.statistics_retention_days < 0:
            raise SettingsError(f"{where}: statistics_retention_days: must be 0, for ever, or more")
        if not 1 <= self.authorization_code_seconds <= 600:
            raise SettingsError(f"{where}: authorization_code_seconds: must be 1 to 600")
        if unknown := set(self.client_sets) - {"eduVPN", "LC", "govVPN"}:
            raise SettingsError(
                f"{where}: client_sets: unknown {sorted(unknown)[0]!r}; use eduVPN, LC, govVPN"
            )
        self._check_look(where)

    def _check_look(self, where: str) -> None:
        if self.support_contact and not is_contact(self.support_contact):
            raise SettingsError(
                f"{where}: support_contact: {self.support_contact!r} is neither a mail address nor an"
                " address that begins with https://"
            )
        for name in ("accent_color", "accent_color_dark"):
            colour = getattr(self, name)
            if colour and (problem := accent_problem(colour, dark=name == "accent_color_dark")):
                raise SettingsError(f"{where}: {name}: {problem}")
        for number, entry in enumerate(self.notices):
            try:
                planned(entry)
            except ValueError as error:
                raise SettingsError(f"{where}: notices[{number}]: {error}") from None


def _check_type(where: str, value: object, annotation: str) -> None:
    wanted = {"str": str, "int": int, "bool": bool, "list": list, "pathlib.Path": Path}
    for name, kind in wanted.items():
        if annotation.startswith((f"<class '{name}'", name)):
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise SettingsError(f"{where}: {value!r} is not of type {name}")
            return
