"""The proof after a deployment: a client signs in, connects over each protocol, passes traffic and is cut.

Runs as root on a host of the deployment with a temporary account (design.md, "Verification"); leaves nothing.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from portal_app.verification import tunnel
from portal_app.verification.browser import App, Browser, VerificationError

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
    portal_url: str,
    user: str,
    password: str,
    *,
    ca_file: Path | None,
    dns_name: str,
    report: Callable[[Check], None],
) -> Verification:
    """Prove the service with an existing account; ``dns_name`` is asked where a profile has DNS servers."""
    done = Verification(report)
    app = App(portal_url, Browser(ca_file))
    if not done.check("well-known document", app.discover):
        return done
    if not done.check("sign in, approve, get tokens", lambda: app.authorize(user, password)):
        return done
    profiles = done.check("/info", app.info)
    if not isinstance(profiles, list) or not profiles:
        done.check("/info lists a profile", lambda: _fail("the account may use no profile"))
        return done
    with tunnel.namespace():
        for profile in profiles:
            profile_id = profile["profile_id"]
            for transport in profile["vpn_proto_transport_list"]:
                prove = partial(_prove, app, profile_id, transport, dns_name)
                done.check(f"{profile_id} {transport}", prove)
    return done


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
