"""Single addresses as text, the fast way: the C library reads and writes them."""

from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton


def text_of(family: type[IPv4Address] | type[IPv6Address], number: int) -> str:
    """Return an address as ``ipaddress`` writes it (RFC 5952 for IPv6).

    >>> text_of(IPv6Address, (0xFD43 << 112) + 7), text_of(IPv4Address, 1)
    ('fd43::7', '0.0.0.1')
    """
    if family is IPv4Address:
        return inet_ntop(AF_INET, number.to_bytes(4))
    text = inet_ntop(AF_INET6, number.to_bytes(16))
    # The C library writes the end of an IPv4-mapped address as IPv4.
    return str(IPv6Address(number)) if "." in text else text


def is_canonical(family: type[IPv4Address] | type[IPv6Address], text: str) -> bool:
    """Tell whether ``text`` is an address in the one spelling that ``text_of`` gives; a zone is none.

    >>> [is_canonical(IPv6Address, text) for text in ("fd43::7", "fd43:0::7", "fe80::1%eth0", "10.0.0.1")]
    [True, False, False, False]
    """
    try:
        packed = inet_pton(AF_INET if family is IPv4Address else AF_INET6, text)
    except (OSError, ValueError):
        return False
    return text_of(family, int.from_bytes(packed)) == text
