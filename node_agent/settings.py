"""Settings of the agent: one TOML file, read once, unknown keys refused. Keys and certificates are paths.

The role renders ``/etc/causeway/node/settings.toml`` (0640 root:causeway-node) from the node's plan::

    node_number = 1
    listen_address = "::"                    # "::" serves IPv4 too
    listen_port = 41194                      # default
    certificate_file = "/etc/causeway/node/agent.crt"   # DNS name node-1, from the management CA
    key_file = "/etc/causeway/node/agent.key"           # readable by causeway-node
    ca_file = "/etc/causeway/node/management-ca.crt"
    portal = ["portal"]                      # default; names (CN or DNS) of client certificates let in
    withdrawn = []                           # default; serials (hex) of client certificates no longer let in
    state_directory = "/var/lib/causeway-node"          # default
    runtime_directory = "/run/causeway-node"            # default; holds agent.sock of `vpn-node status`
    log_origins = false                      # default; true: client sources go into journal and usage
    journal_days = 30                        # default; how long sessions wait for a portal to fetch them
    log_nat = false                          # default; what `vpn-node log-nat` wrote is removed then
    nat_log_directory = "/var/lib/causeway-nat-log"     # default; where it writes
    nat_log_days = 7                         # default; how long it is kept

    [wireguard]                              # absent on a node without WireGuard profiles
    interface = "wg0"
    restart_file = "/run/causeway-node/restart-wireguard"  # default; touched to ask for it

    [[wireguard.networks]]                   # one per profile: WireGuardShare of the plan
    profile_id = "employees"
    ipv4 = "10.64.8.0/22"
    ipv6 = "fd00:64:8::/112"
    gateway_ipv4 = "10.64.8.1"
    gateway_ipv6 = "fd00:64:8::1"

    [[openvpn]]                              # one per server process: OpenVpnProcess of the plan
    name = "employees-0"
    profile_id = "employees"
    device = "tun0"
    socket = "/run/openvpn-server/employees-0.sock"
    ipv4 = "10.80.1.0/25"
    ipv6 = "fd00:80:1::/112"
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, Self

from node_agent.errors import SettingsError
from vpn_core.profile import PROFILE_ID

DEFAULT_FILE = Path("/etc/causeway/node/settings.toml")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_SERIAL = re.compile(r"[0-9A-Fa-f]{1,64}")
_converters: dict[str, type] = {
    "Path": Path,
    "IPv4Network": IPv4Network,
    "IPv6Network": IPv6Network,
    "IPv4Address": IPv4Address,
    "IPv6Address": IPv6Address,
}


@dataclass(frozen=True)
class _Table:
    """One table of the file: known keys only, each of its type."""

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        if not isinstance(data, Mapping):
            raise SettingsError(f"{where}: not a table")
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise SettingsError(
                    f"{where}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
                )
            values[key] = cls._convert(known[key], value, f"{where}: {key}")
        for name, f in known.items():
            if name not in values and f.default is MISSING and f.default_factory is MISSING:
                raise SettingsError(f"{where}: '{name}' is missing")
        table = cls(**values)
        table.check(where)
        return table

    @classmethod
    def _convert(cls, f: "Field[Any]", value: object, where: str) -> Any:
        kind = f.type if isinstance(f.type, type) else None
        if kind in (bool, int, str):
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise SettingsError(f"{where}: {value!r} is not of type {kind.__name__}")
            return value
        if kind is not None and kind.__name__ in _converters:
            if not isinstance(value, str):
                raise SettingsError(f"{where}: {value!r} is not a text")
            try:
                return kind(value)
            except ValueError as error:
                raise SettingsError(f"{where}: {error}") from None
        return value

    def check(self, where: str) -> None:
        """Raise SettingsError for values of the right type that cannot work."""


@dataclass(frozen=True)
class WireGuardNetwork(_Table):
    """A profile's WireGuard addresses on this node."""

    profile_id: str
    ipv4: IPv4Network
    ipv6: IPv6Network
    gateway_ipv4: IPv4Address
    gateway_ipv6: IPv6Address

    def check(self, where: str) -> None:
        if not PROFILE_ID.fullmatch(self.profile_id):
            raise SettingsError(f"{where}: profile_id: {self.profile_id!r} is no profile id")
        if self.gateway_ipv4 not in self.ipv4 or self.gateway_ipv6 not in self.ipv6:
            raise SettingsError(f"{where}: the gateway addresses must lie inside of ipv4 and ipv6")


@dataclass(frozen=True)
class WireGuardSettings(_Table):
    """The one interface that serves every WireGuard profile of this node."""

    interface: str
    networks: tuple[WireGuardNetwork, ...]
    restart_file: Path = Path("/run/causeway-node/restart-wireguard")

    @classmethod
    def _convert(cls, f: "Field[Any]", value: object, where: str) -> Any:
        if f.name == "networks":
            return _tables(WireGuardNetwork, value, where)
        return super()._convert(f, value, where)

    def check(self, where: str) -> None:
        if not _DEVICE.fullmatch(self.interface):
            raise SettingsError(f"{where}: interface: {self.interface!r} is no interface name")


@dataclass(frozen=True)
class OpenVpnProcess(_Table):
    """One OpenVPN server process with its management socket and the pool its clients get addresses from."""

    name: str
    profile_id: str
    device: str
    socket: Path
    ipv4: IPv4Network
    ipv6: IPv6Network

    def check(self, where: str) -> None:
        if not PROFILE_ID.fullmatch(self.profile_id):
            raise SettingsError(f"{where}: profile_id: {self.profile_id!r} is no profile id")
        if not _DEVICE.fullmatch(self.device):
            raise SettingsError(f"{where}: device: {self.device!r} is no interface name")


@dataclass(frozen=True)
class Settings(_Table):
    """What ``settings.toml`` says; the module's docstring shows each key."""

    node_number: int
    certificate_file: Path
    key_file: Path
    ca_file: Path
    listen_address: str = "::"
    listen_port: int = 41194
    portal: tuple[str, ...] = ("portal",)
    withdrawn: tuple[str, ...] = ()
    state_directory: Path = Path("/var/lib/causeway-node")
    runtime_directory: Path = Path("/run/causeway-node")
    log_origins: bool = False
    journal_days: int = 30
    log_nat: bool = False
    nat_log_directory: Path = Path("/var/lib/causeway-nat-log")
    nat_log_days: int = 7
    wireguard: WireGuardSettings | None = None
    openvpn: tuple[OpenVpnProcess, ...] = field(default_factory=tuple)

    @property
    def local_socket(self) -> Path:
        """Where ``vpn-node status`` and the other local commands reach the agent."""
        return self.runtime_directory / "agent.sock"

    @property
    def profiles(self) -> dict[str, list[str]]:
        """The protocols that this node serves, by profile."""
        found: dict[str, list[str]] = {}
        for network in self.wireguard.networks if self.wireguard else ():
            found.setdefault(network.profile_id, []).append("wireguard")
        for process in self.openvpn:
            if "openvpn" not in found.setdefault(process.profile_id, []):
                found[process.profile_id].append("openvpn")
        return found

    @classmethod
    def load(cls, path: Path = DEFAULT_FILE) -> "Settings":
        """Read and check a settings file; raises SettingsError naming file, key and fix."""
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not TOML: {error}") from error
        return cls.parse(data, str(path))

    @classmethod
    def _convert(cls, f: "Field[Any]", value: object, where: str) -> Any:
        if f.name == "wireguard":
            return WireGuardSettings.parse(value, where)
        if f.name == "openvpn":
            return _tables(OpenVpnProcess, value, where)
        if f.name in ("portal", "withdrawn"):
            if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
                raise SettingsError(f"{where}: {value!r} is not a list of texts")
            return tuple(value)
        return super()._convert(f, value, where)

    def check(self, where: str) -> None:
        if self.node_number < 0:
            raise SettingsError(f"{where}: node_number: {self.node_number} must be 0 or more")
        if not 0 <= self.listen_port <= 65535:
            raise SettingsError(f"{where}: listen_port: {self.listen_port} is outside 0 to 65535")
        try:
            ip_address(self.listen_address)
        except ValueError:
            raise SettingsError(
                f"{where}: listen_address: {self.listen_address!r} is no address; '::' is all"
            ) from None
        if not self.portal:
            raise SettingsError(f"{where}: portal: empty; name at least one, such as 'portal'")
        if bad := [s for s in self.withdrawn if not _SERIAL.fullmatch(s)]:
            raise SettingsError(f"{where}: withdrawn: {bad[0]!r} is no serial number in hex")
        for name in ("journal_days", "nat_log_days"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{where}: {name}: must be 1 or more")
        for key in ("name", "socket"):
            values = [getattr(process, key) for process in self.openvpn]
            if len(set(values)) != len(values):
                raise SettingsError(f"{where}: openvpn: two processes have the same {key}")


def _tables(kind: type[_Table], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise SettingsError(f"{where}: not a list of tables")
    return tuple(kind.parse(item, f"{where}[{i}]") for i, item in enumerate(value))
