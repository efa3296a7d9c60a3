"""What people notice when a unit is started, stopped, restarted or reloaded."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

_OPENVPN = "openvpn-server@"
WIREGUARD = "causeway-wireguard.service"

# How long was measured in the lab: pings every 0.1 s through a tunnel, requests every 0.1 s; docs/operate.md.
_NOBODY = "nobody notices"
# A WireGuard client notices after 15 s that the other end has forgotten their session.
_WIREGUARD_GAP = "no traffic for up to 15 seconds"
_OPENVPN_GAP = "reconnecting by themselves within about 5 seconds"
_PAGES = "pages and apps wait a few seconds, tunnels go on"
#: By pattern of the unit: its name for people, and what a restart means for them where that is not nothing.
_UNITS = (
    ("vpn-portal.service", "portal", _PAGES),
    ("vpn-portal.socket", "the portal's socket", _PAGES),
    ("vpn-portal-controller.service", "controller", _NOBODY),
    (
        "vpn-node-agent.service",
        "agent",
        "nobody connected notices, new connects use another node or wait a moment",
    ),
    ("causeway-nat-log.service", "log of NAT", _NOBODY),
    ("nginx.service", "nginx", "pages and apps are refused for a moment, tunnels go on"),
    ("causeway-dns.service", "resolver", "names resolve again after a moment, tunnels go on"),
    ("causeway-firewall.service", "firewall", _NOBODY),
)


@dataclass(frozen=True)
class Connected:
    """Connections that are in use, and how many users they are of."""

    connections: int
    users: int

    def __str__(self) -> str:
        if self.connections == 0:
            return "nobody is connected"
        return f"{counted(self.connections, 'connection')} of {counted(self.users, 'user')}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "user"), counted(2, "user")
    ('1 user', '2 users')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def process_of(unit: str) -> str | None:
    """Return the name of the OpenVPN process that a unit runs.

    >>> process_of("openvpn-server@employees-0.service")
    'employees-0'
    """
    if not unit.startswith(_OPENVPN):
        return None
    return unit.removeprefix(_OPENVPN).removesuffix(".service")


def carries_tunnels(unit: str) -> bool:
    return unit == WIREGUARD or process_of(unit) is not None


def title(unit: str) -> str:
    """Return what people call a unit."""
    if unit == WIREGUARD:
        return "WireGuard"
    if process := process_of(unit):
        return f"OpenVPN {process}"
    return next((name for pattern, name, _ in _UNITS if fnmatchcase(unit, pattern)), unit)


def notice(unit: str, verb: str, connected: Connected | None) -> str:
    """Return what people notice; ``connected`` is who uses the unit now, None for unknown."""
    if carries_tunnels(unit) and verb in ("restart", "stop"):
        who = str(connected) if connected else "an unknown number of connections"
        if connected and connected.connections == 0:
            return who
        if verb == "stop":
            return f"cuts {who}"
        return f"{who}, {_WIREGUARD_GAP if unit == WIREGUARD else _OPENVPN_GAP}"
    if verb == "stop":
        return "ends"
    if verb != "restart":
        return _NOBODY
    return next((text for pattern, _, text in _UNITS if fnmatchcase(unit, pattern)), _NOBODY)
