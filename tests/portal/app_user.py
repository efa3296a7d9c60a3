"""A user with a browser and a VPN app, through HTTP only, but for the browser's sign-in."""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.login import SESSION_COOKIE
from portal_app.models import User
from portal_app.services import browser_sessions

ORIGIN = "https://vpn.example.org"
HOST = "vpn.example.org"
LINUX = "org.eduvpn.app.linux"
CALLBACK = "http://127.0.0.1:53211/callback"
ALL_TYPES = (
    "application/x-openvpn-profile,application/x-wireguard-profile,application/x-wireguard+tcp-profile"
)


class HttpsClient(FlaskClient):
    """A test client whose requests go to the portal's own origin."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        if args and isinstance(args[0], str):
            kwargs.setdefault("base_url", ORIGIN)
        return super().open(*args, **kwargs)


def public_key() -> str:
    """Return a new WireGuard public key (32 bytes; which ones does not matter here)."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def add_user(name: str = "alice", permissions: list[str] | None = None) -> User:
    with transaction() as db:
        # Older than any session that a test writes.
        user = User(name=name, permissions=permissions or [], created_at=utc_now() - timedelta(days=90))
        db.add(user)
    return user


def browser(app: Flask, user: User) -> FlaskClient:
    """Return a client in which ``user`` is signed in."""
    client = app.test_client()
    now = utc_now()
    with transaction() as db:
        user = db.get_one(User, user.id)
        token = browser_sessions.begin(db, user, longest=timedelta(hours=12), now=now)
    client.set_cookie(SESSION_COOKIE, token, domain=HOST, path="/", secure=True)
    return client


@dataclass
class VpnApp:
    """An app of one user. ``verifier`` and ``state`` are those of the last authorization request."""

    app: Flask
    user: User
    client_id: str = LINUX
    redirect_uri: str = CALLBACK
    verifier: str = ""
    state: str = "state with spaces & ümlaut".encode("ascii", "replace").decode()
    tokens: dict[str, Any] = field(default_factory=dict)
    iss: str = ""

    def __post_init__(self) -> None:
        self.http = self.app.test_client()
        self.browser = browser(self.app, self.user)

    def query(self, **changes: Any) -> dict[str, Any]:
        """Return the parameters of an authorization request; None leaves one out."""
        self.verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest())
        parameters = {
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "scope": "config",
            "state": self.state,
            "code_challenge_method": "S256",
            "code_challenge": challenge.rstrip(b"=").decode(),
        } | changes
        return {key: value for key, value in parameters.items() if value is not None}

    def ask(self, **changes: Any) -> TestResponse:
        return self.browser.get("/oauth/authorize", query_string=self.query(**changes))

    def answer(self, approve: str = "yes", **changes: Any) -> TestResponse:
        """Open the approval page and press one of its buttons."""
        query = self.query(**changes)
        page = self.browser.get("/oauth/authorize", query_string=query)
        assert page.status_code == 200, page.text
        return self.browser.post(
            "/oauth/authorize",
            query_string=query,
            data={"approve": approve, "csrf_token": csrf_token(page.text)},
        )

    def code(self, **changes: Any) -> str:
        response = self.answer(**changes)
        assert response.status_code in (302, 303), response.text
        values = parse_qs(urlsplit(response.location).query)
        assert values["state"] == [self.state]
        return values["code"][0]

    def redeem(self, code: str, **changes: Any) -> TestResponse:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "client_id": self.client_id,
            "code_verifier": self.verifier,
        } | changes
        return self.http.post("/oauth/token", data={k: v for k, v in form.items() if v is not None})

    def authorize(self) -> "VpnApp":
        """Go through the whole flow and keep the tokens."""
        response = self.redeem(self.code())
        assert response.status_code == 200, response.text
        self.tokens = response.json
        return self

    def refresh(self, token: str | None = None, **changes: Any) -> TestResponse:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": token or self.tokens["refresh_token"],
            "client_id": self.client_id,
        } | changes
        return self.http.post("/oauth/token", data={k: v for k, v in form.items() if v is not None})

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens['access_token']}"}

    def info(self) -> TestResponse:
        return self.http.get("/api/v3/info", headers=self.bearer)

    def connect(self, profile_id: str = "employees", *, accept: str = ALL_TYPES, **form: Any) -> TestResponse:
        form = {"profile_id": profile_id, "public_key": public_key(), "prefer_tcp": "no"} | form
        return self.http.post(
            "/api/v3/connect",
            data={k: v for k, v in form.items() if v is not None},
            headers=self.bearer | ({"Accept": accept} if accept else {}),
        )

    def disconnect(self) -> TestResponse:
        return self.http.post("/api/v3/disconnect", headers=self.bearer)


def csrf_token(page: str) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found, page
    return found[1]
