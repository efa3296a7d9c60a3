"""Registered apps: the official ones (spec api-v3.md, section 9) and the deployment's own from the
settings.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portal_app.errors import SettingsError
from portal_app.settings import Settings

SCOPE = "config"
VISIBLE = re.compile(r"[\x20-\x7e]+")

#: 3.3: only the port of a loopback literal is free, 1024 to 65535 without leading zeros.
_LOOPBACK = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]):)([1-9][0-9]{3,4})(/.*)", re.DOTALL)
_TEMPLATE = re.compile(r"http://(?:127\.0\.0\.1|\[::1\]):\{PORT\}/[\x21-\x7e]*")
_CUSTOM_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(?:\.[a-z0-9+-]+)+:/[\x21-\x7e]*", re.IGNORECASE)
_HTTPS = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]+)?/[\x21-\x7e]*")

_LOOPBACKS = ("http://127.0.0.1:{PORT}/callback", "http://[::1]:{PORT}/callback")


@dataclass(frozen=True)
class Client:
    """One app. ``secret_hash`` (SHA-256) makes it confidential: HTTP Basic at the token endpoint."""

    client_id: str
    name: str
    redirect_uris: tuple[str, ...]
    requires_approval: bool = True
    secret_hash: bytes | None = None

    def has_redirect_uri(self, uri: str) -> bool:
        """Tell whether ``uri`` is registered: byte for byte, but for the port of a loopback literal."""
        if uri in self.redirect_uris and "{PORT}" not in uri:
            return True
        loopback = _LOOPBACK.fullmatch(uri)
        if loopback is None or not 1024 <= int(loopback[2]) <= 65535:
            return False
        return f"{loopback[1]}{{PORT}}{loopback[3]}" in self.redirect_uris

    def has_secret(self, secret: str) -> bool:
        return self.secret_hash is not None and hmac.compare_digest(
            self.secret_hash, hashlib.sha256(secret.encode()).digest()
        )


def registry(settings: Settings) -> dict[str, Client]:
    """Return every registered app by its id; raises SettingsError for an own one that cannot be used."""
    found = {client.client_id: client for name in settings.client_sets for client in _official(name)}
    for number, entry in enumerate(settings.clients):
        client = _own(f"clients[{number}]", entry)
        if client.client_id in found:
            raise SettingsError(f"clients[{number}]: client_id {client.client_id!r} exists already")
        found[client.client_id] = client
    return found


def _official(set_name: str) -> Iterator[Client]:
    """Yield the five apps of a set; the short form of Android's scheme is what older apps use."""
    prefix, name, short = {
        "eduVPN": ("org.eduvpn.app", "eduVPN", "org.eduvpn.app"),
        "LC": ("org.letsconnect-vpn.app", "Let's Connect!", "org.letsconnect-vpn.app"),
        "govVPN": ("org.govvpn.app", "govVPN", "org.govvpn.app"),
    }[set_name]
    own = "{}:/api/callback".format
    for system, label, redirect_uris in (
        ("windows", "Windows", _LOOPBACKS),
        ("linux", "Linux", _LOOPBACKS),
        ("android", "Android", (own(short), own(f"{prefix}.android"))),
        ("ios", "iOS", (own(f"{prefix}.ios"),)),
        ("macos", "macOS", (*_LOOPBACKS, own(f"{prefix}.macos"))),
    ):
        yield Client(f"{prefix}.{system}", f"{name} for {label}", redirect_uris)


_KEYS = {
    "client_id": str,
    "client_name": str,
    "redirect_uris": list,
    "client_secret": str,
    "client_secret_file": str,
    "requires_approval": bool,
    "scope": str,
}


def _own(where: str, entry: Mapping[str, Any]) -> Client:
    for key, value in entry.items():
        if key not in _KEYS:
            raise SettingsError(f"{where}: unknown key '{key}'; known keys are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise SettingsError(f"{where}: {key} is not of type {_KEYS[key].__name__}")
    client_id = entry.get("client_id", "")
    if not VISIBLE.fullmatch(client_id) or len(client_id) > 255:
        raise SettingsError(f"{where}: client_id must be 1 to 255 printable ASCII characters")
    if entry.get("scope", SCOPE) != SCOPE:
        raise SettingsError(f"{where}: scope must be '{SCOPE}'")
    redirect_uris = entry.get("redirect_uris") or []
    if not redirect_uris:
        raise SettingsError(f"{where}: redirect_uris is missing")
    for uri in redirect_uris:
        if not isinstance(uri, str) or not _may_be_registered(uri):
            raise SettingsError(
                f"{where}: redirect_uris: {uri!r} is none of http://127.0.0.1:{{PORT}}/…, http://[::1]:{{PORT}}/…,"
                " https://host/…, or an app's own scheme such as org.example.app:/callback"
            )
    return Client(
        client_id=client_id,
        name=entry.get("client_name", client_id),
        redirect_uris=tuple(redirect_uris),
        requires_approval=entry.get("requires_approval", True),
        secret_hash=_secret_hash(where, entry),
    )


def _may_be_registered(uri: str) -> bool:
    if "#" in uri or uri.count("{") > (1 if _TEMPLATE.fullmatch(uri) else 0):
        return False
    return any(pattern.fullmatch(uri) for pattern in (_TEMPLATE, _CUSTOM_SCHEME, _HTTPS))


def _secret_hash(where: str, entry: Mapping[str, Any]) -> bytes | None:
    secret = entry.get("client_secret")
    if "client_secret_file" in entry:
        try:
            secret = Path(entry["client_secret_file"]).read_text().strip()
        except OSError as error:
            raise SettingsError(f"{where}: client_secret_file: {error.strerror}") from error
    if secret is None:
        return None
    if not secret:
        raise SettingsError(f"{where}: the client's secret is empty")
    return hashlib.sha256(secret.encode()).digest()
