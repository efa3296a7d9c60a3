"""A load balancer in front of two portals (docs/redundant.md)."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from portal_app.verification.browser import App, Browser, forms
from tests.e2e.ha_portal.world import PROFILE
from tests.e2e.hosts import Deployment, Host, wait_until
from tests.e2e.multi_node.world import WIREGUARD_TYPE, World

#: Any key: no tunnel is made of it.
PUBLIC_KEY = "c29tZSBvdGhlciBwdWJsaWMga2V5IG9mIDMyIGJ5dGU="
BALANCER = """
pid /run/balancer.pid;
events {{ }}
http {{
    access_log off;
    upstream portals {{ {servers} }}
    server {{
        listen 443 ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate /root/balancer.crt;
        ssl_certificate_key /root/balancer.key;
        location / {{
            proxy_pass https://portals;
            proxy_ssl_name {name};
            proxy_ssl_server_name on;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate /root/balancer-ca.crt;
            proxy_set_header Host {name};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


def deploy(deployment: Deployment, *options: str) -> None:
    done = deployment.playbook("portal", "--tags", "web_frontend", *options, log="balancer")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture
def balancer(deployment: Deployment, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """nginx on the client host; the portals believe it, and this process is led to it."""
    host, (first, *_) = world.client, deployment.hosts("portals")
    name = deployment.portal_url.removeprefix("https://")
    servers = " ".join(f"server {portal.address}:443;" for portal in deployment.hosts("portals"))
    host.run(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx", timeout=300
    )
    host.run("systemctl stop nginx")
    own = "/etc/causeway/tls/active"
    host.put(
        {
            "balancer.conf": BALANCER.format(servers=servers, name=name).encode(),
            "balancer.crt": first.output(f"cat {own}/fullchain.pem").encode(),
            "balancer.key": first.output(f"cat {own}/privkey.pem").encode(),
            "balancer-ca.crt": deployment.ca_file.read_bytes(),
        },
        "/root",
    )
    deploy(deployment, "-e", json.dumps({"vpn_trusted_proxies": [host.address]}))
    host.run("nginx -c /root/balancer.conf >/dev/null 2>&1 </dev/null")
    connect = socket.create_connection

    def to_it(address: tuple[str, int], *rest: Any, **named: Any) -> socket.socket:
        return connect((host.address, address[1]), *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "create_connection", to_it)
        yield host
    host.run("nginx -c /root/balancer.conf -s quit")
    deploy(deployment)


def fail_to_sign_in(deployment: Deployment, headers: dict[str, str] | None = None) -> None:
    browser = Browser(deployment.ca_file)
    page = browser.open(deployment.portal_url + "/")
    (form,) = [form for form in forms(page.text) if "password" in form.kinds.values()]
    names = {kind: name for name, kind in form.kinds.items()}
    values = form.fields | {names["text"]: "nobody", names["password"]: "not this one at all"}
    origin = {"Origin": deployment.portal_url, "Sec-Fetch-Site": "same-origin"}
    browser.open(f"{deployment.portal_url}/sign-in", values, origin | (headers or {}))


def sources(deployment: Deployment) -> set[str]:
    """Return where failed sign-ins came from, as the portals say."""
    asked = "journalctl -q --no-pager -o cat -u vpn-portal.service | grep event=sign_in_failed; true"
    said = "\n".join(portal.output(asked) for portal in deployment.hosts("portals"))
    return set(re.findall(r" source=(\S+)", said))


def test_portals_behind_a_load_balancer(deployment: Deployment, balancer: Host) -> None:
    """One flow over both portals, and they know whom the balancer calls for; nobody else is believed."""
    app = App(deployment.portal_url, Browser(deployment.ca_file))
    app.discover()
    app.authorize("alice", deployment.passwords["alice"])
    assert "[Interface]" in app.connect(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY)
    app.disconnect()

    with socket.create_connection((balancer.address, 443)) as opened:
        own = opened.getsockname()[0]
    fail_to_sign_in(deployment, {"X-Forwarded-For": "203.0.113.8"})
    wait_until(lambda: own in sources(deployment), 10, "the portals say where it came from")
    assert not sources(deployment) & {balancer.address, "203.0.113.8"}


def test_caller_cannot_say_who_it_is(deployment: Deployment) -> None:
    fail_to_sign_in(deployment, {"X-Forwarded-For": "203.0.113.9"})
    assert "203.0.113.9" not in sources(deployment)
