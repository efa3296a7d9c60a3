"""The proof after a deployment: a client signs in, connects over each protocol, passes traffic and is cut.

Runs as root on a host of the deployment with a temporary account (design.md, "Verification"); leaves nothing.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from portal_app.verification import tunnel
from portal_app.verification.browser import App, Browser, VerificationError
from vpn_core.messages import OPENVPN, WIREGUARD

WIREGUARD_TYPE = "application/x-wireguard-profile"
OPENVPN_TYPE = "application/x-openvpn-profile"


@dataclass(frozen=True)
class Check:
    """One line of the table; ``detail`` says why it failed."""

    name: str
    passed: bool
    seconds: float
    detail: str = ""


@dataclass
class Verification:
    """Runs checks one after another and keeps what came of them."""

    report: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)

    def check(self, name: str, action: Callable[[], Any]) -> Any:
        """Run one step; a failure is a line of the table, not the end of the run. None: it failed."""
        began = time.monotonic()
        try:
            result = action()
        except VerificationError as error:
            self._add(Check(name, False, time.monotonic() - began, str(error)))
            return None
        self._add(Check(name, True, time.monotonic() - began))
        return True if result is None else result

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        self.report(check)


def verify(
    done: Verification, portal_url: str, user: str, password: str, *, ca_file: Path | None, dns_name: str
) -> None:
    """Prove the service with an existing account; ``dns_name`` is asked where a profile has DNS servers."""
    app = App(portal_url, Browser(ca_file))
    if not done.check("well-known document", app.discover):
        return
    if not done.check("sign in, approve, get tokens", lambda: app.authorize(user, password)):
        return
    profiles = done.check("/info", app.info)
    if not isinstance(profiles, list) or not profiles:
        done.check("/info lists a profile", lambda: _fail("the account may use no profile"))
        return
    with tunnel.namespace():
        for profile in profiles:
            profile_id = profile["profile_id"]
            for transport in profile["vpn_proto_transport_list"]:
                prove = partial(_prove, app, profile_id, transport, dns_name)
                done.check(f"{profile_id} {transport}", prove)


def verify_node(
    done: Verification, node: dict[str, Any], make: Callable[[str, str], str], dns_name: str, *, whole: bool
) -> None:
    """Prove that one node passes traffic for each profile, and over each protocol; with ``whole``, for each
    profile over each protocol.

    ``node`` is its entry in the plan; ``make`` returns a configuration for a profile and protocol there.
    """
    with tunnel.namespace():
        for way in ways(node, whole=whole):
            where = f"{node['name']}: {way.profile_id} {way.protocol}"
            # A configuration of OpenVPN knows every way into the node.
            config = done.check(f"{where} configuration", partial(make, way.profile_id, way.protocol))
            for carrier in way.carriers if config else ():
                prove = partial(_pass_traffic, config, carrier, way.protocol, dns_name)
                done.check(f"{where}+{carrier}", prove)


@dataclass(frozen=True)
class Way:
    """One configuration to try, and what it is carried by: udp, tcp."""

    profile_id: str
    protocol: str
    carriers: tuple[str, ...]


def ways(node: dict[str, Any], *, whole: bool) -> list[Way]:
    """Return what proves a node: all that it serves, or as few ways as have each profile, and each protocol
    with each carrier, in them once.
    """
    wireguard = {s["profile_id"]: Way(s["profile_id"], WIREGUARD, ("udp",)) for s in node["wireguard"]}
    processes: dict[str, list[str]] = {}
    for process in node["openvpn"]:
        processes.setdefault(process["profile_id"], []).append(process["protocol"])
    openvpn = {name: Way(name, OPENVPN, tuple(dict.fromkeys(found))) for name, found in processes.items()}
    if whole:
        return [*wireguard.values(), *openvpn.values()]
    chosen: list[Way] = []
    if wireguard:
        # The other protocol can take a profile that has both.
        chosen.append(wireguard[min(wireguard, key=lambda name: name in openvpn)])
    if openvpn:
        # As many carriers as there are, and a profile that has no turn yet.
        tried = {way.profile_id for way in chosen}
        chosen.append(openvpn[min(openvpn, key=lambda name: (-len(openvpn[name].carriers), name in tried))])
    tried = {way.profile_id for way in chosen}
    rest = [way for name, way in (openvpn | wireguard).items() if name not in tried]
    return chosen + [replace(way, carriers=way.carriers[:1]) for way in rest]


def _pass_traffic(config: str, carrier: str, protocol: str, dns_name: str) -> None:
    with tunnel.wireguard(config) if protocol == "wireguard" else tunnel.openvpn(config, carrier) as opened:
        for gateway in opened.gateways:
            tunnel.ping(gateway, opened.mtu)
        for server in opened.dns_servers:
            tunnel.resolve(server, dns_name)


def _fail(message: str) -> None:
    raise VerificationError(message)


def _prove(app: App, profile_id: str, transport: str, dns_name: str) -> None:
    protocol, carrier = transport.split("+")
    if protocol == "wireguard":
        private_key, public_key = tunnel.new_wireguard_key()
        up = tunnel.wireguard(app.connect(profile_id, WIREGUARD_TYPE, public_key), private_key)
    else:
        up = tunnel.openvpn(app.connect(profile_id, OPENVPN_TYPE), carrier)
    try:
        with up as opened:
            for gateway in opened.gateways:
                tunnel.ping(gateway, opened.mtu)
            for server in opened.dns_servers:
                tunnel.resolve(server, dns_name)
            app.disconnect()
            tunnel.wait_until_cut(opened.gateways[0])
    except VerificationError:
        with suppress(VerificationError):  # the first failure is the one to tell
            app.disconnect()
        raise


def temporary_name() -> str:
    """Return a user name that nobody has; ``verify-`` tells an admin what it is."""
    return f"verify-{secrets.token_hex(6)}"
