"""Which secret goes where: an authority's key leaves the control machine only where it must (N2, N3, N4)."""

import re
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[2]
ROLES = yaml.safe_load((PROJECT / "playbooks/group_vars/all/roles.yml").read_text())
#: Signed with on the control machine, by the action plugin; the module on the host never gets it.
SIGNED_WITH = {"vault_server_ca_key", "vault_management_ca_key", "vault_portal_tls_ca_key"}


def vault_variables(text: str) -> set[str]:
    return set(re.findall(r"vault_[a-z_]+", text))


def test_roles_of_a_node_get_no_key_of_an_authority():
    """N2, N3"""
    for name, value in ROLES.items():
        if name.startswith(
            ("node_agent_", "openvpn_", "wireguard_", "dns_resolver_", "firewall_", "host_base_")
        ):
            assert not {v for v in vault_variables(str(value)) if v.endswith("_ca_key")}, name


def test_no_role_gets_a_key_that_is_signed_with_on_the_control_machine():
    """N3: the only authority's key on a portal is that of the client CA."""
    given = set().union(*(vault_variables(str(value)) for value in ROLES.values()))

    assert not given & SIGNED_WITH
    assert {v for v in given if v.endswith("_ca_key")} == {"vault_client_ca_key"}


def test_keys_of_authorities_appear_in_playbooks_only_to_sign_with():
    """N3"""
    for path in PROJECT.glob("playbooks/*.yml"):
        for line in path.read_text().splitlines():
            if vault_variables(line) & SIGNED_WITH:
                assert re.fullmatch(r'\s+authority_key: "\{\{ vault_[a-z_]+ \}\}"', line), f"{path}: {line}"


def test_module_on_the_host_is_not_sent_the_authority():
    """N3"""
    source = (PROJECT / "roles/pki/action_plugins/causeway_certificates.py").read_text()

    assert "authority" not in re.search(r"_FOR_HOST = \((.*?)\)", source, re.DOTALL)[1]


def test_no_template_holds_a_private_key():
    """N4: keys of hosts are named by their paths, so that ``--diff`` is safe to show."""
    for path in PROJECT.glob("roles/*/templates/*"):
        assert "vault_" not in path.read_text()
        assert not re.search(
            r"\{\{[^}]*(?:private_key|ca_key|secret_key|tls_crypt_keys)\b[^}]*\}\}", path.read_text()
        ), path
