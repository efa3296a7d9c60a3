"""Portals behind a name or a load balancer that sends each request wherever it likes."""

import itertools
import re
from urllib.parse import urljoin

from portal_app.verification.browser import App, Browser, forms
from tests.e2e.ha_portal.world import PROFILE
from tests.e2e.hosts import Deployment
from tests.e2e.multi_node.world import WIREGUARD_TYPE

#: Any key: no tunnel is made of it.
PUBLIC_KEY = "c29tZSB3aXJlZ3VhcmQga2V5IG9mIDMyIGJ5dGVzIS4="


def test_one_login_one_authorization_and_one_app_alternate(deployment: Deployment, asked: list[str]) -> None:
    """R18: sessions, CSRF tokens, codes and tokens of one portal are good at the other one."""
    browser = Browser(deployment.ca_file)
    app = App(deployment.portal_url, browser)

    app.discover()
    app.authorize("alice", deployment.passwords["alice"])
    assert [profile["profile_id"] for profile in app.info()] == [PROFILE]
    assert "[Interface]" in app.connect(PROFILE, WIREGUARD_TYPE, PUBLIC_KEY)
    app.info()
    app.disconnect()

    # The well-known document, four pages of the sign-in, the token, and four calls of the API.
    assert len(asked) >= 10
    assert all(first != second for first, second in itertools.pairwise(asked))


def test_pages_of_one_admin_alternate(deployment: Deployment, asked: list[str]) -> None:
    browser = Browser(deployment.ca_file)
    page = browser.open(deployment.portal_url + "/")
    (form,) = [form for form in forms(page.text) if "password" in form.kinds.values()]
    names = {kind: name for name, kind in form.kinds.items()}

    page = browser.submit(
        page, form, {names["text"]: "admin", names["password"]: deployment.passwords["admin"]}
    )
    links = [
        link
        for link in re.findall(r'href="(/[a-z/]*)"', page.text)
        if not re.search("sign|password|account", link)
    ]
    seen = [browser.open(urljoin(deployment.portal_url, link)) for link in dict.fromkeys(links)]

    assert len(seen) >= 3, links
    assert {answer.status for answer in seen} == {200}
    # Whoever is not signed in is asked for a password at the URL that was wanted.
    assert not [
        answer.url for answer in seen if names["text"] in answer.text and names["password"] in answer.text
    ]
    assert set(asked) == {host.name for host in deployment.hosts("portals")}


def test_difference_between_portals_is_named(deployment: Deployment) -> None:
    """A portal that a run did not reach has older settings: users would notice at every other request."""
    first, second = deployment.hosts("portals")
    settings, compare = "/etc/causeway/portal/settings.toml", "vpn-portal check --peers"
    assert second.run(compare, check=False).returncode == 0

    second.run(f"sed 's/^portal_name = .*/portal_name = \"Old\"/' {settings} >/tmp/old.toml")
    try:
        second.run("vpn-portal --settings /tmp/old.toml check --peers", check=False)
        found = first.run(compare, check=False)
    finally:
        second.run(f"rm /tmp/old.toml; {compare}")

    assert found.returncode == 1
    assert f"portal {second.name}" in found.stdout
    assert "differs in setting portal_name; run site.yml for both" in found.stdout
    assert first.run(compare, check=False).returncode == 0
