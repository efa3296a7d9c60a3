"""What must be the same on every portal: each writes digests of its own into the database that all share.

Settings, keys and authorities come from one inventory; a portal that a run did not reach has older ones, and
users then notice at every other request.
"""

import hashlib
import json
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from sqlalchemy import select

import portal_app
import vpn_core
from portal_app.db import connected, retried, transaction
from portal_app.errors import N_
from portal_app.models import Portal
from portal_app.services import audit
from portal_app.settings import OWN_TLS_CA, Settings
from portal_app.statements import Asked, Statement, run
from portal_app.texts import Text, text

#: A controller writes what its portal has this often.
EVERY = timedelta(seconds=60)
#: A portal that has not done so for longer does not run.
SILENT = timedelta(minutes=5)
#: One that has not done so for longer was taken away.
FORGOTTEN = timedelta(days=1)
TLS_SECONDS = 2
#: What the web server here shows. It may not answer for a while, so this tells of no deployment.
_SHOWN = "TLS certificate"


@dataclass(frozen=True)
class Comparison:
    """Another portal: when it was seen, and the subjects that differ, such as ``setting portal_name``."""

    name: str
    seen_at: datetime
    different: list[str]

    def problem(self, now: datetime) -> Text | None:
        """Return what is wrong and the way out, None when nothing is."""
        if now - self.seen_at > SILENT:
            minutes = int((now - self.seen_at).total_seconds() // 60)
            said = N_("not seen for %(minutes)s minutes; does vpn-portal-controller run there?")
            return text(said, minutes=minutes)
        if self.different:
            return text(
                N_("differs in %(subjects)s; run site.yml for both"), subjects=", ".join(self.different)
            )
        return None


def host_name() -> str:
    return socket.gethostname()


@cache
def release() -> str:
    """Return the version of this process; reading it again is parsing a file."""
    return version("causeway")


@cache
def build() -> str:
    """Return a digest of the code that runs here: two releases may call themselves the same."""
    whole = hashlib.sha256()
    for package in (portal_app, vpn_core):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*")):
            if path.suffix != ".pyc" and path.is_file():
                whole.update(f"{path.relative_to(root.parent)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:32]


def digests(settings: Settings) -> dict[str, str]:
    """Return a digest of each thing that must be the same, by its subject; ``-`` for a missing file."""
    found = {f"setting {key}": _digest(repr(value).encode()) for key, value in asdict(settings).items()}
    found["release"] = build()
    files = {
        "secret key": settings.secret_key_file,
        "client CA's certificate": settings.client_ca_certificate_file,
        "client CA's key": settings.client_ca_key_file,
        "server CA's certificate": settings.server_ca_certificate_file,
        "management CA's certificate": settings.management_ca_certificate_file,
    }
    if settings.logo_file is not None:
        files["logo"] = settings.logo_file
    keys = sorted(settings.tls_crypt_directory.glob("*.key"))
    files |= {f"tls-crypt key of {path.stem}": path for path in keys}
    found |= {subject: _digest_of_file(path) for subject, path in files.items()}
    found[_SHOWN] = _digest(json.dumps(_web_certificate(settings.host_name)).encode())
    return found


def _digest_of_file(path: Path) -> str:
    try:
        return _digest(path.read_bytes())
    except OSError:
        return "-"


def _digest(content: bytes) -> str:
    return hashlib.sha256(b"causeway peers\0" + content).hexdigest()[:32]


def _web_certificate(name: str) -> Mapping[str, object]:
    """Return what is to be the same of the certificate that users see here.

    One from the vault is the same everywhere; of an own CA's each portal has its own, with the same names.
    """
    certificate = web_certificate(name)
    if certificate is None:
        return {}
    if not OWN_TLS_CA.exists():
        return {"certificate": certificate.fingerprint(SHA256()).hex()}
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return {
        "issuer": certificate.issuer.rfc4514_string(),
        "names": sorted(names.get_values_for_type(x509.DNSName)),
    }


def web_certificate(name: str) -> x509.Certificate | None:
    """Return the certificate that this host's web server shows; None when it cannot be read."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is looked at, nothing is sent
    try:
        with (
            socket.create_connection(("127.0.0.1", 443), TLS_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown or b"")
    except (OSError, ValueError):
        return None


@retried
def introduce(name: str, found: Mapping[str, str], now: datetime) -> None:
    """Write down what the portal ``name`` has, and forget those that were taken away.

    What it did not have before was deployed: that is an act for the audit log.
    """
    with transaction() as db:
        own = db.get(Portal, name)
        known = own.digests if own is not None else {}
        subjects = (known.keys() | found.keys()) - {_SHOWN}
        if changed := sorted(s for s in subjects if known.get(s) != found.get(s)):
            details: dict[str, Any] = {"changed": changed} if own is not None else {}
            audit.record(
                db, audit.DEPLOYED, actor=audit.CLI, object=name, now=now, release=release(), **details
            )
        if own is None:
            db.add(Portal(name=name, seen_at=now, digests=dict(found)))
        else:
            own.seen_at = now
            own.digests = dict(found)
        for other in db.scalars(select(Portal).where(Portal.seen_at < now - FORGOTTEN)):
            db.delete(other)


def forget_others(names: Iterable[str], now: datetime) -> list[str]:
    """Forget, and return, the silent portals that are not among ``names``; one that runs would come back."""
    with transaction() as db:
        silent = select(Portal).where(Portal.name.not_in(list(names)), Portal.seen_at < now - 2 * EVERY)
        others = list(db.scalars(silent.order_by(Portal.name)))
        for other in others:
            db.delete(other)
        return [other.name for other in others]


_PORTALS = Statement(select(*Portal.__table__.columns).order_by(Portal.name))


def asking() -> Asked:
    """Return what asks for that which each portal introduced itself with, as in ``Portal``, by name."""
    return _PORTALS, {}


def compare(name: str) -> Iterator[Comparison]:
    """Compare the portal ``name`` with every other one."""
    with connected(read_only=True) as db:
        found = run(db, *asking())
    return differences(found, name)


def differences(found: Iterable[Any], name: str) -> Iterator[Comparison]:
    """Yield what differs at every other of these portals."""
    portals = {portal.name: portal for portal in found}
    own = portals.pop(name).digests if name in portals else {}
    for other in portals.values():
        subjects = sorted(own.keys() | other.digests.keys())
        different = [s for s in subjects if own.get(s) != other.digests.get(s)]
        yield Comparison(other.name, other.seen_at, different)
