"""What portal and agent say to each other (ARCHITECTURE.md, "The agent API").

Each message is a frozen dataclass with ``parse`` (strict: unknown keys, wrong types and values outside their
bounds raise MessageError and nothing is applied; only NodeInfo passes over unknown keys) and ``to_dict``
(JSON types). Both ends treat what arrives as untrusted. Times are whole seconds since 1970 UTC; bytes are as
the node sees them, received from clients.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Any, Self

from vpn_core.addresses import is_canonical
from vpn_core.errors import MessageError
from vpn_core.openvpn import is_common_name
from vpn_core.profile import PROFILE_ID
from vpn_core.wireguard import is_public_key

WIREGUARD, OPENVPN = "wireguard", "openvpn"
CONNECTION_ID = re.compile(r"[0-9a-f]{32}")
DEPLOYMENT_ID = re.compile(r"[0-9a-f]{32}")
#: What fits a signed 64-bit column.
MOST = 2**63 - 1


def _check(condition: bool, where: str, value: object) -> None:
    if not condition:
        raise MessageError(f"{where}: bad value {value!r:.80}")


def _whole(where: str, value: object) -> None:
    _check(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST, where, value)


def _flag(where: str, value: object) -> None:
    _check(isinstance(value, bool), where, value)


def _matches(where: str, value: object, pattern: re.Pattern[str]) -> None:
    _check(isinstance(value, str) and pattern.fullmatch(value) is not None, where, value)


def _one_of(where: str, value: object, *allowed: str) -> None:
    _check(isinstance(value, str) and value in allowed, where, value)


def _address(where: str, value: object, family: type[IPv4Address] | type[IPv6Address]) -> None:
    _check(isinstance(value, str) and is_canonical(family, value), where, value)


def _short_text(where: str, value: object, longest: int = 200) -> None:
    printable = isinstance(value, str) and len(value) <= longest and value.isprintable()
    _check(printable, where, value)


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Message:
    """Base of all messages: parse from JSON types, strictly."""

    @classmethod
    def parse(cls, data: object) -> Self:
        """Return the message in ``data``; raises MessageError for a wrong shape."""
        if not isinstance(data, Mapping):
            raise MessageError(f"{cls.__name__}: not an object")
        if unknown := set(data) - cls.__dataclass_fields__.keys():
            raise MessageError(f"{cls.__name__}: unknown key {min(map(str, unknown))!r:.80}")
        try:
            return cls(**data)
        except TypeError:
            required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
            missing = ", ".join(sorted(required - set(data)))
            raise MessageError(f"{cls.__name__}: missing {missing or 'or misplaced value'}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: what ``parse`` reads back to an equal message."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True)
class Connection(Message):
    """One configuration handed out, as its node knows it: no user name, no private key.

    WireGuard: ``public_key`` and both addresses. OpenVPN: ``common_name`` (equal to ``connection_id``); its
    addresses come from the process's pool. ``generation`` is the node's counter when this was admitted.
    """

    connection_id: str
    profile_id: str
    protocol: str
    expires_at: int
    generation: int
    public_key: str | None = None
    common_name: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None

    def __post_init__(self) -> None:
        _matches("connection_id", self.connection_id, CONNECTION_ID)
        _matches("profile_id", self.profile_id, PROFILE_ID)
        _whole("expires_at", self.expires_at)
        _whole("generation", self.generation)
        if self.protocol == WIREGUARD:
            _check(is_public_key(self.public_key), "public_key", self.public_key)
            _check(self.common_name is None, "common_name", self.common_name)
            _address("ipv4", self.ipv4, IPv4Address)
            _address("ipv6", self.ipv6, IPv6Address)
        else:
            _one_of("protocol", self.protocol, OPENVPN)
            named = is_common_name(self.common_name) and self.common_name == self.connection_id
            _check(named, "common_name", self.common_name)
            for name in ("public_key", "ipv4", "ipv6"):
                _check(getattr(self, name) is None, name, getattr(self, name))


@dataclass(frozen=True)
class Authority(Message):
    """On whose word: the deployment and its epoch (one higher after each restore of the database)."""

    deployment_id: str
    epoch: int

    def __post_init__(self) -> None:
        _matches("deployment_id", self.deployment_id, DEPLOYMENT_ID)
        _whole("epoch", self.epoch)


@dataclass(frozen=True)
class Admit(Message):
    """Body of ``PUT /n/connections/ID``."""

    authority: Authority
    connection: Connection

    @classmethod
    def parse(cls, data: object) -> Self:
        shell = super().parse(data)
        return cls(Authority.parse(shell.authority), Connection.parse(shell.connection))


@dataclass(frozen=True)
class Cut(Message):
    """Body of ``DELETE /n/connections/ID``: cut it, and let no admission of an older generation revive it."""

    authority: Authority
    generation: int

    @classmethod
    def parse(cls, data: object) -> Self:
        shell = super().parse(data)
        return cls(Authority.parse(shell.authority), shell.generation)

    def __post_init__(self) -> None:
        _whole("generation", self.generation)


@dataclass(frozen=True)
class WantedSet(Message):
    """Body of ``PUT /n/connections``: all that the node should have as of ``generation``.

    What is newer is left alone. ``confirmed`` lets through what the agent would otherwise hold: another
    deployment, an older epoch, mass removal.
    """

    authority: Authority
    generation: int
    connections: tuple[Connection, ...]
    confirmed: bool = False

    @classmethod
    def parse(cls, data: object) -> Self:
        shell = super().parse(data)
        if not isinstance(shell.connections, list | tuple):
            raise MessageError("connections: not a list")
        connections = tuple(Connection.parse(item) for item in shell.connections)
        if len({c.connection_id for c in connections}) != len(connections):
            raise MessageError("connections: a connection_id comes twice")
        return cls(Authority.parse(shell.authority), shell.generation, connections, shell.confirmed)

    def __post_init__(self) -> None:
        _whole("generation", self.generation)
        _flag("confirmed", self.confirmed)


@dataclass(frozen=True)
class Usage(Message):
    """What one connection has used so far.

    ``active``: a WireGuard handshake within 3 minutes, or an OpenVPN client attached.
    """

    connection_id: str
    protocol: str
    active: bool
    received_bytes: int
    sent_bytes: int
    ipv4: str | None = None
    ipv6: str | None = None
    last_handshake_at: int | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        _matches("connection_id", self.connection_id, CONNECTION_ID)
        _one_of("protocol", self.protocol, WIREGUARD, OPENVPN)
        _flag("active", self.active)
        _whole("received_bytes", self.received_bytes)
        _whole("sent_bytes", self.sent_bytes)
        for name, family in (("ipv4", IPv4Address), ("ipv6", IPv6Address)):
            if getattr(self, name) is not None:
                _address(name, getattr(self, name), family)
        if self.last_handshake_at is not None:
            _whole("last_handshake_at", self.last_handshake_at)
        if self.origin is not None:
            _short_text("origin", self.origin, 60)


@dataclass(frozen=True)
class SessionEvent(Message):
    """One entry of the journal: a session began or ended. Stored by (node, journal, sequence): twice is once.

    ``kind`` is ``start`` or ``end``; ``session_id`` ties both; an end carries its own start and the counters.
    """

    sequence: int
    kind: str
    session_id: str
    connection_id: str
    profile_id: str
    protocol: str
    at: int
    ipv4: str | None = None
    ipv6: str | None = None
    origin: str | None = None
    started_at: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None

    def __post_init__(self) -> None:
        _whole("sequence", self.sequence)
        _one_of("kind", self.kind, "start", "end")
        for name in ("session_id", "connection_id"):
            _matches(name, getattr(self, name), CONNECTION_ID)
        _matches("profile_id", self.profile_id, PROFILE_ID)
        _one_of("protocol", self.protocol, WIREGUARD, OPENVPN)
        _whole("at", self.at)
        for name, family in (("ipv4", IPv4Address), ("ipv6", IPv6Address)):
            if getattr(self, name) is not None:
                _address(name, getattr(self, name), family)
        for name in ("started_at", "received_bytes", "sent_bytes"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        if self.origin is not None:
            _short_text("origin", self.origin, 60)


@dataclass(frozen=True)
class Events(Message):
    """Answer of ``GET /n/events?after=SEQ``: at most 1000 entries, their sequence numbers ascending.

    ``journal_id`` changes when a node lost its journal. ``first`` is the oldest sequence still kept, so a gap
    shows; asking with ``after`` acknowledges all up to it.
    """

    journal_id: str
    first: int
    head: int
    events: tuple[SessionEvent, ...]

    @classmethod
    def parse(cls, data: object) -> Self:
        shell = super().parse(data)
        if not isinstance(shell.events, list | tuple) or len(shell.events) > 1000:
            raise MessageError("events: not a list of at most 1000")
        return cls(
            shell.journal_id, shell.first, shell.head, tuple(SessionEvent.parse(e) for e in shell.events)
        )

    def __post_init__(self) -> None:
        _matches("journal_id", self.journal_id, CONNECTION_ID)
        _whole("first", self.first)
        _whole("head", self.head)
        sequences = [e.sequence for e in self.events if isinstance(e, SessionEvent)]
        _check(all(a < b for a, b in pairwise([*sequences, self.head + 1])), "events", sequences)


#: More are not told: the time that was asked for was too wide.
MOST_TRANSLATIONS = 200
MOST_GAPS = 100


@dataclass(frozen=True)
class Translation(Message):
    """One flow of a client that left its node from another address. ``protocol`` is IANA's number."""

    client: str
    protocol: int
    began_at: int
    ended_at: int | None = None

    def __post_init__(self) -> None:
        family = IPv6Address if isinstance(self.client, str) and ":" in self.client else IPv4Address
        _address("client", self.client, family)
        _whole("protocol", self.protocol)
        _check(self.protocol < 256, "protocol", self.protocol)
        _whole("began_at", self.began_at)
        if self.ended_at is not None:
            _whole("ended_at", self.ended_at)


@dataclass(frozen=True)
class Gap(Message):
    """A time in which a log of NAT misses what began and ended."""

    began_at: int
    ended_at: int

    def __post_init__(self) -> None:
        _whole("began_at", self.began_at)
        _whole("ended_at", self.ended_at)


@dataclass(frozen=True)
class Translations(Message):
    """Answer of ``GET /n/translations``: flows that had an address and port, the latest first, at most
    ``MOST_TRANSLATIONS``. ``is_kept`` is whether the node keeps a log of NAT at all, ``begins_at`` since when
    it has everything but what was in ``gaps``: of these, the last ``MOST_GAPS`` in the time asked for.
    """

    is_kept: bool
    translations: tuple[Translation, ...]
    begins_at: int | None = None
    gaps: tuple[Gap, ...] = ()

    @classmethod
    def parse(cls, data: object) -> Self:
        shell = super().parse(data)
        if not isinstance(shell.translations, list | tuple) or len(shell.translations) > MOST_TRANSLATIONS:
            raise MessageError(f"translations: not a list of at most {MOST_TRANSLATIONS}")
        if not isinstance(shell.gaps, list | tuple) or len(shell.gaps) > MOST_GAPS:
            raise MessageError(f"gaps: not a list of at most {MOST_GAPS}")
        translations = tuple(Translation.parse(item) for item in shell.translations)
        return cls(shell.is_kept, translations, shell.begins_at, tuple(map(Gap.parse, shell.gaps)))

    def __post_init__(self) -> None:
        _flag("is_kept", self.is_kept)
        if self.begins_at is not None:
            _whole("begins_at", self.begins_at)


@dataclass(frozen=True)
class NodeInfo(Message):
    """Answer of ``GET /n/info`` (alias ``/i/node``). Keys of spec node.md section 4 keep upstream's names.

    ``held`` says why the agent holds a wanted set back ("" if not), ``problems`` what it could not do.
    ``openvpn_clients`` counts by profile those attached (``o_client_count`` is their sum); ``software`` has
    versions of what runs there, by ``system``, ``wireguard``, ``openvpn``. Both are None from an agent that
    does not tell. What an agent of a later release tells on top, ``parse`` leaves out: portals and nodes are
    upgraded one after the other (reliability.md R85).
    """

    v: str
    node_number: int
    instance_id: str
    boot_id: str
    node_uptime: int
    now: int
    maintenance_mode: bool
    cpu_count: int
    load_average: tuple[float, ...]
    rel_load_average: tuple[int, ...]
    profiles: dict[str, list[str]]
    wireguard_public_key: str | None
    w_peer_count: int
    o_client_count: int
    connection_count: int
    deployment_id: str | None
    epoch: int
    generation: int
    journal_id: str
    journal_head: int
    held: str = ""
    problems: tuple[str, ...] = field(default_factory=tuple)
    openvpn_clients: dict[str, int] | None = None
    software: dict[str, str] | None = None

    @classmethod
    def parse(cls, data: object) -> Self:
        if isinstance(data, Mapping):
            known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
            data = {k: tuple(v) if k in _TUPLES and isinstance(v, list) else v for k, v in known.items()}
        return super().parse(data)

    def __post_init__(self) -> None:
        _short_text("v", self.v, 60)
        for name in _NODE_INFO_NUMBERS:
            _whole(name, getattr(self, name))
        for name in ("instance_id", "boot_id", "journal_id"):
            _matches(name, getattr(self, name), CONNECTION_ID)
        _flag("maintenance_mode", self.maintenance_mode)
        if self.wireguard_public_key is not None:
            _check(
                is_public_key(self.wireguard_public_key), "wireguard_public_key", self.wireguard_public_key
            )
        if self.deployment_id is not None:
            _matches("deployment_id", self.deployment_id, DEPLOYMENT_ID)
        for name in ("load_average", "rel_load_average"):
            values = getattr(self, name)
            _check(isinstance(values, tuple) and len(values) in (0, 3), name, values)
            for value in values:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                _check(is_number and 0 <= value < 1e9, name, value)
        _check(isinstance(self.profiles, dict) and len(self.profiles) <= 1000, "profiles", self.profiles)
        for profile_id, protocols in self.profiles.items():
            _matches("profiles", profile_id, PROFILE_ID)
            _check(isinstance(protocols, list) and len(protocols) <= 2, "profiles", protocols)
            for protocol in protocols:
                _one_of("profiles", protocol, WIREGUARD, OPENVPN)
        _short_text("held", self.held, 500)
        _check(isinstance(self.problems, tuple) and len(self.problems) <= 50, "problems", self.problems)
        for problem in self.problems:
            _short_text("problems", problem, 500)
        if self.openvpn_clients is not None:
            counts = self.openvpn_clients
            _check(isinstance(counts, dict) and len(counts) <= 1000, "openvpn_clients", counts)
            for profile_id, count in counts.items():
                _matches("openvpn_clients", profile_id, PROFILE_ID)
                _whole("openvpn_clients", count)
        if self.software is not None:
            _check(isinstance(self.software, dict) and len(self.software) <= 10, "software", self.software)
            for name, version in self.software.items():
                _short_text("software", name, 20)
                _short_text("software", version, 100)


_TUPLES = ("load_average", "rel_load_average", "problems")
_NODE_INFO_NUMBERS = (
    "node_number",
    "node_uptime",
    "now",
    "cpu_count",
    "w_peer_count",
    "o_client_count",
    "connection_count",
    "epoch",
    "generation",
    "journal_head",
)
