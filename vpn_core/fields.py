"""Check one field of the inventory: keys, types, names, networks.

Every message names the variable, its value and the way out.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

from vpn_core.errors import PlanError

T = TypeVar("T", str, int, bool)

#: What a type is called, and what to do about a value of another one.
_TYPES: dict[type, tuple[str, str]] = {
    str: ("a text", "put it in quotes"),
    int: ("a whole number", "write digits without quotes"),
    bool: ("true or false", "write true or false without quotes"),
}

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")
_LOOKS_LIKE_ADDRESS = re.compile(r"[0-9.]+|.*:.*")

#: No client can have an address in these: this network, loopback, link-local, multicast and what is reserved.
_UNUSABLE = [
    ip_network(n)
    for n in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8")
]


def refuse_unknown_keys(where: str, entry: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise PlanError for the first key that is not known, with the nearest known one as the fix."""
    known = sorted(known)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known)}"
            raise PlanError(f"{where}: unknown key '{key}'; {fix}")


def typed(where: str, value: Any, wanted: type[T]) -> T:
    """Return ``value`` as a plain ``wanted`` (a bool is no number); else raise PlanError.

    Ansible hands over tagged subclasses of str and int, so isinstance and not identity decides.
    """
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        name, fix = _TYPES[wanted]
        if value is None:
            fix = f"give it a value ({name}) or remove the key"
        raise PlanError(f"{where}: {_shown(value)} is not {name}; {fix}")
    return wanted(value)


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping; Ansible's own kinds of mapping count."""
    if not isinstance(value, Mapping):
        raise PlanError(f"{where}: {_shown(value)} is not a mapping; write 'key: value' lines below it")
    return value


def items(where: str, value: Any) -> list[Any]:
    """Return ``value`` as a list; a text is none."""
    if not isinstance(value, list | tuple):
        raise PlanError(f"{where}: {_shown(value)} is not a list; write [first, second] or [] for none")
    return list(value)


def text(where: str, value: Any, *, longest: int = 200) -> str:
    """Return a printable one-line text of 1 to ``longest`` characters."""
    found = typed(where, value, str)
    if not found.strip() or len(found) > longest or not found.isprintable():
        raise PlanError(f"{where}: {_shown(found)}; write 1 to {longest} printable characters on one line")
    return found


def texts(where: str, value: Any) -> list[str]:
    return [text(f"{where}[{i}]", item) for i, item in enumerate(items(where, value))]


def number(where: str, value: Any, lowest: int, highest: int) -> int:
    found = typed(where, value, int)
    if not lowest <= found <= highest:
        raise PlanError(f"{where}: {found} is out of bounds; use {lowest} to {highest}")
    return found


def host_name(where: str, value: Any) -> str:
    """Return where a host is reached: a DNS name (RFC 1123) in lower case, or an IP address."""
    name = text(where, value, longest=254)
    if not _LOOKS_LIKE_ADDRESS.fullmatch(name):
        return domain(where, name)
    found = address(where, name)
    if found.is_unspecified or found.is_multicast:
        raise PlanError(f"{where}: {name!r} is no host's address; write the one that the host is reached by")
    return str(found)


def domain(where: str, value: Any) -> str:
    """Return a DNS name (RFC 1123) in lower case and without its final dot; an address is none."""
    written = text(where, value, longest=254)
    name = written.removesuffix(".").lower()
    labels = name.split(".")
    if len(name) > 253 or not all(map(_HOST_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise PlanError(
            f"{where}: {_shown(written)} is no DNS name; use letters, digits, '-', '.': vpn.example.org"
        )
    return name


def address(where: str, value: Any) -> IPv4Address | IPv6Address:
    """Return an IP address without a zone ("%eth0")."""
    written = text(where, value, longest=50)
    try:
        found = ip_address(written)
    except ValueError:
        found = None
    if found is None or "%" in written:
        raise PlanError(f"{where}: {written!r} is no IP address; write 198.51.100.7 or 2001:db8::7")
    return found


def network(where: str, value: Any, version: int | None = None) -> IPv4Network | IPv6Network:
    """Return a network in normal form, such as 10.64.0.0/16; ``version`` 4 or 6 demands that family."""
    written = text(where, value, longest=50)
    example = {4: "10.64.0.0/16", 6: "fd00:64::/96", None: "10.64.0.0/16 or fd00:64::/96"}[version]
    host, slash, length = written.partition("/")
    try:
        parsed = ip_network(written, strict=False)
        first = ip_address(host)
    except ValueError:
        raise PlanError(f"{where}: {written!r} is no network; write it like {example}") from None
    if not slash:
        raise PlanError(f"{where}: {written!r} lacks its prefix length; write {parsed}")
    if not _PREFIX_LENGTH.fullmatch(length) or "%" in host:
        raise PlanError(f"{where}: {written!r} is no network with a prefix length; write it like {example}")
    if version is not None and parsed.version != version:
        raise PlanError(f"{where}: {written!r} is not an IPv{version} network; write it like {example}")
    if parsed.network_address != first:
        raise PlanError(f"{where}: {written!r} has bits set behind its prefix; write {parsed}")
    return parsed


def client_range(where: str, value: Any, version: int) -> IPv4Network | IPv6Network:
    """Return a network whose addresses clients can have."""
    found = network(where, value, version)
    for unusable in _UNUSABLE:
        if found.version == unusable.version and found.overlaps(unusable):
            example = "10.64.0.0/16" if version == 4 else "fd00:64::/96"
            raise PlanError(
                f"{where}: {found} touches {unusable}, which no client can use; take a range like {example}"
            )
    return found


def _shown(value: object) -> str:
    """Return ``value`` as a message shows it: short, and a tagged text like a plain one."""
    shown = repr(str(value)) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
