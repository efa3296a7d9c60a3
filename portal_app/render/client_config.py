"""Client configurations: what a connection's owner gets, WireGuard (spec api-v3.md 7.6) and OpenVPN (7.8)."""

import base64
import functools
import random
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from jinja2 import Environment, PackageLoader, StrictUndefined

from portal_app.errors import Unavailable
from portal_app.models import Profile
from vpn_core import openvpn, wireguard
from vpn_core.messages import OPENVPN, WIREGUARD
from vpn_core.profile import GATEWAY_DNS
from vpn_core.ranges import gateway

if TYPE_CHECKING:
    from portal_app.application import Portal
    from portal_app.models import Offer

#: Ports that pass most firewalls (spec api-v3.md 7.8).
SPECIAL_PORTS = {"udp": (53, 443), "tcp": (80, 443)}

# Configurations are no HTML, and what goes in was checked by the plan.
_templates = Environment(
    loader=PackageLoader("portal_app", "render/templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,  # a release is never changed in place
    autoescape=False,  # noqa: S701
)
_random = random.SystemRandom()


#: Stands for what is a secret or somebody's own.
MASKED = "••••••••"


class Leased(Protocol):
    """What is needed of a lease (``services.leases.Lease``)."""

    @property
    def ipv4(self) -> str: ...
    @property
    def ipv6(self) -> str: ...
    @property
    def networks(self) -> tuple[str, str]: ...


class Certified(Protocol):
    """What is needed of a certificate (``services.pki.ClientCertificate``)."""

    @property
    def certificate(self) -> str: ...
    @property
    def private_key(self) -> str: ...


@dataclass(frozen=True)
class _MaskedLease:
    ipv4: str
    ipv6: str
    networks: tuple[str, str]


@dataclass(frozen=True)
class _MaskedCertificate:
    certificate: str
    private_key: str


@dataclass(frozen=True)
class Facts:
    """Everything one configuration is made of. WireGuard has a lease, OpenVPN a certificate."""

    profile: Profile
    hostname: str
    expires_at: datetime
    from_portal: bool
    tcp_first: bool
    lease: Leased | None
    node_public_key: str | None
    private_key: str | None
    port: int | None
    certificate: Certified | None


def render(facts: Facts, portal: "Portal") -> str:
    """Return the text of one configuration."""
    heading = _heading(facts, portal) if facts.from_portal else []
    if facts.lease is not None:
        return _templates.get_template("wireguard.conf.j2").render(heading=heading, **wireguard_values(facts))
    profile_id = facts.profile.profile_id
    key_file = portal.settings.tls_crypt_directory / f"{profile_id}.key"
    try:
        tls_crypt = key_file.read_text().strip()
    except OSError as error:
        raise Unavailable(f"the tls-crypt key of profile {profile_id} cannot be read") from error
    return _openvpn(facts, heading, server_ca=portal.signer.server_ca, tls_crypt=tls_crypt)


def _openvpn(facts: Facts, heading: list[str], *, server_ca: str, tls_crypt: str) -> str:
    return _templates.get_template("openvpn.ovpn.j2").render(
        heading=heading,
        tls_version_min=openvpn.TLS_VERSION_MIN,
        data_ciphers=openvpn.DATA_CIPHERS,
        tun_mtu=openvpn.TUN_MTU,
        server_ca=server_ca,
        certificate=facts.certificate,
        tls_crypt=tls_crypt,
        hostname=facts.hostname,
        remotes=remotes(facts.profile.openvpn or {}, tcp_first=facts.tcp_first),
    )


def examples(profile: Profile, offer: "Offer", hostname: str, port: int | None) -> list[tuple[str, str]]:
    """Return by protocol what somebody would get on a node, without what is theirs or secret: keys,
    certificates and their own addresses.
    """
    found = []
    certificate = _MaskedCertificate(MASKED, MASKED)
    facts = Facts(
        profile,
        hostname,
        datetime.max.replace(tzinfo=UTC),
        False,
        False,
        None,
        MASKED,
        MASKED,
        port,
        certificate,
    )
    if offer.wireguard is not None and profile.wireguard is not None and port is not None:
        networks = (str(offer.wireguard["ipv4"]), str(offer.wireguard["ipv6"]))
        lease = _MaskedLease(MASKED, MASKED, networks)
        values = wireguard_values(replace(facts, lease=lease))
        text = _templates.get_template("wireguard.conf.j2").render(heading=[], **values)
        found.append((WIREGUARD, text))
    if offer.openvpn and profile.openvpn is not None:
        found.append((OPENVPN, _openvpn(facts, [], server_ca=MASKED, tls_crypt=MASKED)))
    return found


def wireguard_values(facts: Facts) -> dict[str, Any]:
    """Return what the WireGuard template needs."""
    profile, lease = facts.profile, facts.lease
    if lease is None or facts.port is None or profile.wireguard is None:
        raise ValueError("not a WireGuard configuration")
    addresses = zip((lease.ipv4, lease.ipv6), lease.networks, strict=True)
    routes, excluded = tuple(profile.routes), tuple(profile.excluded_routes)
    return {
        "mtu": wireguard.MTU,
        "private_key": facts.private_key,
        "addresses": [f"{address}/{network.rpartition('/')[2]}" for address, network in addresses],
        "dns": dns(profile, lease.networks),
        "public_key": facts.node_public_key,
        "allowed_ips": _allowed_ips(profile.default_gateway, routes, excluded, lease.networks),
        "keepalive": wireguard.KEEPALIVE_SECONDS if profile.wireguard["keepalive"] else None,
        "endpoint": f"{_bracketed(facts.hostname)}:{facts.port}",
    }


@functools.lru_cache(maxsize=1024)
def _allowed_ips(
    default_gateway: bool, routes: tuple[str, ...], excluded: tuple[str, ...], own: tuple[str, str]
) -> list[str]:
    """Return the same for everybody of a profile on a node."""
    found = wireguard.allowed_ips(
        default_gateway=default_gateway,
        routes=[ip_network(route) for route in routes],
        excluded_routes=[ip_network(route) for route in excluded],
        own_networks=[ip_network(network) for network in own],
    )
    return [str(network) for network in found]


@functools.lru_cache(maxsize=1024)
def _gateways(own: tuple[str, str]) -> dict[str, str]:
    return dict(zip(GATEWAY_DNS, (gateway(ip_network(network)) for network in own), strict=True))


def dns(profile: Profile, own: tuple[str, str]) -> list[str]:
    """Return the entries of the DNS line: servers if they are used, then search domains.

    ``own`` are the node's networks of this profile.
    """
    gateways = _gateways(own)
    used = profile.default_gateway or profile.dns_search_domains
    servers = [gateways.get(server, server) for server in profile.dns_servers] if used else []
    return servers + list(profile.dns_search_domains)


def remotes(
    ranges: dict[str, Any], *, tcp_first: bool, rng: random.Random = _random
) -> list[tuple[int, str]]:
    """Return ports and transports to try: of each transport one normal and one special port, chosen at
    random.

    Raises Unavailable when the profile has no port at all.
    """
    found: dict[str, list[tuple[int, str]]] = {"udp": [], "tcp": []}
    for transport, chosen in found.items():
        ports = ranges.get(f"exposed_{transport}_ports") or ranges.get(f"{transport}_ports") or []
        special = SPECIAL_PORTS[transport]
        for group in ([p for p in ports if p not in special], [p for p in ports if p in special]):
            if group:
                chosen.append((rng.choice(group), transport))
    order = ("tcp", "udp") if tcp_first else ("udp", "tcp")
    listed = [remote for transport in order for remote in found[transport]]
    if not listed:
        raise Unavailable("this profile has no OpenVPN port")
    return listed


def wireguard_key_pair() -> tuple[str, str]:
    """Return a new private key and its public key, both in base64."""
    key = X25519PrivateKey.generate()
    private, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return base64.b64encode(private).decode(), base64.b64encode(public).decode()


def file_name(server: str, profile_id: str, display_name: str, protocol: str, now: datetime) -> str:
    """Return ``<server>_<profile>_<date>_<name>`` of characters that every file system takes."""
    parts = (server, profile_id, now.astimezone(UTC).strftime("%Y%m%d"), display_name)
    stem = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-.") or "vpn" for part in parts)
    return stem + (".ovpn" if protocol == OPENVPN else ".conf")


def _heading(facts: Facts, portal: "Portal") -> list[str]:
    return [
        f"# Portal: {portal.settings.portal_url}",
        f"# Profile: {facts.profile.display_name} ({facts.profile.profile_id})",
        f"# Expires: {facts.expires_at.astimezone(UTC).replace(microsecond=0).isoformat()}",
    ]


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ip_address(host).version == 6 else host
    except ValueError:
        return host
