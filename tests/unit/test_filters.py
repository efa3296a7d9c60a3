"""The filters as playbooks use them: with what Ansible's own reader makes of YAML, and documented."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError, AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig

DIRECTORY = Path(__file__).parents[2] / "filter_plugins"
INVENTORY = """
vpn_profiles:
  employees:
    display_name: Employees
    dns_servers: ["@GW4@", "@GW6@"]
    permissions: "{{ staff }}"
    wireguard: {ipv4: 10.64.0.0/16, ipv6: "fd00:64::/96"}
    openvpn: {ipv4: 10.65.0.0/16, ipv6: "fd00:65::/96", udp_ports: [1194], tcp_ports: [1194]}
staff: [staff, admins]
vpn_nodes:
  vpn1: {number: 1, hostname: vpn1.example.org}
"""


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    spec = spec_from_file_location("vpn_plan_filters", DIRECTORY / "vpn_plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def templated(tmp_path):
    """Return a function: what Ansible makes of an expression over variables written as YAML."""
    if AnsibleCollectionConfig.collection_finder is None:  # once in a process
        init_plugin_loader([])
    filter_loader.add_directory(str(DIRECTORY))

    def evaluate(expression: str, variables: str = INVENTORY) -> Any:
        (tmp_path / "vars.yml").write_text(variables)
        loader = DataLoader()
        known = loader.load_from_file(str(tmp_path / "vars.yml"), trusted_as_template=True)
        return Templar(loader, variables=known).template(trust_as_template("{{ " + expression + " }}"))

    return evaluate


def test_plan_of_an_inventory_read_by_ansible(templated):
    found = templated("vpn_profiles | vpn_plan(vpn_nodes, {'max_nodes': 16})")

    assert found["nodes"]["vpn1"]["wireguard"][0]["ipv4"] == "10.64.16.0/20"
    assert found["profiles"]["employees"]["permissions"] == ["staff", "admins"]
    assert json.loads(json.dumps(found)) == found


def test_refusal_reaches_the_operator_with_its_fix(templated):
    with pytest.raises(
        AnsibleError, match=r"vpn_nodes: \[1\] is not a mapping; write 'key: value' lines below"
    ):
        templated("vpn_profiles | vpn_plan([1])")


def test_text_from_yaml_is_shown_like_a_plain_one(templated):
    """Ansible marks what it reads with where it came from; no mark reaches the message."""
    with pytest.raises(
        AnsibleError, match=r"vpn_profiles\.a\.wireguard\.ipv4: '10\.64\.0\.0' lacks its prefix"
    ):
        templated(
            "p | vpn_plan({'vpn1': {'number': 1, 'hostname': 'vpn1.example.org'}})",
            "p: {a: {display_name: A, wireguard: {ipv4: 10.64.0.0, ipv6: 'fd00:64::/96'}}}",
        )


def test_key_is_derived(templated):
    found = templated("secret | vpn_tls_crypt_key('employees')", f"secret: '{'5a' * 32}'")

    assert found.startswith("-----BEGIN OpenVPN Static key V1-----\n")


@pytest.mark.parametrize("secret", ["5a5a", "zz" * 40, 1234567])
def test_refused_secret_is_not_shown(plugin, secret):
    """S4"""
    with pytest.raises(AnsibleFilterError, match=r"run playbooks/init_secrets\.yml") as caught:
        plugin.vpn_tls_crypt_key(secret, "employees")

    assert str(secret) not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_filter_is_documented(plugin):
    for name in plugin.FilterModule().filters():
        document = yaml.safe_load((DIRECTORY / f"{name}.yml").read_text())
        assert document["DOCUMENTATION"]["name"] == name
        assert name in document["EXAMPLES"]
        assert "_value" in document["RETURN"]


def test_database_password_comes_from_the_portals_secret(templated):
    expression = "secret | vpn_database_password"

    first, other = (templated(expression, f"secret: {pair * 32}") for pair in ("5a", "5b"))

    assert len(first) == 43
    assert first != other
    with pytest.raises(AnsibleError, match="not at least 64 hex digits") as error:
        templated(expression, "secret: hush")
    assert "hush" not in str(error.value)


def test_scram_verifier_is_the_same_each_time(templated):
    """As PostgreSQL stores it; ``tests/e2e/ha_portal`` signs in with it."""
    found = [templated("password | vpn_scram_verifier", "password: pencil") for _ in range(2)]

    assert found[0] == found[1]
    assert re.fullmatch(
        r"SCRAM-SHA-256\$4096:[A-Za-z0-9+/=]{24}\$[A-Za-z0-9+/=]{44}:[A-Za-z0-9+/=]{44}", found[0]
    )


@pytest.mark.parametrize(
    ("colour", "dark", "why"),
    [
        ("", False, ""),
        ("#14607d", False, ""),
        ("#6cc0de", True, ""),
        ("#14607d", True, "choose a lighter colour"),
        ("#6cc0de", False, "choose a darker colour"),
        ("teal", False, "no colour written #rrggbb"),
    ],
)
def test_accent_that_is_hard_to_read_is_refused_in_the_inventory(plugin, colour, dark, why):
    found = plugin.vpn_accent_problem(colour, dark)

    assert (why in found) if why else found == ""


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("logo.svg", 10, "neither a PNG nor an SVG file"),
        ("logo.png", 200_000, "neither a PNG nor an SVG file"),
        ("logo.png", 200_001, "larger than 200 kB"),
        ("logo.gif", 10, "neither in .svg nor in .png"),
        ("none.svg", None, "there is no such file"),
    ],
)
def test_logo_that_cannot_be_one_is_refused_in_the_inventory(plugin, tmp_path, name, size, why):
    if size is not None:
        (tmp_path / name).write_bytes(b"x" * size)
    found = plugin.vpn_logo_problem(str(tmp_path / name))

    assert (why in found) if why else found == ""


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        ("{}", ""),
        ("<!DOCTYPE svg>{}", "has no DOCTYPE; take that line out"),
        ("<!-- -->{}<script/>", "neither a PNG nor an SVG file"),
    ],
)
def test_logo_that_the_portal_would_not_start_with_is_refused_in_the_inventory(plugin, tmp_path, inside, why):
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'
    (tmp_path / "logo.svg").write_text(inside.format(svg))
    found = plugin.vpn_logo_problem(str(tmp_path / "logo.svg"))

    assert (why in found) if why else found == ""


@pytest.mark.parametrize(
    ("contact", "good"),
    [
        ("", True),
        ("helpdesk@example.org", True),
        ("https://example.org/help", True),
        ("http://example.org", False),
        ("javascript:alert(1)", False),
        ("+49 30 1234567", False),
        (4930, False),
    ],
)
def test_contact_that_the_portal_would_not_start_with_is_refused_in_the_inventory(plugin, contact, good):
    assert (plugin.vpn_contact_problem(contact) == "") is good


@pytest.mark.parametrize(
    ("notices", "why"),
    [
        ("[]", ""),
        ("[{text: Work, from: '2026-12-05T22:00:00Z', until: '2026-12-05T23:00:00Z'}]", ""),
        ("[{text: Work, from: 2026-12-05T22:00:00Z, until: 2026-12-05T23:00:00Z}]", ""),
        ("[{text: Work, from: '2026-12-05T22:00:00Z'}]", "[0]: has text, from and until"),
        ("[{text: Work, from: tonight, until: '2026-12-05T23:00:00Z'}]", "from: 'tonight' is no time"),
        ("[{text: Work, from: '2026-12-05T23:00:00Z', until: '2026-12-05T22:00:00Z'}]", "is not after from"),
        ("[{text: '', from: '2026-12-05T22:00:00Z', until: '2026-12-05T23:00:00Z'}]", "1 to 500 characters"),
        ("{text: Work}", "has to be a list"),
    ],
)
def test_notice_that_the_portal_would_not_start_with_is_refused_in_the_inventory(plugin, notices, why):
    found = plugin.vpn_notices_problem(DataLoader().load(notices))

    assert (why in found) if why else found == ""


def test_a_file_that_is_no_text_is_read_as_it_is(plugin, tmp_path):
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\xff")

    assert plugin.vpn_file_base64(str(tmp_path / "logo.png")) == "iVBOR/8="


def test_a_style_is_allowed_by_the_digest_of_its_content(plugin):
    """Content Security Policy Level 3, section 2.3.1: the base64 of SHA-256, here of nothing."""
    assert plugin.vpn_style_source("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
