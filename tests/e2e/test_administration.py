"""Pages of administration and the admin API, with real nodes, tunnels and the web server in front."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import pytest

from portal_app.verification.browser import Answer, Browser, Form, forms
from tests.e2e.hosts import Deployment, Host, OfficialApp, have, wait_until

API = "/api/admin/v1"
Call = Callable[..., tuple[int, Any]]


class Administrator(Browser):
    """A browser in which ``admin`` is signed in."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment.ca_file)
        self._url = deployment.portal_url
        page = self.open(f"{self._url}/admin/")
        form = next(form for form in forms(page.text) if "password" in form.kinds.values())
        names = {kind: name for name, kind in form.kinds.items()}
        values = {names["text"]: "admin", names["password"]: deployment.passwords["admin"]}
        assert self.submit(page, form, values).status == 200

    def page(self, path: str) -> Answer:
        answer = self.open(urljoin(self._url, path))
        assert answer.status == 200, answer.text
        return answer

    def send(self, page: Answer, where: str, **values: str) -> Answer:
        """Send the form of a page whose action has this in it."""
        answer = self.submit(page, _form(page, where), values)
        assert answer.status == 200, answer.text
        return answer


def _form(page: Answer, where: str) -> Form:
    return next(form for form in forms(page.text) if where in form.action and "csrf_token" in form.fields)


@pytest.fixture
def admin(deployment: Deployment) -> Administrator:
    return Administrator(deployment)


@pytest.fixture
def connected(app: OfficialApp, deployment: Deployment) -> Iterator[Callable[[], bool]]:
    """Alice, through a tunnel of her app; tells whether that passes traffic."""
    app.do("start", user="alice", password=deployment.passwords["alice"])
    app.do("add_server", url=deployment.portal_url)
    got = app.do("get_config", url=deployment.portal_url, profile="employees", prefer_tcp=False)
    gateway = app.do("up", config=got["config"], protocol="wireguard")["gateways"][0]
    wait_until(lambda: app.pings(gateway), 15, "tunnel")
    yield lambda: bool(app.pings(gateway))
    app.attempt("down")
    app.attempt("disconnect")


def caller(deployment: Deployment, host: Host, token: str) -> Call:
    """Return what calls the API from a host as docs/admin-api.md says; gives status and answer."""
    have(host, "curl")
    name = deployment.portal_url.removeprefix("https://")
    here = f"--connect-to {name}:443:localhost:443" if host == deployment.host("portals") else ""

    def call(path: str, method: str = "GET", body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = f"--json '{json.dumps(body)}'" if body is not None else ""
        done = host.output(
            f"curl -sSk {here} --header @- -w '\\n%{{http_code}}' -X {method} {data}"
            f" '{deployment.portal_url}{API}{path}'",
            stdin=f"Authorization: Bearer {token}\n",
        )
        text, _, status = done.rpartition("\n")
        return int(status), json.loads(text) if text.startswith(("{", "[")) else text

    return call


def only_connection(admin: Administrator, user: str) -> str:
    """Return the id of a user's connection as the list says it."""
    page = admin.page(f"/admin/connections?search={user}").text
    (found,) = re.findall(r'name="connection" value="(\w+)"', page)
    return str(found)


def test_page_shows_a_live_tunnel_and_ends_it(admin: Administrator, connected: Callable[[], bool]) -> None:
    def shown() -> bool:
        page = admin.page("/admin/connections?search=alice").text
        return "employees" in page and "handshake" in page and "WireGuard" in page

    wait_until(shown, 30, "the list knows it, and what its node says")
    found = only_connection(admin, "alice")

    admin.send(admin.page(f"/admin/connections/end?connection={found}"), "connections/end", connection=found)

    wait_until(lambda: not connected(), 5, "the tunnel is cut")
    assert "Nothing found" in admin.page("/admin/connections?search=alice&show=all").text


def test_token_of_a_page_reads_and_is_revoked_by_a_page(
    admin: Administrator,
    deployment: Deployment,
    server: Host,
    client: Host,
    connected: Callable[[], bool],
) -> None:
    made = admin.send(
        admin.page("/admin/tokens/add"), "tokens/add", name="watcher", scope="connections:read", days="1"
    )
    (token,) = re.findall(r'id="token"[^>]* value="(cwa_[^"]+)"', made.text)
    call = caller(deployment, server, token)

    def active() -> list[dict[str, Any]]:
        status, answer = call("/connections?user=alice&active=true")
        assert status == 200, answer
        return list(answer["items"])

    (connection,) = wait_until(active, 30, "the API knows the tunnel")
    assert (connection["user"], connection["profile"], connection["protocol"]) == (
        "alice", "employees", "wireguard",
    )  # fmt: skip
    assert call("/users")[0] == 403, "beyond its scope"
    assert caller(deployment, client, token)("/connections")[0] == 403, "from an address that is not let in"

    page = admin.page("/admin/tokens")
    assert "watcher" in page.text
    admin.send(page, "/revoke")

    assert call("/connections")[0] == 401


def test_script_hands_out_a_configuration_that_works_and_takes_it_back(
    admin: Administrator, app: OfficialApp, deployment: Deployment, server: Host
) -> None:
    scopes = " ".join(f"--scope {s}" for s in ("configurations:write", "connections:write", "nodes:write"))
    token = server.output(f"vpn-portal token add router --expires 1d {scopes}").splitlines()[-1]
    call = caller(deployment, server, token)
    wanted = {"profile_id": "employees", "protocol": "wireguard", "display_name": "Router"}

    status, made = call("/users/bob/configurations", "POST", wanted)
    assert status in (200, 201), made
    gateway = app.do("up", config=made["configuration"], protocol="wireguard")["gateways"][0]
    wait_until(lambda: app.pings(gateway), 15, "the configuration works")

    node = server.output("vpn-portal node list --json")
    name = json.loads(node)[0]["name"]
    try:
        assert call(f"/nodes/{name}/maintenance", "PUT", {"on": True, "notice": "New disks"})[0] == 200
        assert call("/users/bob/configurations", "POST", wanted)[0] == 503, "the only node takes nobody"
        assert app.pings(gateway), "maintenance cuts nobody"
    finally:
        assert call(f"/nodes/{name}/maintenance", "PUT", {"on": False})[0] == 200

    assert call(f"/connections/{made['connection_id']}", "DELETE")[0] in (200, 204)
    wait_until(lambda: not app.pings(gateway), 5, "it is cut")
    acts = admin.page("/admin/audit?actor=api:router").text
    assert made["connection_id"] in acts
    server.run("vpn-portal token revoke router")
