"""README and docs say what is there."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from vpn_core.plan import make_plan

PROJECT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("roles/*/README.md")],
    key=lambda path: path.relative_to(PROJECT).as_posix(),
)
NAMES = [path.relative_to(PROJECT).as_posix() for path in DOCUMENTS]


def test_banner_is_the_one_that_the_lab_prints(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "molecule" / "shared"))
    from nspawn import access, topology  # the lab's modules are no package of the distribution

    variables = yaml.safe_load((PROJECT / "molecule/single_host/group_vars/all/vpn.yml").read_text())
    about = access.info
    monkeypatch.setattr(access, "_passwords", lambda _: dict.fromkeys(("admin", "alice", "bob"), "PASSWORD"))
    monkeypatch.setattr(
        access, "info", lambda *given: about(*given) | {"profiles": sorted(variables["vpn_profiles"])}
    )
    instance = topology.Instance("single_host", topology.read_topology("single_host"), "bookworm", 1)

    printed = access.banner(instance).strip("\n")

    for name in [module for module in sys.modules if module.split(".")[0] == "nspawn"]:
        monkeypatch.delitem(sys.modules, name)
    assert f"```\n{printed}\n```\n" in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_playbook_that_a_document_names_exists(path):
    for name in re.findall(r"playbooks/[a-z_]+\.yml", path.read_text()):
        assert (PROJECT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_make_target_that_a_document_names_exists(path):
    makefile = (PROJECT / "Makefile").read_text()
    for name in re.findall(r"`make ([a-z-]+)", path.read_text()):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_command_that_a_document_names_exists(path):
    from portal_app.cli import _parser

    known = _words(_parser([]))
    for line in re.findall(r"`(vpn-portal [a-z][^`]*)`", path.read_text()):
        words = line.split()[1:]
        assert words[0] in known, line
        if known[words[0]]:
            assert len(words) > 1, line
            assert words[1] in known[words[0]], line


def _words(parser):
    """Return each command with the names of its own commands."""
    found = {}
    for action in parser._subparsers._group_actions:
        for name, command in action.choices.items():
            inner = command._subparsers
            found[name] = [choice for a in inner._group_actions for choice in a.choices] if inner else []
    return found


def _yaml_blocks(path):
    """Return what all YAML examples of a document say together."""
    found = {}
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
        found |= yaml.safe_load(block)
    return found


def test_inventory_of_the_install_guide_makes_a_plan_without_warnings():
    written = _yaml_blocks(PROJECT / "docs/install.md")
    (host,) = written["nodes"]["hosts"]

    made = make_plan(written["vpn_profiles"], {host: written["vpn_node"] | {"is_portal": True}})

    assert made.warnings == ()
    assert written["nodes"]["hosts"].keys() == written["portals"]["hosts"].keys()
    assert written["vpn_node"]["hostname"] == written["vpn_portal_hostname"]


def test_install_guide_names_every_port_that_its_inventory_opens():
    written = _yaml_blocks(PROJECT / "docs/install.md")
    (host,) = written["nodes"]["hosts"]
    data = make_plan(written["vpn_profiles"], {host: written["vpn_node"]}).to_dict()
    opened = {("tcp", 22), ("tcp", 80), ("tcp", 443), ("udp", data["wireguard"]["port"])}
    opened |= {(p["protocol"], p["port"]) for p in data["nodes"][host]["openvpn"]}

    table = (PROJECT / "docs/install.md").read_text().split("### Ports")[1].split("##")[0]
    named = {
        (protocol.lower(), int(port))
        for row in re.findall(r"^\| ([^|]+)\|", table, re.MULTILINE)
        for protocol, port in re.findall(r"(TCP|UDP) (\d+)", row)
    }

    assert named == opened


def test_inventory_to_copy_is_the_one_of_the_install_guide():
    directory = PROJECT / "inventory/single_host"
    files = ("hosts.yml", "host_vars/vpn1.yml", "group_vars/all/vpn.yml")
    there = {
        key: value for name in files for key, value in yaml.safe_load((directory / name).read_text()).items()
    }

    assert there == _yaml_blocks(PROJECT / "docs/install.md")


def test_inventory_to_copy_holds_no_secret():
    """S5: an example that works would be everybody's."""
    for path in (PROJECT / "inventory").rglob("*.yml"):
        assert not [name for name in yaml.safe_load(path.read_text()) or {} if name.startswith("vault_")]
