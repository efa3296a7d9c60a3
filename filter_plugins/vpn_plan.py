"""The playbooks' door to vpn_core."""

from typing import Any

from ansible.errors import AnsibleFilterError

from vpn_core.errors import PlanError
from vpn_core.openvpn import tls_crypt_key
from vpn_core.plan import make_plan


def vpn_plan(
    profiles: dict[str, Any], nodes: dict[str, Any], settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Resolve ``vpn_profiles`` and every host's ``vpn_node`` (keyed by inventory name) into one plan."""
    try:
        return make_plan(profiles, nodes, settings).to_dict()
    except PlanError as error:
        raise AnsibleFilterError(f"vpn_plan: {error}") from error


def vpn_tls_crypt_key(master_secret: str, profile_id: str) -> str:
    """Derive a profile's tls-crypt key from the environment's secret."""
    try:
        return tls_crypt_key(master_secret, profile_id)
    except ValueError as error:
        # The message of the cause could hold a part of the secret.
        raise AnsibleFilterError(
            "vault_tls_crypt_secret: must be at least 64 hex digits; run init_secrets.yml"
        ) from error


class FilterModule:
    """Filters of Causeway."""

    def filters(self) -> dict[str, Any]:
        return {"vpn_plan": vpn_plan, "vpn_tls_crypt_key": vpn_tls_crypt_key}
