"""docs/variables.md says what the code says."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from vpn_control import variables
from vpn_core.node import Node
from vpn_core.profile import OpenVpnRange, Profile, WireGuardRange

PROJECT = Path(__file__).parents[2]
SPECS = yaml.safe_load(variables.DEPLOYMENT.read_text())["argument_specs"]


def test_committed_document_is_current():
    assert variables.DOCUMENT.read_text() == variables.render(), "run `make docs`"


@pytest.mark.parametrize(
    ("section", "kind", "inner"),
    [
        ("profile", Profile, {"profile_id"}),
        ("wireguard", WireGuardRange, set()),
        ("openvpn", OpenVpnRange, set()),
        ("node", Node, {"name", "is_portal"}),
    ],
)
def test_every_key_that_the_plan_knows_is_documented_and_no_other(section, kind, inner):
    assert set(SPECS[section]["options"]) == {f.name for f in fields(kind)} - inner


def test_every_variable_of_the_deployment_that_playbooks_read_is_documented():
    derived = {"vpn_nodes", "vpn_plan"}
    code = ["vpn_control", "vpn_core", "vpn_tls_crypt_key", "vpn_sessions", "vpn_"]
    used: set[str] = set()
    for pattern in (
        "playbooks/**/*.yml",
        "roles/*/tasks/*.yml",
        "roles/*/templates/*",
        "roles/*/defaults/*.yml",
    ):
        for path in PROJECT.glob(pattern):
            used |= set(re.findall(r"(?<![\w/.])vpn_[a-z_]+", path.read_text()))

    assert used - derived - set(code) <= set(SPECS["deployment"]["options"])


def test_markup_of_ansible_becomes_markdown():
    spec = {
        "short_description": "A role",
        "options": {
            "role_list": {
                "type": "list",
                "elements": "dict",
                "description": ["Such as V(a|b).", "See O(other) and M(module)."],
                "options": {"name": {"type": "str", "required": True, "description": "Its name."}},
            },
            "role_flag": {"type": "bool", "default": False, "description": "Whether."},
        },
    }

    lines = variables._section(spec, "##").splitlines()

    assert lines[0] == "## A role"
    assert lines[4:] == [
        "| `role_list` | list of dict |  | Such as `a\\|b`. See `other` and `module`. |",
        "| `role_list[].name` | str | required | Its name. |",
        "| `role_flag` | bool | `false` | Whether. |",
    ]
