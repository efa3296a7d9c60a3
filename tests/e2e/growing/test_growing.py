"""docs/grow.md: a single host becomes a portal with three nodes, and a node leaves; no user notices (R90)."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.growing.inventory import not_a_node, put_into_inventory, run
from tests.e2e.hosts import OfficialApp, wait_until
from tests.e2e.multi_node.world import Pings, World, address_of
from tests.e2e.test_plan import make_plan

#: Prints nothing on a host that is no node any more.
WHAT_A_NODE_HAS = """
ls -d /etc/causeway/node /var/lib/causeway-node /usr/local/bin/vpn-node 2>/dev/null
systemctl list-units --plain --no-legend vpn-node-agent.service 'causeway-wireguard*' 'openvpn-server@*'
getent passwd causeway-node; getent group causeway-node
"""
#: And this on one that is no portal either.
WHAT_IS_LEFT = f"""
{WHAT_A_NODE_HAS}
ls -d /opt/causeway 2>/dev/null
nft list tables
systemctl list-units --plain --no-legend 'vpn-*' 'causeway-*'
sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding | grep -v '= 0$'
"""


def test_single_host_becomes_three_nodes_and_two_again(world: World) -> None:
    """Tunnels over both protocols lose no ping, no address changes, nobody signs in again."""
    deployment, apps = world.deployment, {}
    put_into_inventory(deployment, [])
    for name in ("alice", "bob"):
        apps[name] = OfficialApp(world.client, name)
        apps[name].do("start", user=name, password=world.password(name))
        apps[name].do("add_server", url=deployment.portal_url)
    try:
        opened = {
            "alice": world.connect(apps["alice"], "employees"),
            "bob": world.connect(apps["bob"], "employees", prefer_tcp=True),
        }
        pings = {name: Pings(apps[name], got["gateway"], name) for name, got in opened.items()}
        before = world.ask("plan", "show")["nodes"]["vpn1"]

        put_into_inventory(deployment, ["node2"])
        said = make_plan(deployment)
        assert said["changes"][0] == "node node2: added as number 2"
        hosts = {host["name"]: host for host in said["hosts"]}
        assert {name: host["state"] for name, host in hosts.items()} == {
            "vpn1": "changed",
            "node2": "first deployment",
        }
        assert hosts["vpn1"]["services"] == []
        output = run(deployment, "add_node", "-e", "node=node2")
        assert "node2: employees wireguard+udp" in output
        put_into_inventory(deployment, ["node2", "node3"])
        run(deployment, "add_node", "-e", "node=node3")

        after = world.ask("plan", "show")["nodes"]
        assert after["vpn1"] == before
        assert {node["name"] for node in world.ask("node", "list") if node["state"] == "up"} == set(after)
        assert {name: p.lost() for name, p in pings.items()} == {"alice": 0, "bob": 0}

        # A new connect may go anywhere, without another sign-in; an old tunnel stays where it is.
        with world.only("node3"):
            moved = world.connect(apps["alice"], "employees")
        assert (moved["node"], moved["sign_ins"]) == ("node3", 1)
        assert apps["bob"].pings(opened["bob"]["gateway"])

        pings = {"alice": Pings(apps["alice"], moved["gateway"], "alice")}
        # Its agent answers no more, so nobody can ask it who is connected.
        world.node("node2").run("systemctl stop vpn-node-agent.service")
        done = deployment.playbook("remove_node", "-e", "node=node2", log="growing-no-answer")
        assert done.returncode != 0
        assert "vpn-portal: node2: " in " ".join((done.stdout + done.stderr).split())
        run(deployment, "remove_node", "-e", "node=node2", "-e", "drain_skip=true")
        put_into_inventory(deployment, ["node3"])
        assert pings["alice"].lost() == 0
        assert set(world.ask("plan", "show")["nodes"]) == {"vpn1", "node3"}
        assert world.node("node2").output(WHAT_IS_LEFT, check=False) == ""
    finally:
        for app in apps.values():
            app.attempt("down")
            app.attempt("disconnect")
            app.close()


def test_drain_waits_for_people_and_names_who_is_left(world: World) -> None:
    """R63: no new connections from the acknowledgement on; the cut is announced in the portal, and is one.

    The options are written as docs/grow.md writes them.
    """
    deployment, app = world.deployment, OfficialApp(world.client, "bob")
    put_into_inventory(deployment, ["node3"])
    try:
        app.do("start", user="bob", password=world.password("bob"))
        app.do("add_server", url=deployment.portal_url)
        with world.only("node3"):
            got = world.connect(app, "employees")
        # A node looks at its tunnels every five seconds.
        wait_until(lambda: world.ask("node", "show", "node3")["active"], 30, "the node has seen bob")

        done = deployment.playbook("drain_node", "-e", "node=node3", log="growing-drain")
        assert done.returncode != 0
        assert "still connected are bob" in " ".join(done.stdout.split())
        assert app.pings(got["gateway"])
        assert world.state("node3") == "maintenance"

        # One user is fewer than two. Why, they read in the portal.
        notice = ["-e", 'drain_notice="New disks tonight."']
        run(deployment, "drain_node", "-e", "node=node3", "-e", "drain_below=2", *notice)
        assert app.pings(got["gateway"])
        home, browser = f"{deployment.portal_url}/", world.browser("bob")
        assert "New disks tonight." in browser.open(home).text

        began = time.monotonic()
        options = ["-e", "drain_within=15", "-e", "drain_cut=true"]
        with ThreadPoolExecutor() as pool:
            draining = pool.submit(run, deployment, "drain_node", "-e", "node=node3", *options)
            wait_until(lambda: "this server end at" in browser.open(home).text, 60, "bob reads when")
            assert app.pings(got["gateway"])
            draining.result()
        assert time.monotonic() - began > 15
        assert not app.pings(got["gateway"])
        assert world.connect(app, "employees")["node"] == "vpn1"
    finally:
        world.vpn_portal("node", "maintenance", "node3", "off", check=False)
        app.attempt("down")
        app.attempt("disconnect")
        app.close()


@pytest.mark.parametrize("playbook", ["add_node", "drain_node", "remove_node"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "node: not named; write -e node=NAME"),
        (["-e", "node=nobody"], 'node: "nobody" is not in group nodes'),
    ],
)
def test_playbook_for_no_node_does_nothing(world: World, playbook: str, words: list[str], said: str) -> None:
    done = world.deployment.playbook(playbook, *words, log="growing-nobody")
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout


def test_node_that_a_profile_needs_is_not_removed(world: World) -> None:
    put_into_inventory(world.deployment, [])
    done = world.deployment.playbook("remove_node", "-e", "node=vpn1", log="growing-only")
    assert done.returncode != 0
    assert "vpn1 is the only node; add another one first" in " ".join(done.stdout.split())
    assert world.state("vpn1") == "up"


@pytest.mark.faults
def test_node_whose_host_is_made_anew_needs_one_run(world: World) -> None:
    """R60: a new machine under an old name. OpenVPN's clients come back by themselves."""
    deployment = world.deployment
    put_into_inventory(deployment, ["node3"])
    apps = {name: OfficialApp(world.client, name) for name in ("alice", "bob", "carol")}
    try:
        for name, app in apps.items():
            app.do("start", user=name, password=world.password(name))
            app.do("add_server", url=deployment.portal_url)
        with world.only("vpn1"):
            elsewhere = world.connect(apps["alice"], "employees")
        with world.only("node3"):
            of_bob = world.connect(apps["bob"], "employees", prefer_tcp=True)
            of_carol = world.connect(apps["carol"], "employees")
        pings = Pings(apps["alice"], elsewhere["gateway"], "alice")

        deployment.lab("reinstall", "node3")
        wait_until(lambda: world.state("node3") == "down", 30, "it is out of the selection")
        assert world.connect(apps["carol"], "employees")["node"] == "vpn1"
        run(deployment, "add_node", "-e", "node=node3")

        world.wait_until_in_step("node3")
        uses = world.ask("address", address_of(of_carol["config"]))["holders"]
        assert uses[0]["until"]
        wait_until(lambda: apps["bob"].pings(of_bob["gateway"]), 120, "bob's tunnel works again")
        with world.only("node3"):
            assert world.connect(apps["carol"], "employees")["node"] == "node3"
        assert pings.lost() == 0
    finally:
        for app in apps.values():
            app.attempt("down")
            app.attempt("disconnect")
            app.close()


@pytest.mark.faults
def test_portal_that_was_a_node_too_is_a_portal_only(world: World) -> None:
    """People on the first host are cut and come back at another node; nobody else notices."""
    deployment = world.deployment
    put_into_inventory(deployment, ["node3"])
    apps = {name: OfficialApp(world.client, name) for name in ("alice", "bob", "carol")}
    try:
        for name, app in apps.items():
            app.do("start", user=name, password=world.password(name))
            app.do("add_server", url=deployment.portal_url)
        with world.only("node3"):
            elsewhere = world.connect(apps["alice"], "employees")
        with world.only("vpn1"):
            here = {
                "bob": world.connect(apps["bob"], "employees", prefer_tcp=True),
                "carol": world.connect(apps["carol"], "employees"),
            }
        assert [got["protocol"] for got in here.values()] == ["openvpn", "wireguard"]
        pings = Pings(apps["alice"], elsewhere["gateway"], "alice")

        output = run(deployment, "remove_node", "-e", "node=vpn1", "-e", "drain_cut=true")
        assert "2 connections ended" in output
        # An interrupted run is repeated.
        run(deployment, "remove_node", "-e", "node=vpn1")
        with not_a_node(deployment, "vpn1"):
            run(deployment, "site")
        assert pings.lost() == 0
        for name, got in here.items():
            assert not apps[name].pings(got["gateway"])
            assert world.connect(apps[name], "employees")["node"] == "node3"
        assert world.node("vpn1").output("cat /proc/sys/net/ipv4/ip_forward") == "0"
        assert world.node("vpn1").output(WHAT_A_NODE_HAS, check=False) == ""
        assert set(world.ask("plan", "show")["nodes"]) == {"node3"}
    finally:
        for app in apps.values():
            app.attempt("down")
            app.attempt("disconnect")
            app.close()


@pytest.mark.faults
def test_node_whose_host_is_gone_is_forgotten(world: World) -> None:
    """Nobody asks the host, and the portals know nothing of it any more."""
    deployment = world.deployment
    put_into_inventory(deployment, ["node3"])
    deployment.lab("power-off", "node3")
    try:
        output = run(deployment, "remove_node", "-e", "node=node3", "-e", "node_is_gone=true")
        assert "node3 serves nobody any more" in " ".join(output.split())
        assert "node3" not in world.ask("plan", "show")["nodes"]
        assert "node3" not in {node["name"] for node in world.ask("node", "list")}
    finally:
        deployment.lab("power-on", "node3")
