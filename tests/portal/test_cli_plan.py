"""``vpn-portal plan`` as the role and an operator call it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.portal.agent_server import AgentServer
from tests.portal.conftest import PROFILES
from vpn_core.plan import make_plan

HOSTS: dict[str, Any] = {"vpn1": {"number": 0, "hostname": "vpn1.example.org"}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_plan(
        profiles: dict[str, Any] = PROFILES, hosts: dict[str, Any] = HOSTS, max_nodes: int = 4
    ) -> str:
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(make_plan(profiles, hosts, {"max_nodes": max_nodes}).to_dict()))
        return str(file)

    return write_plan


def test_apply_says_what_changed_and_then_nothing(run, write):
    first, again = run("plan", "apply", write()), run("plan", "apply", write())

    assert first.out.splitlines()[:3] == ["changed:", "  deployment: made", "  profile employees: added"]
    assert (again.status, again.out) == (0, "no changes\n")


def test_apply_for_machines_says_whether_it_changed(run, write):
    """What the role reads."""
    first, again = (json.loads(run("plan", "apply", write(), "--json").out) for _ in range(2))

    assert (first["changed"], first["cut"]) == (True, 0)
    assert "profile lab: added" in first["changes"]
    assert again == {"changed": False, "changes": [], "cut": 0, "cuts": []}


def test_dry_run_changes_nothing(run, write):
    """R84."""
    assert run("plan", "apply", write(), "--dry-run").out.startswith("would change:\n  deployment: made\n")
    assert json.loads(run("plan", "apply", write(), "--dry-run", "--json").out)["changed"]
    assert run("plan", "show").status == 1


def test_refusal_is_one_line_that_names_the_way_out(run, write):
    """R94."""
    run("plan", "apply", write())

    done = run("plan", "apply", write(max_nodes=8))

    # A status of its own: site.yml asks before it changes anything, and stops for this alone.
    assert done.status == 3
    assert done.error.count("\n") == 1
    assert "set it back to 4, or repeat with --renumber (site.yml: -e vpn_renumber=true)" in done.error
    assert run("plan", "apply", write()).out == "no changes\n"


def test_file_that_is_missing_is_one_line(run, tmp_path):
    done = run("plan", "apply", str(tmp_path / "none.json"))

    assert (done.status, done.out) == (1, "")
    assert done.error == f"vpn-portal: {tmp_path}/none.json: No such file or directory\n"


def test_show_prints_what_was_applied(run, write):
    assert run("plan", "show").error == "vpn-portal: no plan was applied yet; run vpn-portal plan apply\n"
    run("plan", "apply", write())

    shown = run("plan", "show").out

    assert "profile employees: Employees, on vpn1" in shown
    assert "node vpn1: number 0, vpn1.example.org, agent vpn1.example.org" in shown
    assert "  lab: WireGuard 10.63.0.0/22 fd43:63::/110, 1021 addresses" in shown
    assert "  legacy: OpenVPN udp/1195 10.64.0.0/23" in shown
    assert json.loads(run("plan", "show", "--json").out)["max_nodes"] == 4


def test_whom_a_plan_cuts_is_named_and_their_node_is_told(
    node: AgentServer, run_command, write, make_app_user
):
    """I3: the call goes out at once, not only with the next round."""
    response = make_app_user("alice").connect("lab")
    assert response.status_code == 200
    (peer,) = node.peers
    profiles = {name: entry for name, entry in PROFILES.items() if name != "lab"}
    host = {"number": 0, "hostname": "node0.example.org", "agent_address": node.address}
    file = write(profiles, {"node0": host})

    dry = run_command("plan", "apply", file, "--dry-run")
    assert "  cut 1 connection, the profile is no longer offered there: alice\n" in dry.out
    assert json.loads(run_command("plan", "apply", file, "--dry-run", "--json").out)["cuts"] == [
        {"profile_id": "lab", "node": "node0", "connections": 1, "users": 1,
         "because": "the profile is no longer offered there"}
    ]  # fmt: skip
    assert node.peers == {peer}
    done = run_command("plan", "apply", file)

    assert done.out == dry.out.replace("would change", "changed")
    assert node.peers == set()
    assert peer in node.cuts
