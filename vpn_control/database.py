"""Secrets of the portal's database, derived from the portal's own: the vault needs no new entry."""

import hashlib
import hmac
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import parse_qs

#: What PostgreSQL takes itself (``scram_iterations``).
ITERATIONS = 4096
#: SQLAlchemy's own form: scheme, who signs in, one or more hosts, the database's name, parameters.
_URL = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?(?P<hosts>[^/?]*)(?:/[^?]*)?(?:\?(?P<query>.*))?")
_LOCAL = re.compile(r"/.*|localhost(:\d+)?|127[.][\d.]+(:\d+)?|::1|\[::1\](:\d+)?")


def password(portal_secret: str, purpose: str = "") -> str:
    """Return the password of a role (HMAC-SHA-256 over the purpose, "" for the portal's own).

    Raises ValueError when the secret is shorter than 64 hex digits or no hex.
    """
    key = bytes.fromhex(portal_secret)
    if len(key) < 32:
        raise ValueError("the portal's secret must be at least 64 hex digits")
    label = " ".join(["causeway database", *purpose.split(), "password"])
    return urlsafe_b64encode(hmac.digest(key, label.encode(), "sha256")).decode().rstrip("=")


def scram_verifier(secret: str) -> str:
    """Return what PostgreSQL stores of a password in ASCII (RFC 5802, section 3; RFC 7677).

    The salt is derived from the password, so that the verifier is the same each time and can be compared.
    """
    salt = hmac.digest(secret.encode("ascii"), b"causeway database salt", "sha256")[:16]
    salted = hashlib.pbkdf2_hmac("sha256", secret.encode("ascii"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (b64encode(value).decode() for value in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


def url_problem(url: str) -> str:
    """Return what is wrong with the URL of a database, "" if nothing is. It repeats no part of it.

    Without ``sslmode`` PostgreSQL's library trusts any certificate, and does without TLS where the server
    says that it has none (PostgreSQL, "SSL Support", sslmode=prefer).
    """
    if not (found := _URL.fullmatch(url.strip())):
        return "no URL such as postgresql+psycopg://causeway:PASSWORD@db.example.org/causeway?sslmode=verify-full"
    query = parse_qs(found["query"] or "")
    named = [found["hosts"], *query.get("host", []), *query.get("hostaddr", [])]
    hosts = [host for several in named for host in several.split(",") if host]
    if "sslmode" in query or all(_LOCAL.fullmatch(host) for host in hosts):
        return ""
    return (
        "names another host and no sslmode, so nobody would look whether it is the database that answers; add"
        " sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt"
    )
