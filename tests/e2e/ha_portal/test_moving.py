"""Two portals behind one address: who holds it goes, and the other one goes on (reliability.md A and B)."""

import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.ha_portal.world import (
    DOUBLED,
    NO_DATABASE,
    PROFILE,
    Addresses,
    Connecting,
    People,
    Prober,
    holders,
    not_one_holder,
    one_holder,
    primary,
    recorded,
    sql,
)
from tests.e2e.hosts import Deployment, OfficialApp, wait_until, within
from tests.e2e.multi_node.world import Pings, World
from tests.e2e.test_deployment import changed


def test_second_run_changes_nothing(deployment: Deployment) -> None:
    """Of what only this topology has; the other roles are run twice elsewhere."""
    done = deployment.playbook("site", "--tags", "postgresql,virtual_ip,pki,firewall", log="second")

    assert done.returncode == 0, done.stdout[-3000:]
    assert set(changed(done.stdout).values()) == {0}


def test_portal_that_has_the_address_loses_power(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R1, R11, R13: nobody signs in again, no tunnel notices, and who comes back takes nothing back."""
    alice, bob = make_app("alice"), make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    got = alice.do("get_config", **asked)
    (gateway, *_) = alice.do("up", config=got["config"], protocol=got["protocol"], transport="udp")[
        "gateways"
    ]
    wait_until(lambda: alice.pings(gateway), 20, "the tunnel works")
    pings = Pings(alice, gateway, "alice")
    holder = one_holder(deployment)
    other = next(host for host in deployment.hosts("portals") if host.name != holder)

    with Prober(deployment) as prober, Addresses(deployment, other) as of_other:
        wait_until(lambda: of_other.seen and prober.answers_again(), 10, "it is answered")
        deployment.lab("power-off", holder)
        try:
            assert one_holder(deployment, other) == other.name
            assert wait_until(lambda: bob.attempt("get_config", **asked)["ok"], 10, "bob connects")
        finally:
            deployment.lab("power-on", holder)
        is_back = "systemctl is-active --quiet keepalived.service"
        wait_until(
            lambda: deployment.named(holder).run(is_back, check=False).returncode == 0, 60, "it is back"
        )

    assert bob.do("get_config", **asked)["sign_ins"] == 1
    assert one_holder(deployment) == other.name
    assert prober.longest() <= within(5)
    assert of_other.apart() <= within(1)
    assert pings.lost() == 0


def test_portal_that_has_the_address_reboots(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R2, R11: it gives the address away before anything of it stops, and answers what is under way."""
    bob = make_app("bob")
    holder = deployment.named(one_holder(deployment))
    (other,) = (host.name for host in deployment.hosts("portals") if host.name != holder.name)

    with (
        Prober(deployment) as prober,
        Connecting(bob, deployment.portal_url, refreshes=True) as people,
    ):
        wait_until(lambda: prober.answers_again() and people.addresses, 10, "it is answered")
        holder.run("systemctl reboot", check=False)
        wait_until(
            lambda: one_holder(deployment, deployment.named(other)) == other, 15, "the other one has it"
        )
        ready = "systemctl is-active --quiet keepalived.service && /etc/causeway/virtual-ip/ready"
        wait_until(lambda: holder.run(ready, check=False).returncode == 0, 60, "it is back")

    assert one_holder(deployment) == other
    assert prober.longest() <= 1.0, prober.failed()
    assert people.errors == []


def test_portals_that_do_not_see_each_other_both_serve(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R7, R14: both have the address meanwhile; afterwards one has, and neighbours know which."""
    bob, (database, _standby) = make_app("bob"), primary(deployment)
    holder, before = deployment.named(one_holder(deployment)), recorded(database, "bob")
    (other,) = (host for host in deployment.hosts("portals") if host.name != holder.name)
    both = [(host.name, family) for host in deployment.hosts("portals") for family in deployment.info["vip"]]
    drop = f"chain x {{ type filter hook output priority -300; ip daddr {other.address} drop; }};"
    drop += f"chain y {{ type filter hook input priority -300; ip saddr {other.address} drop; }}"

    with (
        Prober(deployment) as prober,
        People(deployment) as people,
        Connecting(bob, deployment.portal_url, refreshes=True) as connecting,
    ):
        wait_until(lambda: people.apps and connecting.addresses, 30, "people connect")
        wait_until(prober.answers_again, 10, "it is answered")
        holder.run(f"nft 'table inet e2e {{ {drop}; }}'")
        try:
            wait_until(lambda: sorted(holders(deployment)) == sorted(both), 15, "both have both addresses")
            apps, connects = len(people.apps), len(connecting.addresses)
            wait_until(lambda: len(people.apps) > apps, 30, "somebody authorizes an app")
            wait_until(lambda: len(connecting.addresses) > connects + 3, 30, "people connect")
        finally:
            holder.run("nft delete table inet e2e")
        healed = time.monotonic()
        one_holder(deployment)
        requests = len(prober.requests)
        wait_until(lambda: len(prober.requests) > requests + 30, 30, "it was asked again")

    assert prober.longest() <= 4.0, prober.failed()
    assert prober.longest(healed) <= within(1), prober.failed()
    assert sql(database, DOUBLED) == "0"
    assert people.lost() == 0
    assert not Counter(connecting.addresses) - (recorded(database, "bob") - before)


#: What makes one portal unable to serve, what ends that, and for how many seconds nobody may be served.
UNABLE = {
    "portal stopped": (
        "systemctl stop vpn-portal.socket vpn-portal.service",
        "systemctl start vpn-portal.service",
        4,
    ),
    "portal hangs": (
        "kill -STOP $(pgrep -u causeway-portal gunicorn)",
        "kill -CONT $(pgrep -u causeway-portal gunicorn)",
        5,
    ),
    "nginx stopped": ("systemctl stop nginx.service", "systemctl start nginx.service", 5),
    "nginx hangs": ("kill -STOP $(pgrep nginx)", "kill -CONT $(pgrep nginx)", 5),
    "cut off from the database": (f"nft '{NO_DATABASE}'", "nft delete table inet e2e", 6),
}


@pytest.mark.parametrize(("break_it", "mend_it", "seconds"), UNABLE.values(), ids=UNABLE)
def test_portal_that_cannot_serve_loses_the_address(
    deployment: Deployment,
    make_app: Callable[[str], OfficialApp],
    break_it: str,
    mend_it: str,
    seconds: float,
) -> None:
    """R4, R5, R8, R11"""
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    broken = deployment.named(one_holder(deployment))
    (other,) = (host.name for host in deployment.hosts("portals") if host.name != broken.name)
    with Prober(deployment) as prober:
        wait_until(prober.answers_again, 10, "it is answered")
        broken.run(break_it)
        try:
            wait_until(lambda: one_holder(deployment) == other, 10, "the other one has the address")
            assert bob.do("get_config", **asked)["sign_ins"] == 1
        finally:
            broken.run(mend_it)
        ready = "/etc/causeway/virtual-ip/ready"
        wait_until(lambda: broken.run(ready, check=False).returncode == 0, 30, "it can serve again")
        assert one_holder(deployment) == other
    assert prober.longest() <= within(seconds), prober.failed()


def test_portal_that_crashes_is_back(deployment: Deployment) -> None:
    """R3: systemd starts it again, or the address moves; one portal has both."""
    holder = deployment.named(one_holder(deployment))
    main = "systemctl show -P MainPID vpn-portal.service"
    killed = holder.output(main).strip()
    with Prober(deployment) as prober:
        wait_until(prober.answers_again, 10, "it is answered")
        holder.run(f"kill -KILL {killed}")
        runs = f"[ $({main}) != {killed} ] && /etc/causeway/virtual-ip/serves"
        wait_until(lambda: holder.run(runs, check=False).returncode == 0, 30, "it serves again")
        wait_until(prober.answers_again, 10, "it is answered")
    assert prober.longest() <= within(4), prober.failed()
    one_holder(deployment)


def test_neighbours_that_know_the_wrong_one_are_corrected(deployment: Deployment, world: World) -> None:
    """R14: what is announced again and again replaces what a neighbour remembers of both addresses."""
    client, wrong = world.client, "02:00:00:00:00:01"
    one_holder(deployment)
    for family, address in deployment.info["vip"].items():
        asked = f"curl -sf -m 1 -o /dev/null {deployment.portal_url}/healthz -{family.removeprefix('ipv')}"
        client.run(asked)
        (link,) = re.findall(r"dev (\S+)", client.output(f"ip route get {address}"))
        client.run(f"ip neigh replace {address} lladdr {wrong} dev {link} nud reachable")
        known = f"ip neigh show {address} dev {link}"
        wait_until(lambda known=known: wrong not in client.output(known), 5, f"{family} is announced")
        client.run(asked)


def test_address_stays_while_the_database_is_away(
    deployment: Deployment, world: World, make_app: Callable[[str], OfficialApp]
) -> None:
    """R9, R21, R22: each request is answered, nobody signs in again, nothing has to be restarted, and no
    tunnel notices.
    """
    alice, bob = make_app("alice"), make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    holder, databases = deployment.named(one_holder(deployment)), deployment.hosts("databases")
    name = deployment.portal_url.removeprefix("https://")
    lives = f"curl -sf -m 1 --unix-socket /run/causeway-portal/portal.sock -H 'Host: {name}' http://x/livez"
    browser = world.browser("bob")
    pings = Pings(alice, world.connect(alice, PROFILE)["gateway"], "alice")
    # Without the name of the instance it would come back before the server is down.
    for database in databases:
        database.run("systemctl stop 'postgresql@*.service'")
    try:
        # Longer than keepalived takes to notice.
        for path in ("/healthz", "/devices") * 4:
            began = time.monotonic()
            answer = browser.open(deployment.portal_url + path)
            assert time.monotonic() - began <= within(3)
            assert (answer.status, "Retry-After" in answer.headers) == (503, True), answer
            assert ("</html>" in answer.text) == (path == "/devices")
            assert one_holder(deployment) == holder.name
            holder.run(lives)
            time.sleep(0.5)
    finally:
        for database in databases:
            database.run("systemctl restart postgresql.service")
    wait_until(lambda: bob.attempt("get_config", **asked)["ok"], 5, "bob connects")
    assert bob.do("get_config", **asked)["sign_ins"] == 1
    assert one_holder(deployment) == holder.name
    assert pings.lost() == 0


def test_health_that_comes_and_goes_moves_the_address_twice_at_most(deployment: Deployment) -> None:
    """R10: two seconds up, two seconds down."""
    holder = deployment.named(one_holder(deployment))
    seen = [holder.name]
    for _ in range(6):
        for word in ("STOP", "CONT"):
            holder.run(f"kill -{word} $(pgrep nginx)")
            ends_at = time.monotonic() + 2
            while time.monotonic() < ends_at:
                now = {name for name, _family in holders(deployment)}
                if len(now) == 1 and now != {seen[-1]}:
                    seen += now
    one_holder(deployment)
    assert len(seen) - 1 <= 2, seen


#: Sends adverts of VRRPv3 (RFC 5798, section 5.2) with the highest priority, ten a second, for twenty
#: seconds: the log has one in fifteen.
FOREIGN = """
import ipaddress, socket, struct, sys, time
router, address, *addressees = sys.argv[1:]
link = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
link.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
virtual = ipaddress.ip_address(address).packed
for _ in range(200):
    for addressee in addressees:
        head = struct.pack("!BBBBHH", 0x31, int(router), 255, 1, 10, 0) + virtual
        link.sendto(head, (addressee, 0))
    time.sleep(0.1)
"""


#: The kernel says what the firewall logs on this machine only if it is told to for hosts of a lab.
LOGS_OF_HOSTS = Path("/proc/sys/net/netfilter/nf_log_all_netns")


@pytest.mark.parametrize("to_group", [False, True], ids=["to the portals", "to the group"])
def test_foreign_vrrp_takes_nothing_and_is_reported(deployment: Deployment, to_group: bool) -> None:
    """R12: another host of the segment says that it has the address, with our number."""
    holder, stranger = one_holder(deployment), deployment.host("nodes")
    addressees = ["224.0.0.18"] if to_group else [host.address for host in deployment.hosts("portals")]
    before = LOGS_OF_HOSTS.read_text()
    LOGS_OF_HOSTS.write_text("1")
    try:
        with Prober(deployment) as prober:
            wait_until(prober.answers_again, 10, "it is answered")
            words = ["77", deployment.info["vip"]["ipv4"], *addressees]
            stranger.run(f"python3 - {' '.join(words)}", stdin=FOREIGN)
    finally:
        LOGS_OF_HOSTS.write_text(before)
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert one_holder(deployment) == holder
    assert prober.failed() == 0
    ends = rf"SRC={re.escape(stranger.address)} DST={re.escape(addressees[0])} "
    assert re.search(rf"vrrp from a stranger: .* {ends}", said), said[-2000:]


def test_portal_that_leaves_lets_clients_close_their_connections(deployment: Deployment) -> None:
    """What is sent on an idle connection when nginx closes it would have no answer."""
    fetch = ["curl", "-fsS", "-m", "5", "-o", "/dev/null", "-D", "-", "--cacert", str(deployment.ca_file)]

    def asks_to_close(path: str) -> bool:
        done = subprocess.run(
            [*fetch, deployment.portal_url + path], capture_output=True, text=True, check=True
        )
        return "connection: close" in done.stdout.lower()

    holder = deployment.named(one_holder(deployment))
    assert not asks_to_close("/healthz")
    holder.run("touch /run/causeway-leaving")
    try:
        # The second one is a file with headers of its own.
        for path in ("/healthz", "/.well-known/vpn-user-portal", "/sign-in"):
            assert asks_to_close(path), path
    finally:
        holder.run("rm /run/causeway-leaving")


#: A file system that is full where nginx, the portal and the journal write.
FULL = """
for place in /var/lib/nginx /var/lib/causeway-portal /var/log/nginx /var/tmp; do
    mount -t tmpfs -o size=64k,mode=0777 e2e $place && dd if=/dev/zero of=$place/full bs=4k 2>/dev/null
done; true
"""
FREE = "for place in /var/lib/nginx /var/lib/causeway-portal /var/log/nginx /var/tmp; do umount $place; done"


def test_full_disk_of_a_portal_is_not_noticed(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """What a portal keeps is in the database, and requests fit into memory."""
    bob = make_app("bob")
    holder = deployment.named(one_holder(deployment))
    holder.run(FULL)
    try:
        with Prober(deployment) as prober:
            wait_until(lambda: len(prober.requests) > 60, 60, "it was asked")
            got = bob.do("get_config", url=deployment.portal_url, profile=PROFILE)
        assert got["sign_ins"] == 1
    finally:
        holder.run(FREE)
    assert prober.failed() == 0


@pytest.mark.faults
def test_everything_loses_power_and_the_database_is_last(
    deployment: Deployment, make_app: Callable[[str], OfficialApp]
) -> None:
    """R78: it returns by itself."""
    bob = make_app("bob")
    asked = {"url": deployment.portal_url, "profile": PROFILE}
    groups = ("portals", "nodes", "databases")
    hosts = [host.name for group in groups for host in deployment.hosts(group)]
    for name in hosts:
        deployment.lab("power-off", name)
    for name in hosts:
        deployment.lab("power-on", name)
    began = time.monotonic()
    wait_until(lambda: bob.attempt("get_config", **asked)["ok"], 90, "bob connects")
    print(f"everything lost power: bob connects {time.monotonic() - began:.0f} s after the last boot")
    assert bob.do("get_config", **asked)["sign_ins"] == 1


def test_keepalived_may_do_little(deployment: Deployment) -> None:
    """H1"""
    for host in deployment.hosts("portals"):
        said = host.output("systemd-analyze security --no-pager keepalived.service | tail -1")
        assert float(said.split(":")[1].split()[0]) <= 5.0, said


def test_keepalived_is_killed_hard(deployment: Deployment) -> None:
    """R6: what it leaves behind is cleared away; one portal holds both addresses again."""
    holder = deployment.named(one_holder(deployment))
    main = "systemctl show -P MainPID keepalived.service"
    killed = holder.output(main).strip()

    first, second = deployment.hosts("portals")
    with Addresses(deployment, first) as of_first, Addresses(deployment, second) as of_second:
        wait_until(lambda: of_first.seen and of_second.seen, 10, "they are looked at")
        holder.run(f"kill -KILL {killed}")
        wait_until(lambda: holder.output(main).strip() not in (killed, "0"), 10, "it runs again")
        looks = len(of_first.seen)
        wait_until(lambda: len(of_first.seen) > looks + 20, 20, "they were looked at for a while")
        one_holder(deployment)
        ended = time.monotonic()

    assert not_one_holder([of_first, of_second], ended) <= within(5)


@pytest.mark.faults
def test_leave_that_is_killed_hard_keeps_nobody_out_for_long(deployment: Deployment) -> None:
    """What it kept away from this portal comes in again within a minute, whoever has the address then."""
    holder = deployment.named(one_holder(deployment))
    table = "nft list table inet causeway_leaving 2>/dev/null"

    begin = f"/etc/causeway/virtual-ip/leave & until {table}; do sleep 0.05; done"
    holder.run(f"{begin}; kill -KILL $! && ls /run/causeway-leaving")
    try:
        is_over = f"[ ! -e /run/causeway-leaving ] && ! {table}"
        wait_until(lambda: holder.run(is_over, check=False).returncode == 0, 90, "nothing is left of it")
        with Prober(deployment) as prober:
            wait_until(prober.answers_again, 30, "it is answered")
    finally:
        holder.run("systemctl start nginx.service keepalived.service")
    one_holder(deployment)
