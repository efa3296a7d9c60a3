"""Check one entry of the inventory: unknown keys, types, names, networks. Every message names variable, value and fix."""

import difflib
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

from vpn_core.errors import PlanError

T = TypeVar("T")

type_names: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def refuse_unknown_keys(where: str, entry: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise PlanError for the first key that is not known, with the nearest known one as the fix."""
    known = sorted(known)
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known)}"
            raise PlanError(f"{where}: unknown key '{key}'; {fix}")


def typed(where: str, value: Any, wanted: type[T]) -> T:
    """Return ``value`` if it is a ``wanted`` (a bool is no number, a text no list); else raise PlanError."""
    # Ansible hands over tagged subclasses of str, int, list and dict, so isinstance and not identity.
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise PlanError(f"{where}: {value!r} is not {type_names.get(wanted, wanted.__name__)}")
    return value


def text(where: str, value: Any, *, longest: int = 200) -> str:
    """Return a printable one-line text of 1 to ``longest`` characters."""
    value = str(typed(where, value, str))
    if not value or len(value) > longest or not value.isprintable():
        raise PlanError(f"{where}: {value!r} must be 1 to {longest} printable characters on one line")
    return value


def texts(where: str, value: Any) -> list[str]:
    return [text(f"{where}[{i}]", item) for i, item in enumerate(typed(where, value, list))]


def number(where: str, value: Any, lowest: int, highest: int) -> int:
    value = int(typed(where, value, int))
    if not lowest <= value <= highest:
        raise PlanError(f"{where}: {value} is outside {lowest} to {highest}")
    return value


def host_name(where: str, value: Any) -> str:
    """Return a DNS name (RFC 1123) in lower case, or an IP address, that clients can reach."""
    name = text(where, value, longest=253)
    if re.fullmatch(r"[0-9.]+|.*:.*", name):
        try:
            return str(ip_address(name))
        except ValueError:
            raise PlanError(
                f"{where}: {name!r} is not an IP address; write 198.51.100.7 or 2001:db8::7"
            ) from None
    if not all(_HOST_LABEL.fullmatch(label) for label in name.rstrip(".").split(".")):
        raise PlanError(
            f"{where}: {name!r} is no host name; use letters, digits, '-' and '.', such as node1.example.org"
        )
    return name.rstrip(".").lower()


def network(where: str, value: Any, version: int | None = None) -> IPv4Network | IPv6Network:
    """Return a network in normal form, such as 10.64.0.0/16; ``version`` 4 or 6 demands that family."""
    written = text(where, value, longest=50)
    try:
        parsed = ip_network(written, strict=False)
    except ValueError:
        raise PlanError(
            f"{where}: {written!r} is no network; write it like 10.64.0.0/16 or fd00:64::/48"
        ) from None
    if "/" not in written:
        raise PlanError(f"{where}: {written!r} lacks its prefix length; write {parsed}")
    if version is not None and parsed.version != version:
        raise PlanError(f"{where}: {written!r} is not an IPv{version} network")
    if parsed.network_address != ip_address(written.split("/")[0]):
        raise PlanError(f"{where}: {written!r} has bits set behind its prefix; write {parsed}")
    return parsed
