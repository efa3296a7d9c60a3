"""What people notice when a part of a redundant service breaks.

``make lab TOPOLOGY=ha_portal``, then ``python -m benchmarks.faults``. Each fault is made while somebody
asks the portal some twenty times a second through its address (each time on a new connection; nginx, portal
and database have to answer within a second), while people sign in, authorize an app, connect and
disconnect, while the official app refreshes its tokens and connects without a pause, and while pings run
through a WireGuard and an OpenVPN tunnel. Afterwards everything that was acknowledged is looked for. One
row is printed for each fault.

"Nobody served" is the longest time between two good answers in which a request was refused, "no connect"
the longest time between two connects that were acknowledged: a connect writes.
"""

import argparse
import secrets
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from portal_app.verification.browser import App, Browser, VerificationError
from tests.e2e.ha_portal.world import (
    DOUBLED,
    PROFILE,
    Busy,
    Connecting,
    Prober,
    one_holder,
    primary,
    recorded,
    sql,
)
from tests.e2e.hosts import Deployment, Host, OfficialApp, prepare_client, read_deployment, wait_until
from tests.e2e.multi_node.world import WIREGUARD_TYPE, Pings


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


@dataclass(frozen=True)
class Fault:
    """``break_it`` or ``mend_it`` may return the moment from which on "nobody served" counts, which is to be
    ``within`` so many seconds.
    """

    what: str
    break_it: Callable[[Lab], float | None]
    mend_it: Callable[[Lab], float | None]
    within: float | None = None
    stays_seconds: float = 12.0

    def verdict(self, nobody_served: float) -> str:
        """Return whether the target was reached."""
        if self.within is None:
            return ""
        return f"{self.within:.0f} s: {'reached' if nobody_served <= self.within else 'missed'}"


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


def kill_controllers(lab: Lab) -> None:
    for host in (lab.broken, lab.other):
        host.run(CONTROLLER)


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
    "partition": Fault(
        "the portals are cut off from each other",
        lambda lab: part(lab, lab.other),
        lambda lab: part(lab, verb="delete"),
    ),
    "keepalived": Fault(
        "its keepalived is killed hard",
        on("broken", "kill -KILL $(systemctl show -P MainPID keepalived.service)"),
        nothing,
    ),
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
        stays_seconds=120,
    ),
}


class People(Busy):
    """People who sign in, authorize an app, connect and disconnect, one after the other."""

    rest_seconds = 0.5  # so that nginx's limit for one address is not what is measured

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self.deployment = deployment
        self.apps: list[App] = []

    def act(self) -> None:
        app = App(self.deployment.portal_url, Browser(self.deployment.ca_file))
        with suppress(VerificationError):
            app.discover()
            app.authorize("admin", self.deployment.passwords["admin"])
            self.apps.append(app)
            # No tunnel is made of it.
            app.ask(PROFILE, WIREGUARD_TYPE, b64encode(secrets.token_bytes(32)).decode())
            app.disconnect()

    def lost(self) -> int:
        """Return how many authorizations that were acknowledged are not good any more."""
        return sum(not self._is_good(app) for app in self.apps)

    @staticmethod
    def _is_good(app: App) -> bool:
        try:
            return bool(app.info())
        except VerificationError:
            return False


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


def measure(deployment: Deployment, fault: Fault) -> str:
    """Make one fault and mend it; return its row."""
    client = deployment.host("clients")
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
            People(deployment) as people,
            Connecting(official, deployment.portal_url, refreshes=True) as connecting,
        ):
            wait_until(lambda: len(people.apps) >= 2 and len(connecting.addresses) >= 2, 30, "people connect")
            assert prober.failed() == 0, "refused before anything was broken"
            counts_from = fault.break_it(lab)
            time.sleep(fault.stays_seconds)
            moved = has_address(lab.deployment, lab.other)
            counts_from = fault.mend_it(lab) or counts_from or 0.0
            time.sleep(6)
            wait_until(prober.answers_again, 30, "it is answered again")
        after = Lab.look(deployment)
        signed_in_again = (
            official.do("get_config", url=deployment.portal_url, profile=PROFILE)["sign_ins"] - 1
        )
        lost_connects = sum(
            (Counter(connecting.addresses) - (recorded(after.first, "bob") - before)).values()
        )
        doubled = sql(after.first, DOUBLED)
        lost_pings = [p.lost() for p in pings]
        official.attempt("disconnect")
        nobody_served = prober.longest(counts_from)
        cells = [
            fault.what,
            f"{nobody_served:.1f}",
            fault.verdict(nobody_served),
            f"{connecting.longest(counts_from):.1f}",
            f"{prober.failed()} of {len(prober.requests)}",
            "yes" if moved else "no",
            f"{people.lost()} of {len(people.apps)}, {signed_in_again}",
            f"{lost_connects} of {len(connecting.addresses)}, {doubled}",
            f"{lost_pings[0]}, {lost_pings[1]}",
        ]
        return f"| {' | '.join(cells)} |"


def has_address(deployment: Deployment, host: Host) -> bool:
    return f" {deployment.info['vip']['ipv4']}/" in host.output("ip -o -4 address show")


HEAD = """\
| fault | nobody served, s | target | no connect, s | requests refused | address moved \
| authorizations lost, sign-ins again | connects lost, addresses doubled | pings lost, WireGuard, OpenVPN |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
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
    print(HEAD, flush=True)
    for name in arguments.fault or FAULTS:
        print(measure(deployment, FAULTS[name]), flush=True)


if __name__ == "__main__":
    main()
