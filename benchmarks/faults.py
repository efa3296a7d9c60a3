"""What people notice when a part of a redundant service breaks.

``make lab TOPOLOGY=ha_portal``, then ``python -m benchmarks.faults``. Each fault is made while somebody
asks the portal some twenty times a second through its address (each time on a new connection; nginx, portal
and database have to answer within a second), while people sign in, authorize an app, connect and
disconnect, while an administrator adds users, while the official app refreshes its tokens and connects
without a pause, and while pings run through a WireGuard and an OpenVPN tunnel. Afterwards everything that
was acknowledged is looked for, and what is secret in everything that the hosts have written since. One row
is printed for each fault.

Exit status 1 if a target was missed, or anything was lost, doubled or shown; what, is said at the end.

"Nobody served" is the longest time between two good answers in which a request was refused, "no connect"
the longest time between two connects that were acknowledged: a connect writes. "503" are requests of people
who wait as long as it takes, that were put off with Retry-After, and the slowest such answer. "Not one
holder" is the longest time in which not exactly one portal had both addresses, looked at five times a second.
"""

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from portal_app.verification.browser import VerificationError, forms
from tests.e2e.disclosure import disclosed, managed, secrets_of
from tests.e2e.ha_portal.test_controllers import UNIT, leader
from tests.e2e.ha_portal.test_moving import FREE, FULL
from tests.e2e.ha_portal.world import (
    DOUBLED,
    PROFILE,
    Addresses,
    Busy,
    Connecting,
    People,
    Prober,
    not_one_holder,
    one_holder,
    primary,
    recorded,
    sql,
)
from tests.e2e.hosts import Deployment, Host, OfficialApp, prepare_client, read_deployment, wait_until
from tests.e2e.multi_node.world import Pings, World
from tests.e2e.portals_away import UNITS


@dataclass
class Lab:
    """The hosts, and which of them have which part just now."""

    deployment: Deployment
    broken: Host
    other: Host
    first: Host
    second: Host

    @classmethod
    def look(cls, deployment: Deployment) -> Self:
        holder = one_holder(deployment)
        (other,) = (host for host in deployment.hosts("portals") if host.name != holder)
        return cls(deployment, deployment.named(holder), other, *primary(deployment))

    def play(self, name: str, **given: str) -> None:
        words = [word for key, value in given.items() for word in ("-e", f"{key}={value}")]
        done = self.deployment.playbook(name, *words)
        assert done.returncode == 0, done.stdout[-3000:]


APART_SECONDS = 1.0


@dataclass(frozen=True)
class Fault:
    """``break_it`` or ``mend_it`` may return the moment from which on "nobody served" counts, which is to be
    ``within`` so many seconds; ``one_holder_within`` is the same for "not one holder", ``put_off_within``
    for the slowest 503. Where the address ``stays``, it is not to move. One portal is to have one address
    without the other for ``APART_SECONDS`` at most, whatever happens.
    """

    what: str
    break_it: Callable[[Lab], float | None]
    mend_it: Callable[[Lab], float | None]
    within: float | None = None
    one_holder_within: float | None = None
    put_off_within: float | None = None
    stays: bool = False
    stays_seconds: float = 12.0


@dataclass(frozen=True)
class Row:
    """What came of a fault: the cells of the table, and what of it should not be."""

    cells: list[str]
    problems: list[str]


def against(measured: float, target: float | None) -> str:
    """Return a figure in seconds, with its target and whether that was reached.

    >>> against(1.04, 2), against(2.5, 2), against(0.3, None)
    ('1.0 (2: reached)', '2.5 (2: MISSED)', '0.3')
    """
    if target is None:
        return f"{measured:.1f}"
    return f"{measured:.1f} ({target:g}: {'reached' if measured <= target else 'MISSED'})"


def on(which: str, command: str) -> Callable[[Lab], None]:
    """Return what runs a command on the host that has a part: ``on("broken", ...)``."""

    def act(lab: Lab) -> None:
        getattr(lab, which).run(command)

    return act


def nothing(_lab: Lab) -> None:
    pass


def power_off(lab: Lab) -> None:
    lab.deployment.lab("power-off", lab.broken.name)


def power_on(lab: Lab) -> None:
    lab.deployment.lab("power-on", lab.broken.name)


def promote(lab: Lab) -> float:
    lab.deployment.lab("power-off", lab.first.name)
    lab.play("promote_database", host=lab.second.name, promote_without=lab.first.name)
    return time.monotonic()


def make_standby(lab: Lab) -> None:
    lab.deployment.lab("power-on", lab.first.name)
    lab.play("standby_database", host=lab.first.name)


def wake_database(lab: Lab) -> float:
    lab.first.run("pkill -CONT -u postgres -x postgres")
    return time.monotonic()


def stop_databases(lab: Lab) -> None:
    for host in (lab.first, lab.second):
        host.run("systemctl stop 'postgresql@*.service'")


def start_databases(lab: Lab) -> float:
    # The standby first: the other one waits for it.
    for host in (lab.second, lab.first):
        host.run("systemctl start postgresql.service")
    return time.monotonic()


def part(lab: Lab, *others: Host, verb: str = "add") -> None:
    """Drop everything between the broken portal and others, both ways."""
    if verb == "delete":
        lab.broken.run("nft delete table inet faults")
        return
    addresses = ", ".join(host.address for host in others)
    chains = "".join(
        f" chain {hook} {{ type filter hook {hook} priority -400; ip {end} {{ {addresses} }} drop; }};"
        for hook, end in (("input", "saddr"), ("output", "daddr"))
    )
    lab.broken.run(f"nft 'table inet faults {{{chains} }}'")


def cut_from_all(lab: Lab) -> None:
    """The databases alone reach the broken portal: neither the other one nor clients, nor their neighbours'
    questions who has the address.
    """
    part(lab, lab.other)
    lab.broken.run(
        "nft 'table inet faults { chain clients { type filter hook input priority -400;"
        " tcp dport { 80, 443 } drop; }; chain neighbours { type filter hook output priority -400;"
        " icmpv6 type nd-neighbor-advert drop; }; };"
        " table arp faults { chain neighbours { type filter hook output priority 0;"
        f" arp saddr ip {lab.deployment.info['vip']['ipv4']} drop; }}; }};'"
    )


def heal_all(lab: Lab) -> None:
    lab.broken.run("nft 'delete table inet faults; delete table arp faults'")


def kill_controllers(lab: Lab) -> None:
    for host in (lab.broken, lab.other):
        host.run(CONTROLLER)


def kill_leader(lab: Lab) -> None:
    name = wait_until(lambda: leader(lab.deployment, lab.first), 20, "one leads")
    lab.deployment.named(name).run(f"systemctl kill --signal=KILL {UNIT}; systemctl stop {UNIT}")


def start_controllers(lab: Lab) -> None:
    for host in (lab.broken, lab.other):
        host.run(f"systemctl start {UNIT}")


def stop_portals(lab: Lab) -> None:
    for host in (lab.broken, lab.other):
        host.run(f"systemctl stop {UNITS}")


def start_portals(lab: Lab) -> float:
    for host in (lab.broken, lab.other):
        host.run(f"systemctl start {UNITS}")
    return time.monotonic()


FREEZE = "pkill -STOP -u causeway-portal -x gunicorn"
THAW = "pkill -CONT -u causeway-portal -x gunicorn"
CONTROLLER = "kill -KILL $(systemctl show -P MainPID vpn-portal-controller.service)"
FAULTS = {
    "rebooted": Fault(
        "the portal that has the address is rebooted",
        on("broken", "systemctl reboot || true"),
        nothing,
        within=1,
    ),
    "power": Fault("it loses its power", power_off, power_on, within=2),
    "nginx": Fault(
        "its nginx is stopped",
        on("broken", "systemctl stop nginx"),
        on("broken", "systemctl start nginx"),
        within=4,
    ),
    "gunicorn": Fault("its gunicorn is frozen", on("broken", FREEZE), on("broken", THAW), within=4),
    "cut-off": Fault(
        "it alone is cut off from both databases",
        lambda lab: part(lab, lab.first, lab.second),
        lambda lab: part(lab, verb="delete"),
        within=4,
    ),
    "disk": Fault("its disk is full", on("broken", FULL), on("broken", FREE), within=4),
    "partition": Fault(
        "the portals are cut off from each other",
        lambda lab: part(lab, lab.other),
        lambda lab: part(lab, verb="delete"),
        within=4,
    ),
    "alone": Fault(
        "it is cut off from the other one and from clients, not from the database", cut_from_all, heal_all
    ),
    "keepalived": Fault(
        "its keepalived is killed hard",
        on("broken", "kill -KILL $(systemctl show -P MainPID keepalived.service)"),
        nothing,
        one_holder_within=5,
    ),
    "leader": Fault("the leading controller is killed hard, and stays away", kill_leader, start_controllers),
    "controllers": Fault("the controllers of both are killed hard", kill_controllers, nothing),
    "standby": Fault(
        "the standby of the database loses its power",
        lambda lab: lab.deployment.lab("power-off", lab.second.name),
        lambda lab: lab.deployment.lab("power-on", lab.second.name),
        stays_seconds=20,
    ),
    "hangs": Fault(
        "the database that takes writes hangs for 20 s (from its return on)",
        on("first", "pkill -STOP -u postgres -x postgres"),
        wake_database,
        within=5,
        stays=True,
        stays_seconds=20,
    ),
    "promotion": Fault(
        "the database that takes writes loses its power, the standby is promoted (from then on)",
        promote,
        make_standby,
        within=5,
    ),
    "databases": Fault(
        "both databases are stopped for two minutes (from their return on)",
        stop_databases,
        start_databases,
        within=5,
        put_off_within=3,
        stays=True,
        stays_seconds=120,
    ),
    "away": Fault(
        "both portals are stopped for ten minutes (from their return on)",
        stop_portals,
        start_portals,
        stays_seconds=600,
    ),
}


class Patient(Prober):
    """People who wait for an answer as long as it takes."""

    many = 2
    rest_seconds = 0.2

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment, patience=20)


class Administering(Busy):
    """An administrator who adds one user after the other."""

    rest_seconds = 0.5

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._page = f"{deployment.portal_url}/admin/users/add"
        self._world = World(deployment, deployment.host("clients"))
        self._browser = self._world.browser("admin")
        self.added: list[str] = []

    def act(self) -> None:
        with suppress(VerificationError):
            page, name = self._browser.open(self._page), f"fault-{secrets.token_hex(6)}"
            form = next((f for f in forms(page.text) if "name" in f.fields), None)
            if form is None:
                # Signed in too long ago to do this.
                self._browser = self._world.browser("admin")
                return
            values = {"name": name, "permissions": ""}
            if "/set-password/" in self._browser.submit(page, form, values).text:
                self.added.append(name)

    def lost(self, database: Host) -> int:
        there = set(sql(database, "SELECT name FROM users WHERE name LIKE 'fault-%'").split())
        return sum(name not in there for name in self.added)


@contextmanager
def tunnel(deployment: Deployment, user: str, protocol: str) -> Iterator[Pings]:
    """Open a tunnel as the official app does, with pings through it."""
    app = OfficialApp(deployment.host("clients"), user)
    try:
        app.do("start", user=user, password=deployment.passwords[user])
        app.do("add_server", url=deployment.portal_url)
        # The library asks for OpenVPN only when TCP is preferred; the configuration has UDP as well.
        asked = {"url": deployment.portal_url, "profile": PROFILE, "prefer_tcp": protocol == "openvpn"}
        got = app.do("get_config", **asked)
        (gateway, *_) = app.do("up", config=got["config"], protocol=got["protocol"], transport="udp")[
            "gateways"
        ]
        wait_until(lambda: app.pings(gateway), 20, f"{user}'s tunnel works")
        yield Pings(app, gateway, user)
    finally:
        app.attempt("down")
        app.attempt("disconnect")
        app.close()


def measure(deployment: Deployment, fault: Fault, known: set[str]) -> Row:
    """Make one fault and mend it; return its row. ``known`` is what is secret."""
    client, began = deployment.host("clients"), time.time()
    lab = Lab.look(deployment)
    before = recorded(lab.first, "bob")
    with ExitStack() as stack:
        pings = [
            stack.enter_context(tunnel(deployment, "alice", "wireguard")),
            stack.enter_context(tunnel(deployment, "bob", "openvpn")),
        ]
        official = OfficialApp(client, "refresh")
        stack.callback(official.close)
        official.do("start", user="bob", password=deployment.passwords["bob"])
        official.do("add_server", url=deployment.portal_url)
        with (
            Prober(deployment) as prober,
            Patient(deployment) as patient,
            People(deployment) as people,
            Administering(deployment) as admin,
            Addresses(deployment, lab.broken) as of_broken,
            Addresses(deployment, lab.other) as of_other,
            Connecting(official, deployment.portal_url, refreshes=True) as connecting,
        ):
            wait_until(
                lambda: min(len(people.apps), len(connecting.addresses), len(admin.added)) >= 2,
                60,
                "people connect",
            )
            assert prober.failed() == 0, "refused before anything was broken"
            counts_from = fault.break_it(lab)
            time.sleep(fault.stays_seconds)
            moved = has_address(lab.deployment, lab.other)
            counts_from = fault.mend_it(lab) or counts_from or 0.0
            time.sleep(6)
            wait_until(prober.answers_again, 30, "it is answered again")
            not_one = not_one_holder([of_broken, of_other], time.monotonic())
        after = Lab.look(deployment)
        signed_in_again = (
            official.do("get_config", url=deployment.portal_url, profile=PROFILE)["sign_ins"] - 1
        )
        lost_connects = sum(
            (Counter(connecting.addresses) - (recorded(after.first, "bob") - before)).values()
        )
        doubled = int(sql(after.first, DOUBLED))
        lost_pings = [p.lost() for p in pings]
        official.attempt("disconnect")
        # The app's own are in no list of ours.
        tokens = {app.access_token for app in people.apps}
        shown = disclosed(known | tokens, *managed(deployment), since=began)
        lost_apps, lost_users = people.lost(), admin.lost(after.first)
        timed = {
            "nobody served": against(prober.longest(counts_from), fault.within),
            "slowest 503": against(max(patient.put_off, default=0.0), fault.put_off_within),
            "not one holder": against(not_one, fault.one_holder_within),
        }
        bad = {
            "authorizations lost": lost_apps,
            "sign-ins again": signed_in_again,
            "connects lost": lost_connects,
            "addresses doubled": doubled,
            "users lost": lost_users,
            "pings lost": sum(lost_pings),
            "address moved": int(moved and fault.stays),
        }
        apart = against(max(of_broken.apart(), of_other.apart()), APART_SECONDS)
        problems = [f"{name}: {said}" for name, said in {**timed, "apart": apart}.items() if "MISSED" in said]
        problems += [f"{name}: {count}" for name, count in bad.items() if count]
        problems += [f"shown: {place}" for place in shown]
        cells = [
            fault.what,
            timed["nobody served"],
            f"{connecting.longest(counts_from):.1f}",
            f"{prober.failed()} of {len(prober.requests)}",
            f"{len(patient.put_off)} of {patient.failed()}, {timed['slowest 503']}",
            "yes" if moved else "no",
            timed["not one holder"],
            f"{lost_apps} of {len(people.apps)}, {signed_in_again}",
            f"{lost_connects} of {len(connecting.addresses)}, {doubled}",
            f"{lost_users} of {len(admin.added)}",
            f"{lost_pings[0]}, {lost_pings[1]}",
            "; ".join(shown) or "none",
        ]
        return Row(cells, problems)


def has_address(deployment: Deployment, host: Host) -> bool:
    return f" {deployment.info['vip']['ipv4']}/" in host.output("ip -o -4 address show")


HEAD = """\
| fault | nobody served, s | no connect, s | requests refused | 503, slowest, s | address moved \
| not one holder, s | authorizations lost, sign-ins again | connects lost, addresses doubled \
| users lost | pings lost, WireGuard, OpenVPN | secrets shown |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "fault", nargs="*", metavar="FAULT", help=f"one of {', '.join(FAULTS)}; all unless named"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.fault) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    deployment = read_deployment("ha_portal")
    prepare_client(deployment.host("clients"), deployment)
    known = secrets_of(deployment)
    print(HEAD, flush=True)
    problems = []
    for name in arguments.fault or FAULTS:
        row = measure(deployment, FAULTS[name], known)
        print(f"| {' | '.join(row.cells)} |", flush=True)
        problems += [f"{name}: {problem}" for problem in row.problems]
    print("".join(f"{problem}\n" for problem in problems), end="", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
