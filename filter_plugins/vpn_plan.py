"""The playbooks' door to vpn_core. The .yml files beside document the filters."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display

from vpn_core.errors import PlanError
from vpn_core.openvpn import tls_crypt_key
from vpn_core.plan import make_plan


def vpn_plan(
    profiles: Mapping[str, Any], nodes: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Resolve ``vpn_profiles`` and every host's ``vpn_node`` (keyed by inventory name) into one plan."""
    try:
        plan = make_plan(profiles, nodes, settings)
    except PlanError as error:
        raise AnsibleFilterError(f"vpn_plan: {error}") from error
    for warning in plan.warnings:
        # Variables are resolved again and again; Ansible shows the same warning once.
        Display().warning(warning)
    return plan.to_dict()


def vpn_tls_crypt_key(master_secret: str, profile_id: str) -> str:
    """Derive a profile's tls-crypt key from the environment's secret."""
    try:
        return tls_crypt_key(master_secret, profile_id)
    except (TypeError, ValueError):
        # Without the cause: its message could hold a part of the secret.
        raise AnsibleFilterError(
            "vpn_tls_crypt_key: the secret is not at least 64 hex digits; run playbooks/init_secrets.yml"
        ) from None


def vpn_not_networks(values: Iterable[object]) -> list[str]:
    """Return what is neither an IP address nor a network in its own notation."""
    return [str(value) for value in values if not _is_network(str(value))]


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
            "vpn_tls_crypt_key": vpn_tls_crypt_key,
            "vpn_not_networks": vpn_not_networks,
        }
