"""What the kernel's connection tracking tells over netlink (linux/netfilter/nfnetlink_conntrack.h): flows of
clients that begin and end, with the address and port that they leave this host from.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from node_agent.errors import AgentError

#: linux/netlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER, _SO_RCVBUFFORCE = 12, 33
_CONNTRACK, _NEW, _GET, _DELETE = 1 << 8, 0, 1, 2
_DONE, _ERROR, _REQUEST_DUMP = 3, 2, 0x301
_GROUPS = 1 | 4  # of what begins, of what ends
_HEADER, _FAMILY = struct.Struct("=IHHII"), struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_KIND = 0x3FFF  # without the flags of nesting and byte order
#: Attributes of a flow, of a direction of it, of its addresses, of its ports.
_ORIGINAL, _REPLY, _ID = 1, 2, 12
_ADDRESSES, _PORTS = 1, 2
_FROM, _TO = {1: socket.AF_INET, 3: socket.AF_INET6}, {2: socket.AF_INET, 4: socket.AF_INET6}
_PROTOCOL, _TO_PORT, _ICMP_ID, _ICMPV6_ID = 1, 3, 4, 7
_BUFFER_BYTES = 8 * 1024 * 1024
_READ_BYTES = 256 * 1024
_DUMP_SECONDS = 10.0


class Overrun(AgentError):
    """The kernel had more to tell than was read in time: some of it is lost."""


@dataclass(frozen=True)
class Flow:
    """One translated flow. ``protocol`` is IANA's number; ``port`` of ICMP is its identifier."""

    number: int
    protocol: int
    client: str
    address: str
    port: int


@dataclass(frozen=True)
class Change:
    """A flow began (``begins``), or ended."""

    begins: bool
    flow: Flow


def listen() -> socket.socket:
    """Return a socket that hears what begins and ends from now on. Needs CAP_NET_ADMIN."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    try:
        netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        netlink.bind((0, _GROUPS))
    except OSError:
        netlink.close()
        raise
    return netlink


def read(netlink: socket.socket) -> list[Change]:
    """Return what was told next; blocks as the socket does. Raises Overrun."""
    try:
        data = netlink.recv(_READ_BYTES)
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            raise Overrun("the kernel told more than could be read") from None
        raise
    return [
        Change(kind == _CONNTRACK | _NEW, flow)
        for kind, body in _messages(data)
        if kind in (_CONNTRACK | _NEW, _CONNTRACK | _DELETE) and (flow := _flow(body)) is not None
    ]


def living() -> list[Flow]:
    """Return the translated flows that there are now; raises AgentError."""
    found: list[Flow] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_DUMP_SECONDS)
        netlink.bind((0, 0))
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, 0)
        length = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(length, _CONNTRACK | _GET, _REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, part in _messages(netlink.recv(_READ_BYTES)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", part)[0]
                    raise AgentError(
                        f"the kernel does not tell its connections: {errno.errorcode.get(number)}"
                    )
                if (flow := _flow(part)) is not None:
                    found.append(flow)


def _messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, *_ = _HEADER.unpack_from(view, at)
        if length < _HEADER.size:
            return
        yield kind, view[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(view: memoryview) -> dict[int, memoryview]:
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND] = view[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _flow(body: memoryview) -> Flow | None:
    """Return a flow whose sender is seen elsewhere under another address; None for every other one."""
    whole = _attributes(body[_FAMILY.size :])
    if not {_ORIGINAL, _REPLY, _ID} <= whole.keys():
        return None
    original, reply = _attributes(whole[_ORIGINAL]), _attributes(whole[_REPLY])
    if _ADDRESSES not in original or not {_ADDRESSES, _PORTS} <= reply.keys():
        return None
    client = _address(_attributes(original[_ADDRESSES]), _FROM)
    address = _address(_attributes(reply[_ADDRESSES]), _TO)
    if client is None or address is None or client == address:
        return None
    ports = _attributes(reply[_PORTS])
    port = next((ports[kind] for kind in (_TO_PORT, _ICMP_ID, _ICMPV6_ID) if kind in ports), None)
    return Flow(
        number=int.from_bytes(whole[_ID], "big"),
        protocol=ports[_PROTOCOL][0] if _PROTOCOL in ports else 0,
        client=client,
        address=address,
        port=int.from_bytes(port, "big") if port is not None else 0,
    )


def _address(attributes: dict[int, memoryview], kinds: dict[int, socket.AddressFamily]) -> str | None:
    for kind, family in kinds.items():
        if kind in attributes:
            return socket.inet_ntop(family, attributes[kind])
    return None
