"""``-e vpn_renumber=false`` is the text "false": it gives no client another address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
#: Everywhere that the plan is handed to the portal.
TASKS = ("playbooks/tasks/plan.yml", "roles/portal/tasks/main.yml")


def commands() -> list[str]:
    found = [
        task["ansible.builtin.command"]["argv"]
        for path in TASKS
        for task in yaml.safe_load((PROJECT / path).read_text())
        if "ansible.builtin.command" in task
    ]
    return [command for command in found if "--renumber" in command]


@pytest.mark.slow
@pytest.mark.parametrize(("value", "renumbers"), [("false", 0), ("no", 0), ("true", len(TASKS))])
def test_only_what_is_true_renumbers(tmp_path: Path, value: str, renumbers: int) -> None:
    play = {
        "name": "Show the commands",
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(PROJECT / "playbooks/group_vars/all/roles.yml")],
        "vars": {"__portal_directory": "/etc/causeway/portal"},
        "tasks": [{"ansible.builtin.debug": {"msg": command}} for command in commands()],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))

    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            tmp_path / "play.yml",
            "-e",
            f"vpn_renumber={value}",
        ],
        cwd=PROJECT,
        env=os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(commands()) == len(TASKS)
    assert done.stdout.count("--renumber") == renumbers
