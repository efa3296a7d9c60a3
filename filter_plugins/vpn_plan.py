"""The playbooks' door to vpn_core. The .yml files beside document the filters."""

import base64
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from cryptography import x509

from vpn_control import database
from vpn_core.colour import accent_problem
from vpn_core.errors import PlanError
from vpn_core.look import LARGEST_LOGO, is_contact, logo_problem, planned
from vpn_core.openvpn import tls_crypt_key
from vpn_core.plan import Plan, make_plan

#: What Ansible's filter ``bool`` knows; of anything else it makes false.
_BOOLEANS = ("true", "yes", "on", "1", "false", "no", "off", "0")


def vpn_plan(
    profiles: Mapping[str, Any], nodes: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Resolve ``vpn_profiles`` and every host's ``vpn_node`` (keyed by inventory name) into one plan."""
    try:
        return _make_plan(profiles, nodes, settings).to_dict()
    except PlanError as error:
        raise AnsibleFilterError(f"vpn_plan: {error}") from error


def vpn_plan_problem(
    profiles: Mapping[str, Any], nodes: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> str:
    """Return why there is no plan for these, "" if there is one."""
    try:
        _make_plan(profiles, nodes, settings)
    except PlanError as error:
        return str(error)
    return ""


def _make_plan(
    profiles: Mapping[str, Any], nodes: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> Plan:
    plan = make_plan(profiles, nodes, settings)
    for warning in plan.warnings:
        # Variables are resolved again and again; Ansible shows the same warning once.
        Display().warning(warning)
    return plan


def vpn_unknown(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names that are not known, each with the nearest known one."""
    known = sorted(known)
    found = []
    for name in sorted(set(names) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        found.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return found


def vpn_tls_crypt_key(master_secret: str, profile_id: str) -> str:
    """Derive a profile's tls-crypt key from the environment's secret."""
    try:
        return tls_crypt_key(master_secret, profile_id)
    except (TypeError, ValueError):
        # Without the cause: its message could hold a part of the secret.
        raise AnsibleFilterError(
            "vpn_tls_crypt_key: the secret is not at least 64 hex digits; run playbooks/init_secrets.yml"
        ) from None


def vpn_database_password(portal_secret: str, purpose: str = "") -> str:
    """Derive the password of a role in PostgreSQL from the portal's secret."""
    try:
        return database.password(portal_secret, purpose)
    except (TypeError, ValueError):
        # Without the cause: its message could hold a part of the secret.
        raise AnsibleFilterError(
            "vpn_database_password: the secret is not at least 64 hex digits; run playbooks/init_secrets.yml"
        ) from None


def vpn_scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password."""
    return database.scram_verifier(password)


def vpn_database_problem(url: object) -> str:
    """Return why portals do not call the database of ``vpn_database_url``, "" if they do."""
    return database.url_problem(str(url)) if url else ""


def vpn_virtual_ip_problem(value: object, taken: Iterable[str] = (), ranges: Iterable[str] = ()) -> str:
    """Return why this cannot be ``vpn_virtual_ip``, "" if it can.

    ``taken`` are addresses of hosts (names and networks among them say nothing), ``ranges`` those of clients.
    """
    if not isinstance(value, Mapping) or "ipv4" not in value or value.keys() - {"ipv4", "ipv6"}:
        return f"{value!r}: has ipv4, and ipv6 if you like, nothing else"
    for key, version in (("ipv4", 4), ("ipv6", 6)):
        text = str(value.get(key, "192.0.2.1/32" if version == 4 else "2001:db8::1/128"))
        try:
            found = ip_interface(text)
        except ValueError:
            return f"{key}: {text!r} is no address with a prefix length, such as 198.51.100.10/24"
        if found.version != version or "/" not in text:
            return f"{key}: {text!r} is no IPv{version} address with a prefix length"
        if found.ip in map(_address, taken):
            return f"{key}: {found.ip} is a host's own address; take a free one of the portals' network"
        if within := [network for network in ranges if found.ip in ip_network(network)]:
            return (
                f"{key}: {found.ip} lies in {within[0]}, a range of clients; take one of the portals' network"
            )
    return ""


def vpn_not_booleans(values: Iterable[object]) -> list[str]:
    """Return what is neither true nor false for Ansible; from the command line these are texts."""
    return [json.dumps(value) for value in values if str(value).lower() not in _BOOLEANS]


def vpn_ports_problem(value: object) -> str:
    """Return why this is no list of ports, "" if it is one."""
    if not isinstance(value, list):
        return f"{value!r} is no list, such as [8443]"
    wrong = [port for port in value if not _is_port(port)]
    return f"{wrong[0]!r} is no port; write numbers from 1 to 65535" if wrong else ""


def vpn_portal_within(limited: Iterable[str], portals: Iterable[str], refusing: bool = False) -> str:
    """Return the first portal that a limit leaves in, since another one may be down.

    Where it leaves none in, the first of all, and with ``refusing`` a host that is left in, which can say so:
    a play of hosts that are left out is passed over in silence.

    >>> vpn_portal_within(["p2", "n1"], ["p1", "p2"]), vpn_portal_within(["n1"], ["p1", "p2"])
    ('p2', 'p1')
    >>> vpn_portal_within(["n1"], ["p1", "p2"], refusing=True), vpn_portal_within([], [])
    ('n1', 'localhost')
    """
    limited, portals = list(limited), list(portals)
    within = [portal for portal in portals if portal in limited]
    return [*within, *(limited if refusing else ()), *portals, "localhost"][0]


def vpn_not_networks(values: Iterable[object]) -> list[str]:
    """Return what is neither an IP address nor a network in its own notation."""
    return [str(value) for value in values if not _is_network(str(value))]


def vpn_within(addresses: Iterable[str], networks: Iterable[str]) -> list[str]:
    """Return the addresses that lie in one of the networks; a host name lies in none."""
    ranges = [ip_network(network) for network in networks]
    return [
        address
        for address in addresses
        if _is_network(address) and any(ip_interface(address).ip in network for network in ranges)
    ]


def vpn_accent_problem(colour: object, dark: bool = False) -> str:
    """Return why this cannot be the accent colour of the portal's pages, "" if it can or is empty."""
    return accent_problem(str(colour), dark=dark) if colour else ""


def vpn_logo_problem(path: object) -> str:
    """Return why this file cannot be the portal's logo, "" if it can."""
    file = Path(str(path))
    if file.suffix not in (".svg", ".png"):
        return f"{file}: its name ends neither in .svg nor in .png"
    if not file.is_file():
        return f"{file}: there is no such file"
    try:
        with file.open("rb") as opened:
            problem = logo_problem(opened.read(LARGEST_LOGO + 1))
    except OSError as error:
        problem = error.strerror or "cannot be read"
    return f"{file}: {problem}" if problem else ""


def vpn_contact_problem(text: object) -> str:
    """Return why this is no contact for people who need help, "" if it is one or empty."""
    if not text or (isinstance(text, str) and is_contact(text)):
        return ""
    return f"{text!r} is neither a mail address nor an address that begins with https://"


def vpn_notices_problem(notices: object) -> str:
    """Return what is wrong with the first bad one of the portal's notices, "" if all are good."""
    if not isinstance(notices, list):
        return ": has to be a list of notices, each with text, from and until"
    for number, notice in enumerate(notices):
        try:
            planned(notice)
        except ValueError as error:
            return f"[{number}]: {error}"
    return ""


def vpn_ca_problem(path: object) -> str:
    """Return why this file holds no certificates to trust, "" if it does."""
    file = Path(str(path))
    try:
        content = file.read_bytes()
        x509.load_pem_x509_certificates(content)
    except OSError as error:
        return f"{file}: {error.strerror}"
    except ValueError:
        return f"{file}: no certificate in PEM"
    if b"PRIVATE KEY" in content:
        return f"{file}: has a private key in it; take out all but certificates"
    return ""


def vpn_file_base64(path: object) -> str:
    """Return the content of a file on the control machine in base64: it may be no text."""
    try:
        return base64.b64encode(Path(str(path)).read_bytes()).decode()
    except OSError as error:
        raise AnsibleFilterError(f"vpn_file_base64: {path}: {error.strerror}") from error


def vpn_style_source(style: str) -> str:
    """Return what allows this content of a style element, to the byte, in a Content-Security-Policy."""
    digest = hashlib.sha256(style.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the one address that this is, None for a name or a network."""
    if not _is_network(text):
        return None
    network = ip_network(text)
    return network.network_address if network.num_addresses == 1 else None


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


class FilterModule:
    """Filters of Causeway."""

    def filters(self) -> dict[str, Any]:
        return {
            "vpn_plan": vpn_plan,
            "vpn_plan_problem": vpn_plan_problem,
            "vpn_unknown": vpn_unknown,
            "vpn_tls_crypt_key": vpn_tls_crypt_key,
            "vpn_database_password": vpn_database_password,
            "vpn_scram_verifier": vpn_scram_verifier,
            "vpn_portal_within": vpn_portal_within,
            "vpn_not_networks": vpn_not_networks,
            "vpn_not_booleans": vpn_not_booleans,
            "vpn_ports_problem": vpn_ports_problem,
            "vpn_database_problem": vpn_database_problem,
            "vpn_ca_problem": vpn_ca_problem,
            "vpn_virtual_ip_problem": vpn_virtual_ip_problem,
            "vpn_within": vpn_within,
            "vpn_accent_problem": vpn_accent_problem,
            "vpn_logo_problem": vpn_logo_problem,
            "vpn_contact_problem": vpn_contact_problem,
            "vpn_notices_problem": vpn_notices_problem,
            "vpn_file_base64": vpn_file_base64,
            "vpn_style_source": vpn_style_source,
        }
