"""docs/redundant.md, "From one portal": SQLite becomes PostgreSQL, one portal becomes two (R91).

Apps and browsers go on as they are, and no tunnel notices.
"""

import re

import pytest

from tests.e2e.growing.inventory import name_leads_to, node_is_called, put_into_inventory, run
from tests.e2e.ha_portal.world import Prober, one_holder
from tests.e2e.hosts import OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings, World

pytestmark = pytest.mark.faults
DATABASES = {"databases": {"hosts": {"db1": None, "db2": None}}}


@pytest.fixture(scope="module", autouse=True)
def many_nodes(world: World) -> None:
    """A portal that is a node too, and another node."""
    put_into_inventory(world.deployment, ["node3"])
    run(world.deployment, "add_node", "-e", "node=node3")


def test_node_gets_a_name_of_its_own(world: World) -> None:
    """After docs/install.md the first host's node has the portal's name, which will lead elsewhere."""
    deployment = world.deployment
    shared = deployment.portal_url.removeprefix("https://")
    apps = {name: OfficialApp(world.client, name) for name in ("alice", "bob")}
    try:
        for name, app in apps.items():
            app.do("start", user=name, password=world.password(name))
            app.do("add_server", url=deployment.portal_url)
        with node_is_called(deployment, "vpn1", shared):
            run(deployment, "site")
            with world.only("vpn1"):
                before = world.connect(apps["alice"], "employees")
        assert f"Endpoint = {shared}:" in before["config"]
        pings = Pings(apps["alice"], before["gateway"], "alice")

        run(deployment, "site")

        with world.only("vpn1"):
            after = world.connect(apps["bob"], "employees", prefer_tcp=True)
        assert f"remote vpn1.{shared.partition('.')[2]} " in after["config"]
        assert pings.lost() == 0
    finally:
        for app in apps.values():
            app.attempt("down")
            app.attempt("disconnect")
            app.close()


def test_wrong_order_changes_nothing(world: World) -> None:
    """Whoever runs site.yml first is told, and nobody's data is left behind."""
    put_into_inventory(world.deployment, ["node3"], **DATABASES)
    done = world.deployment.playbook("site", log="growing-too-early")

    assert done.returncode != 0
    assert "is in SQLite, and the inventory names PostgreSQL; playbooks/move_database.yml" in " ".join(
        done.stdout.split()
    )
    assert "changed=0" in done.stdout
    put_into_inventory(world.deployment, ["node3"])
    done = world.deployment.playbook("move_database", log="growing-nowhere")
    assert done.returncode != 0
    assert "the inventory names no PostgreSQL" in done.stdout


def test_failed_copy_leaves_the_portal_on_sqlite(world: World) -> None:
    """The database has something of somebody else, seen only when the portal is stopped already."""
    deployment = world.deployment
    put_into_inventory(deployment, ["node3"], **DATABASES)
    run(deployment, "database")
    ask = "runuser -u postgres -- psql -XAtq causeway -c"
    world.node("db1").run(f"{ask} 'CREATE TABLE books (title text)'")

    done = deployment.playbook("move_database", log="growing-not-empty")

    assert done.returncode != 0
    assert "the target holds something else (table books)" in " ".join(done.stdout.split())
    assert world.ask("user", "list")
    settings = world.portal.output("cat /etc/causeway/portal/settings.toml")
    assert "database_url_file" not in settings
    world.node("db1").run(f"{ask} 'DROP TABLE books'")


def test_one_portal_becomes_two(world: World) -> None:
    deployment = world.deployment
    put_into_inventory(deployment, ["node3"], **DATABASES)
    home = f"{deployment.portal_url}/"
    apps = {name: OfficialApp(world.client, name) for name in ("alice", "bob", "dave")}
    asked = {"url": deployment.portal_url, "profile": "employees"}
    try:
        for name, app in apps.items():
            app.do("start", user=name, password=world.password(name))
            app.do("add_server", url=deployment.portal_url)
        # These two stay connected, to the node that is no portal; dave connects again and again.
        with world.only("node3"):
            opened = {
                name: world.connect(apps[name], "employees", prefer_tcp=name == "bob")
                for name in ("alice", "bob")
            }
        browser = world.browser("carol")
        pings = {name: Pings(apps[name], got["gateway"], name) for name, got in opened.items()}
        users = world.ask("user", "list")

        with Prober(deployment) as prober:
            wait_until(prober.answers_again, 10, "it is answered")
            output = run(deployment, "move_database")
            wait_until(prober.answers_again, 30, "it is answered again")
        print(f"nobody served for {prober.longest():.1f} s; refused: {prober.failed()}")
        assert re.search(r"[\d,]+ rows copied and compared in", output)
        assert prober.failed() > 0
        assert world.ask("user", "list") == users
        kept = world.portal.output("ls /var/lib/causeway-portal")
        assert "portal.sqlite.copied" in kept.split()
        standby = "runuser -u postgres -- psql -XAtqc 'SELECT pg_is_in_recovery()'"
        assert [world.node(name).output(standby).strip() for name in ("db1", "db2")] == ["f", "t"]
        assert apps["dave"].do("get_config", **asked)["sign_ins"] == 1
        assert "carol" in browser.open(home).text

        variables = deployment.variables("vpn1")
        virtual = {"ipv4": variables["lab_virtual_ipv4"], "ipv6": variables["lab_virtual_ipv6"]}
        portals = {
            "portals": {"hosts": {"p2": None}},
            "all": {"vars": {"vpn_virtual_ip": virtual}},
        }
        put_into_inventory(deployment, ["node3"], **DATABASES, **portals)
        with Prober(deployment) as prober:
            wait_until(prober.answers_again, 10, "it is answered")
            run(deployment, "site")
        print(f"second portal: refused: {prober.failed()} of {len(prober.requests)}")
        addresses = [virtual["ipv4"].partition("/")[0], virtual["ipv6"].partition("/")[0]]
        deployment.info["vip"] = dict(zip(("ipv4", "ipv6"), addresses, strict=True))
        both = [deployment.named("vpn1"), deployment.named("p2")]
        with name_leads_to(deployment, addresses):
            holder = one_holder(deployment, *both)
            apps["dave"].do("spoil_access_token")
            assert apps["dave"].do("get_config", **asked)["sign_ins"] == 1
            assert "carol" in browser.open(home).text
            (other,) = (host for host in both if host.name != holder)
            deployment.lab("power-off", holder)
            assert one_holder(deployment, other) == other.name
            wait_until(lambda: "carol" in browser.open(home).text, 20, "the other portal serves")
            assert apps["dave"].do("get_config", **asked)["sign_ins"] == 1
            deployment.lab("power-on", holder)
            wait_until(
                lambda: deployment.named(holder).run("true", check=False).returncode == 0, 60, "it is back"
            )
        assert {name: p.lost() for name, p in pings.items()} == {"alice": 0, "bob": 0}
    finally:
        for app in apps.values():
            app.attempt("down")
            app.attempt("disconnect")
            app.close()
