"""docs/variables.md says what the code says."""

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


@pytest.mark.parametrize("path", variables.readmes(), ids=lambda path: path.parent.name)
def test_variables_in_a_roles_readme_are_current(path):
    assert path.read_text() == variables.render_readme(path), "run `make docs`"


def test_every_role_has_a_readme_with_purpose_and_example():
    for specs in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        readme = (specs.parents[1] / "README.md").read_text()
        assert readme.startswith(f"# {specs.parts[-3]}\n")
        assert "```yaml" in readme.partition("## Variables")[0]


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


def test_every_variable_that_the_playbooks_know_is_documented_or_derived():
    """An unknown ``vpn_`` variable is refused, so a known one that is not documented could not be found."""
    derived: set[str] = set()
    for path in PROJECT.glob("playbooks/group_vars/all/*.yml"):
        derived |= set(yaml.safe_load(path.read_text()))
    (task, *_) = yaml.safe_load((PROJECT / "playbooks/tasks/inventory.yml").read_text())

    inner = derived - {"vpn_portal_addresses"}  # a default that an inventory may replace

    assert set(task["vars"]["__known"]) - inner == set(SPECS["deployment"]["options"])


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


def rows(document: str) -> set[str]:
    """Return the variables that have a line of their own, which says what they can be set to."""
    return {line.split("`")[1] for line in document.splitlines() if line.startswith("| `")}


def test_only_what_the_inventory_decides_is_listed_for_it():
    """What stands in group_vars beside a playbook wins over the inventory's group_vars/all."""
    handed, document = variables.handed_over(), variables.render()
    options: set[str] = set()
    for path in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        for specs in yaml.safe_load(path.read_text())["argument_specs"].values():
            options |= set(specs.get("options") or {})

    assert not rows(document) & set(handed)
    assert options - set(handed) <= rows(document)
    said = " ".join(line for line in document.splitlines() if line.startswith("Set by the playbooks: "))
    assert [name for name in options & set(handed) if f"`{name}`" not in said] == []
    assert "`portal_node_selection` (from `vpn_node_selection`)" in said
    assert "`pki_directories`" in said


def test_ports_of_the_inventory_are_added_to_those_of_the_service():
    handed = variables.handed_over()

    assert handed["firewall_tcp_ports"] == ["vpn_firewall_tcp_ports"]
    assert handed["firewall_udp_ports"] == ["vpn_firewall_udp_ports"]


def test_whatever_is_true_or_false_is_checked_to_be_one_of_the_two():
    """From the command line it is a text, and of a typing mistake the filter ``bool`` makes false."""
    options = dict(SPECS["deployment"]["options"])
    for path in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        options |= yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}
    (task, *_) = yaml.safe_load((PROJECT / "playbooks/tasks/inventory.yml").read_text())

    booleans = {name for name, option in options.items() if option["type"] == "bool"}

    assert set(task["vars"]["__booleans"]) == booleans - set(variables.handed_over())
