"""Portals are deployed one after the other, and nobody notices."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portal_app import migrations
from tests.e2e.ha_portal.world import PROFILE, Connecting, People, Prober, one_holder, primary, sql
from tests.e2e.hosts import Deployment, Host, OfficialApp, checkout, wait_until
from tests.e2e.multi_node.world import Pings

#: What apps and browsers wait for an answer at least.
PATIENCE = 5.0


def since(portal: Host) -> str:
    """Return since when the portal's processes run."""
    return portal.output("systemctl show --property=ActiveEnterTimestamp vpn-portal.service")


def deploy_under_people(
    deployment: Deployment, make_app: Callable[[str], OfficialApp], *options: str
) -> None:
    """Deploy portals that restart by it, and see that nobody notices.

    The one that has the address gives it away before it is touched; what is under way is answered.
    """
    alice, bob, admin = make_app("alice"), make_app("bob"), make_app("admin")
    pings = {}
    for app, protocol in ((bob, "udp"), (admin, "tcp")):
        got = app.do("get_config", url=deployment.portal_url, profile=PROFILE, prefer_tcp=protocol == "tcp")
        opened = app.do("up", config=got["config"], protocol=got["protocol"], transport=protocol)
        gateway = opened["gateways"][0]
        wait_until(lambda app=app, gateway=gateway: app.pings(gateway), 20, "the tunnel works")
        pings[protocol] = Pings(app, gateway, protocol)
    one_holder(deployment)
    before = {portal.name: since(portal) for portal in deployment.hosts("portals")}

    with (
        Prober(deployment, patience=PATIENCE) as prober,
        Connecting(alice, deployment.portal_url, refreshes=True) as connecting,
        People(deployment) as people,
    ):
        wait_until(prober.answers_again, 10, "it is answered")
        done = deployment.playbook("site", "--limit", "portals", *options, log="under-people")
        connects = len(connecting.addresses)
        wait_until(lambda: len(connecting.addresses) > connects + 3, 60, "people connect")
    assert done.returncode == 0, done.stdout[-3000:]
    connects, requests = len(connecting.addresses), len(prober.requests)
    print(
        f"{requests} requests, the slowest {prober.slowest():.1f} s; {connects} connects;"
        f" {len(people.apps)} sign-ins and authorizations"
    )
    assert prober.failed() == 0
    assert connecting.errors == []
    assert people.errors == []
    assert people.apps
    assert people.lost() == 0
    for portal in deployment.hosts("portals"):
        assert since(portal) != before[portal.name]
    one_holder(deployment)
    assert {protocol: p.lost() for protocol, p in pings.items()} == {"udp": 0, "tcp": 0}


LOGO = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="4" height="4"/></svg>'


def test_changed_settings_are_deployed_and_nobody_notices(
    deployment: Deployment, make_app: Callable[[str], OfficialApp], tmp_path: Path
) -> None:
    logo, changed = tmp_path / "logo.svg", tmp_path / "changed.json"
    logo.write_text(LOGO)
    brand = {
        "portal_name": "Changed",
        "portal_logo": str(logo),
        "portal_accent_color": "#7a1f5c",
        "portal_support_contact": "https://help.example.org",
        "portal_default_language": "nl",
    }
    changed.write_text(json.dumps(brand))
    tags = ["--tags", "portal,web_frontend,virtual_ip"]
    deploy_under_people(deployment, make_app, *tags, "-e", f"@{changed}")

    name = deployment.portal_url.removeprefix("https://")
    for portal in deployment.hosts("portals"):
        curl = f"curl -fsSLk --connect-to {name}:443:localhost:443 {deployment.portal_url}"
        page = portal.output(f"{curl}/")
        assert '<html lang="nl"' in page
        assert "<span>Changed</span>" in page
        assert 'href="https://help.example.org"' in page
        paths = re.findall(r'(?:src|href)="(/brand/[^"]+)"', page)
        assert len(paths) == 2, page
        served = [portal.output(f"{curl}{path}") for path in paths]
        assert LOGO in served
        assert any("--accent: #7a1f5c" in sheet for sheet in served)


def test_keepalived_that_restarts_gives_the_address_away_first(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """Something in its unit changed, such as the address over IPv6."""
    bob, holder = make_app("bob"), deployment.named(one_holder(deployment))
    holder.run("touch /etc/systemd/system/keepalived.service.d/causeway.conf")
    before = holder.output("systemctl show --property=ActiveEnterTimestamp keepalived.service")

    with (
        Prober(deployment, patience=PATIENCE) as prober,
        Connecting(bob, deployment.portal_url, refreshes=True) as connecting,
    ):
        wait_until(lambda: prober.answers_again() and connecting.addresses, 10, "it is answered")
        done = deployment.playbook("portal", "--tags", "virtual_ip", log="keepalived")
    assert done.returncode == 0, done.stdout[-3000:]
    assert holder.output("systemctl show --property=ActiveEnterTimestamp keepalived.service") != before
    assert one_holder(deployment) != holder.name
    assert prober.failed() == 0
    assert connecting.errors == []


#: Adds and takes nothing away, as all do.
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "e2e", "{head}", None, None


def upgrade() -> None:
    op.add_column("users", sa.Column("e2e", sa.String(length=20), nullable=True))
    op.create_table("e2e", sa.Column("id", sa.Integer(), primary_key=True))
"""
REVISION = "SELECT version_num FROM alembic_version"


@pytest.fixture
def next_release(deployment: Deployment, tmp_path: Path) -> Iterator[Deployment]:
    """This project as it was committed, with one more migration; what that made is gone afterwards."""
    head = migrations.head()
    with checkout("HEAD", tmp_path / "next") as directory:
        (directory / "portal_app/migrations/versions/9999_e2e.py").write_text(MIGRATION.format(head=head))
        yield replace(deployment, project=directory)
    database, _standby = primary(deployment)
    for statement in ("DROP TABLE IF EXISTS e2e", "ALTER TABLE users DROP COLUMN IF EXISTS e2e"):
        sql(database, statement)
    sql(database, f"UPDATE alembic_version SET version_num = '{head}'")  # noqa: S608 - ours
    done = deployment.playbook("site", "--limit", "portals", log="as-before")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.faults
def test_release_with_a_migration_is_deployed_and_nobody_notices(
    deployment: Deployment, make_app: Callable[[str], OfficialApp], next_release: Deployment
) -> None:
    """It runs once, while the release before serves, which is refused afterwards; people go on (R87)."""
    deploy_under_people(next_release, make_app)

    said = (deployment.directory / "logs/under-people.log").read_text()
    outcomes = re.findall(r"TASK \[portal : Migrate the database\] .*\n.*\n(\w+): \[", said)
    assert outcomes == ["changed", "ok"]
    database, _standby = primary(deployment)
    assert sql(database, REVISION) == "e2e"

    refused = deployment.playbook("site", "--limit", "portals", log="release-before")
    assert refused.returncode != 0
    assert "the database is at e2e, which this release does not know" in " ".join(refused.stdout.split())
    carol = make_app("carol")
    assert carol.do("get_config", url=deployment.portal_url, profile=PROFILE)["ok"]


@pytest.mark.faults
def test_release_that_does_not_serve_stops_at_the_first_portal(deployment: Deployment) -> None:
    """The other portal is not touched and goes on: nobody notices but who runs the playbook."""
    first, second = deployment.hosts("portals")
    before = since(second)
    with Prober(deployment, patience=PATIENCE) as prober:
        wait_until(prober.answers_again, 10, "it is answered")
        # It starts, and answers nobody.
        done = deployment.playbook("site", "--limit", "portals", "-e", "portal_workers=0", log="broken")
        assert done.returncode != 0
        assert one_holder(deployment) == second.name
    assert prober.failed() == 0
    assert since(second) == before

    done = deployment.playbook("site", "--limit", "portals", log="mended")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        first.output("systemctl is-active vpn-portal.service keepalived.service nginx.service").split()
        == ["active"] * 3
    )
