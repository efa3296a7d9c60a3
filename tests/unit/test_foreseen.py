"""In check mode a unit's verb follows from the files that the run would have changed by then."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vpn_control import foreseen

PROJECT = Path(__file__).parents[2]
#: After every file that a test of ours can have.
RUNNING = {
    "ActiveState": "active", "FragmentPath": "", "DropInPaths": "", "ConditionResult": "yes",
    "ActiveEnterTimestamp": "Sun 2199-11-24 22:58:00.123456 UTC",
    "StateChangeTimestamp": "Sun 2199-11-24 22:58:00.123456 UTC",
}  # fmt: skip


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / f"roles/host_base/library/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


services = module("causeway_services")
PROCESS = {
    "name": "openvpn-server@lab-0.service",
    "restart_on": ["/etc/openvpn/server/lab-0.conf"],
    "reload_on": ["/etc/causeway/tls"],
    "reload_while": None,
}


@pytest.mark.parametrize(
    ("file", "verb"),
    [
        ("/etc/openvpn/server/lab-0.conf", "restart"),
        ("/etc/systemd/system/openvpn-server@lab-0.service", "restart"),
        ("/etc/systemd/system/openvpn-server@.service.d/causeway.conf", "restart"),
        ("/etc/causeway/tls/own/fullchain.pem", "reload"),
        ("/etc/openvpn/server/lab-0.conf.old", None),
        ("/etc/openvpn/server/lab-1.conf", None),
        ("/etc/openvpn", None),
    ],
)
def test_a_unit_follows_the_files_that_it_reads(file, verb):
    assert services.verb_for(PROCESS, RUNNING, [file]) == (verb, [file] if verb else [])


def test_a_unit_that_does_not_run_starts_whatever_is_foreseen():
    stopped = RUNNING | {"ActiveState": "inactive"}

    assert services.verb_for(PROCESS, stopped, PROCESS["restart_on"]) == ("start", [])


def test_a_unit_that_runs_with_an_older_file_is_restarted_because_of_it(tmp_path):
    """Without any foresight, as a run that changes something and one that comes after a killed one."""
    file = tmp_path / "settings"
    file.write_text("new")
    started_long_ago = RUNNING | {"ActiveEnterTimestamp": "Thu 2000-01-06 10:00:00.000000 UTC"}

    unit = PROCESS | {"restart_on": [str(file), str(tmp_path / "missing")]}

    assert services.verb_for(unit, started_long_ago, []) == ("restart", [str(file)])


def test_what_tasks_foresee_adds_up_and_what_goes_is_read_by_nobody():
    first = foreseen.with_files({"changed": True}, {}, {"/etc/a": "changed", "/etc/gone": "removed"})
    variables = {"ansible_facts": first["ansible_facts"]}
    second = foreseen.with_files({"changed": True}, variables, {"/etc/b": "made"})

    assert foreseen.files({"ansible_facts": second["ansible_facts"]}) == ["/etc/a", "/etc/b"]
    assert second["ansible_stats"]["data"] == {"causeway_files": {"/etc/b": "made"}}


def test_a_task_that_changes_nothing_tells_nothing():
    assert foreseen.with_files({"changed": False}, None, {}) == {"changed": False}
