"""A user's browser and app in one: signs in by the pages' own forms, approves, calls the API."""

import base64
import hashlib
import json
import secrets
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from html.parser import HTMLParser
from http.client import HTTPMessage
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 15
CAPACITY_SECONDS = 20
API_ID = "http://eduvpn.org/api#3"
#: An app that every portal knows (spec api-v3.md, section 9); the port is never listened on.
CLIENT_ID = "org.letsconnect-vpn.app.linux"
REDIRECT_URI = "http://127.0.0.1:54321/callback"


class VerificationError(Exception):
    """A step did not do what it must; the message says which and what came instead."""


@dataclass
class Form:
    """A form of a page: where it goes, its fields with their values, and the kinds of its inputs."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str]] = field(default_factory=list)


class _FormParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._open = True
            self.forms.append(Form(given.get("action", "")))
        elif self._open and tag == "input" and "name" in given and given.get("type") != "submit":
            self.forms[-1].fields[given["name"]] = given.get("value", "")
            self.forms[-1].kinds[given["name"]] = given.get("type", "text")
        elif self._open and tag in ("button", "input") and "name" in given:
            self.forms[-1].buttons.append((given["name"], given.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False


def forms(page: str) -> list[Form]:
    """Return the forms of an HTML page in their order."""
    parser = _FormParser()
    parser.feed(page)
    return parser.forms


class _KeepRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects on the portal; stop at the one that leaves it (the app's)."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Any:
        if not newurl.startswith("https://"):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(frozen=True)
class Answer:
    status: int
    url: str
    headers: Message
    text: str


class Browser:
    """Keeps cookies; trusts the system's certificates, or ``ca_file``."""

    def __init__(self, ca_file: Path | None = None) -> None:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPCookieProcessor(CookieJar()),
            _KeepRedirects(),
        )

    def open(
        self, url: str, data: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """GET, or POST with ``data``; an error status is an answer too, none raises VerificationError."""
        if not url.startswith("https://"):
            raise VerificationError(f"{url}: only https is opened")
        body = None if data is None else urllib.parse.urlencode(data).encode()
        request = urllib.request.Request(url, data=body, headers=headers or {})  # noqa: S310 - https, checked above
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as response:
                return Answer(response.status, response.url, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.url, error.headers, error.read().decode(errors="replace"))
        except (OSError, ValueError) as error:
            raise VerificationError(f"{url}: {error}") from error

    def submit(self, answer: Answer, form: Form, values: dict[str, str]) -> Answer:
        """Send a form of a page as a browser does: same-origin, with its hidden fields."""
        url = urllib.parse.urljoin(answer.url, form.action or answer.url)
        origin = "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(answer.url))
        browser_says = {"Origin": origin, "Referer": answer.url, "Sec-Fetch-Site": "same-origin"}
        return self.open(url, form.fields | values, browser_says)

    def authorize(self, url: str, user: str, password: str) -> str:
        """Sign in and approve at an authorization URL; return the redirect to the app with the code."""
        page = self.open(url)
        found = next((f for f in forms(page.text) if "password" in f.kinds.values()), None)
        if found is None:
            raise VerificationError(
                f"sign-in: no password form at {page.url.split('?')[0]} (HTTP {page.status})"
            )
        password_field = next(name for name, kind in found.kinds.items() if kind == "password")
        name_field = next(name for name, kind in found.kinds.items() if kind in ("text", "email"))
        page = self.submit(page, found, {name_field: user, password_field: password})
        approval = next((f for f in forms(page.text) if ("approve", "yes") in f.buttons), None)
        if approval is None:
            raise VerificationError(
                f"approval: no form after sign-in (HTTP {page.status} at {page.url.split('?')[0]})"
            )
        page = self.submit(page, approval, {"approve": "yes"})
        if page.status in (302, 303):
            return page.headers["Location"]
        # response_mode=form_post: the page is a form that goes to the app.
        for form in forms(page.text):
            if "code" in form.fields:
                return form.action + "?" + urllib.parse.urlencode(form.fields)
        raise VerificationError(f"approval: no redirect to the app (HTTP {page.status})")


class App:
    """An authorized app: what eduvpn-common does, reduced to what a proof needs."""

    def __init__(self, portal_url: str, browser: Browser) -> None:
        self._browser = browser
        self._portal_url = portal_url.rstrip("/")
        self._endpoints: dict[str, str] = {}
        self.access_token = ""

    def discover(self) -> None:
        """Read the well-known document."""
        answer = self._browser.open(f"{self._portal_url}/.well-known/vpn-user-portal")
        try:
            self._endpoints = json.loads(answer.text)["api"][API_ID]
        except (ValueError, KeyError, TypeError) as error:
            raise VerificationError(f"well-known: HTTP {answer.status}, not a document of API v3") from error

    def authorize(self, user: str, password: str) -> None:
        """Get an access token by the whole code flow with PKCE (RFC 7636)."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        state = secrets.token_urlsafe(16)
        query = urllib.parse.urlencode(
            {
                "client_id": CLIENT_ID,
                "redirect_uri": REDIRECT_URI,
                "response_type": "code",
                "scope": "config",
                "state": state,
                "code_challenge_method": "S256",
                "code_challenge": challenge,
            }
        )
        location = self._browser.authorize(
            f"{self._endpoints['authorization_endpoint']}?{query}", user, password
        )
        returned = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(location).query))
        if returned.get("state") != state or "code" not in returned:
            raise VerificationError(
                f"approval: the app got {', '.join(sorted(returned)) or 'nothing'}, no code for its state"
            )
        answer = self._browser.open(
            self._endpoints["token_endpoint"],
            {
                "grant_type": "authorization_code",
                "code": returned["code"],
                "redirect_uri": REDIRECT_URI,
                "client_id": CLIENT_ID,
                "code_verifier": verifier,
            },
        )
        if answer.status != 200:
            raise VerificationError(f"token: HTTP {answer.status} {answer.text[:200]}")
        self.access_token = json.loads(answer.text)["access_token"]

    def info(self) -> list[dict[str, Any]]:
        """Return the profiles of ``/info``."""
        answer = self._browser.open(f"{self._endpoints['api_endpoint']}/info", headers=self._bearer())
        if answer.status != 200:
            raise VerificationError(f"/info: HTTP {answer.status} {answer.text[:200]}")
        profiles: list[dict[str, Any]] = json.loads(answer.text)["info"]["profile_list"]
        return profiles

    def connect(self, profile_id: str, media_type: str, public_key: str | None = None) -> str:
        """Return the configuration that ``/connect`` gives for one protocol.

        A 503 is asked again for a while: right after a deployment the controller has not seen its nodes yet.
        """
        deadline = time.monotonic() + CAPACITY_SECONDS
        while True:
            answer = self.ask(profile_id, media_type, public_key)
            if answer.status != 503 or time.monotonic() > deadline:
                break
            time.sleep(1)
        if (
            answer.status != 200
            or answer.headers["Content-Type"] != media_type
            or not answer.headers["Expires"]
        ):
            raise VerificationError(
                f"/connect: HTTP {answer.status} {answer.headers['Content-Type']} {answer.text[:200]}"
            )
        return answer.text

    def ask(self, profile_id: str, media_type: str, public_key: str | None = None) -> Answer:
        """Return whatever ``/connect`` answers, once."""
        data = {"profile_id": profile_id} | ({"public_key": public_key} if public_key else {})
        headers = self._bearer() | {"Accept": media_type}
        return self._browser.open(f"{self._endpoints['api_endpoint']}/connect", data, headers)

    def disconnect(self) -> None:
        answer = self._browser.open(f"{self._endpoints['api_endpoint']}/disconnect", {}, self._bearer())
        if answer.status != 204:
            raise VerificationError(f"/disconnect: HTTP {answer.status} {answer.text[:200]}")

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}
