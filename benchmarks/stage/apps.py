"""Apps of a portal: authorized without a browser, each with a kept-alive connection."""

import base64
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlencode

from benchmarks.stage.portal import PROFILE
from benchmarks.stage.web import Site
from portal_app.clock import utc_now
from portal_app.db import transaction
from portal_app.models import AccessToken, Authorization, User
from portal_app.services.authorizations import hashed, new_token
from tests.portal.app_user import LINUX

ANSWER_SECONDS = 20


class Https(http.client.HTTPSConnection):
    """A connection to a site on this host, whatever its name resolves to."""

    def __init__(self, site: Site) -> None:
        self._tls = ssl.create_default_context(cafile=str(site.ca_file))
        super().__init__(site.host, site.port, context=self._tls, timeout=ANSWER_SECONDS)

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


class App:
    """One app that asks the portal, and the bare ``hello`` for comparison; each call tells whether it went
    well, and ``status`` is that of its answer.
    """

    status = 0

    def __init__(self, portal: Site, hello: Site, token: str) -> None:
        self._portal, self._hello, self._token = Https(portal), Https(hello), token

    def hang_up(self) -> None:
        """Dial anew with the next call: nginx has closed what rested for long."""
        self._portal.close()
        self._hello.close()

    def wireguard(self) -> bool:
        """Connect and disconnect once."""
        return self.connect() and self.disconnect()

    def openvpn(self) -> bool:
        return self._connect("openvpn", {}) and self.disconnect()

    def connect(self) -> bool:
        return self._connect("wireguard", {"public_key": base64.b64encode(os.urandom(32)).decode()})

    def disconnect(self) -> bool:
        return self._ask(self._portal, "POST", "/api/v3/disconnect", "") == 204

    def info(self) -> bool:
        return self._ask(self._portal, "GET", "/api/v3/info") == 200

    def well_known(self) -> bool:
        return self._ask(self._portal, "GET", "/.well-known/vpn-user-portal") == 200

    def hello(self) -> bool:
        return self._ask(self._hello, "GET", "/hello") == 200

    def _connect(self, protocol: str, more: dict[str, str]) -> bool:
        body = urlencode({"profile_id": PROFILE, "prefer_tcp": "no"} | more)
        accept = {"Accept": f"application/x-{protocol}-profile"}
        return self._ask(self._portal, "POST", "/api/v3/connect", body, accept) == 200

    def _ask(
        self,
        https: Https,
        method: str,
        path: str,
        body: str | None = None,
        more: dict[str, str] | None = None,
    ) -> int:
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        https.request(method, path, body, headers | (more or {}))
        answer = https.getresponse()
        answer.read()
        self.status = answer.status
        return answer.status


@contextmanager
def apps(count: int, portal: Site, hello: Site) -> Iterator[list[App]]:
    """Yield so many apps, each of a user of its own."""
    now = utc_now()
    tokens = [new_token() for _ in range(count)]
    with transaction() as db:
        for number, token in enumerate(tokens):
            user = User(name=f"app{number}", permissions=[], created_at=now)
            db.add(user)
            db.flush()
            later = now + timedelta(days=1)
            authorization = Authorization(
                user_id=user.id, client_id=LINUX, scope="config", authorized_at=now, expires_at=later
            )
            db.add(authorization)
            db.flush()
            db.add(AccessToken(token_hash=hashed(token), authorization_id=authorization.id, expires_at=later))
    made = [App(portal, hello, token) for token in tokens]
    try:
        yield made
    finally:
        for app in made:
            app.hang_up()
