"""Playbooks while a portal or a database server is gone, or fails at the worst moment."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
HOSTS = {
    "portals": {"hosts": {"p1": None, "p2": None}},
    "nodes": {"hosts": {"fra1": None}},
    "databases": {"hosts": {"db1": None, "db2": None}},
}
#: Says what the n-th call of a program printed and ended with; the last one is for all that follow.
SAYS = """#!/bin/sh
echo "$(basename "$0") $*" >>"$0.calls"
lines=$(grep -c . "$0.calls")
[ -f "$0.$lines" ] || lines=last
[ ! -f "$0.$lines" ] || . "$0.$lines"
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Hosts that are this machine, where nothing of the service is."""
    variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": variables, "children": HOSTS}}))
    return tmp_path


def play(inventory: Path, playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook; what is in ``inventory/bin`` comes before other programs."""
    environment = {
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{inventory / 'bin'}:{os.environ['PATH']}",
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    return subprocess.run(
        [program, "-i", inventory / "hosts.yml", PROJECT / "playbooks" / playbook, *options],
        cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def hosts_of(listed: str) -> list[set[str]]:
    """Return the hosts of each play, as ``--list-hosts`` says them."""
    return [set(names.split()) for names in re.findall(r"hosts \(\d+\):\n((?:      .*\n)*)", listed)]


@pytest.mark.parametrize("playbook", ["drain_node.yml", "remove_node.yml", "add_node.yml", "verify.yml"])
@pytest.mark.parametrize(("limit", "first"), [("all", "p1"), ("!p1", "p2"), ("p2:fra1", "p2")])
def test_first_portal_of_the_limit_does_it(inventory: Path, playbook: str, limit: str, first: str) -> None:
    listed = play(inventory, playbook, "-e", "node=fra1", "--limit", limit, "--list-hosts")

    assert hosts_of(listed.stdout)[0] == {first}, listed.stdout + listed.stderr


@pytest.mark.parametrize("playbook", ["drain_node.yml", "remove_node.yml", "add_node.yml"])
def test_limit_without_a_portal_is_refused(inventory: Path, playbook: str) -> None:
    done = play(inventory, playbook, "-e", "node=fra1", "--limit", "fra1")

    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "--limit fra1 leaves every portal out, and one has to take part; leave one of p1, p2 in" in said


def says(inventory: Path, program: str, *answers: str) -> Path:
    """Put a program before others; return where its calls are written down."""
    file = inventory / "bin" / program
    file.parent.mkdir(exist_ok=True)
    file.write_text(SAYS)
    file.chmod(0o755)
    for number, answer in enumerate(answers, 1):
        name = "last" if number == len(answers) else number
        file.with_name(f"{program}.{name}").write_text(answer)
    return file.with_name(f"{program}.calls")


def is_(role: str, **more: object) -> str:
    """Return what makes a program say that a server is this."""
    return f"echo '{json.dumps({'role': role, 'alone': False, 'peer': 'db2'} | more)}'"


def test_database_that_the_limit_leaves_out_is_not_missed(inventory: Path) -> None:
    says(inventory, "runuser", is_("primary", alone=True, standby_is_in_step=False))
    options = ["--start-at-task", "Wait until the one that takes writes and its standby are in step"]

    done = play(inventory, "verify.yml", "--limit", "databases:!db2", *options)

    assert "db1: primary; not asked, --limit leaves it out: db2" in " ".join(done.stdout.split())
    assert done.returncode == 0, done.stdout + done.stderr


FAILS = "echo 'it was not promoted within 60 s' >&2; exit 1"


def promote(inventory: Path) -> tuple[int, str]:
    done = play(inventory, "promote_database.yml", "-e", "host=db2")
    return done.returncode, " ".join(done.stdout.split())


def test_promotion_that_fails_starts_the_other_one_again(inventory: Path) -> None:
    says(inventory, "runuser", is_("standby"), is_("primary"), is_("down"), FAILS, is_("standby"))
    calls = says(inventory, "systemctl")

    status, said = promote(inventory)

    assert status != 0
    assert "It must take writes now: it was not promoted within 60 s. db1 is started again" in said
    assert calls.read_text().splitlines() == [
        "systemctl stop postgresql@*.service",
        "systemctl start --no-block postgresql.service",
    ]


def test_other_one_stays_down_when_the_promotion_only_seemed_to_fail(inventory: Path) -> None:
    says(inventory, "runuser", is_("standby"), is_("primary"), is_("down"), FAILS, is_("primary"))
    calls = says(inventory, "systemctl")

    status, said = promote(inventory)

    assert status != 0
    assert "db2 takes writes now; db1 stays down, make it the standby (standby_database.yml)" in said
    assert calls.read_text().splitlines() == ["systemctl stop postgresql@*.service"]


def test_server_that_does_not_stop_is_named(inventory: Path) -> None:
    """As ``timeout`` ends."""
    says(inventory, "runuser", is_("standby"), is_("primary"), is_("standby"))
    says(inventory, "timeout", "exit 124")
    calls = says(inventory, "systemctl")

    status, said = promote(inventory)

    assert status != 0
    assert "db1 does not stop within 60 s" in said
    assert "Switch its host off, then run this again with -e promote_without=db1" in said
    assert calls.read_text().splitlines() == ["systemctl start --no-block postgresql.service"]


def test_server_that_wrote_alone_at_last_is_started_again(inventory: Path) -> None:
    says(
        inventory, "runuser",
        is_("standby"), is_("primary"), is_("down", alone=True), is_("standby"),
    )  # fmt: skip
    calls = says(inventory, "systemctl")

    status, said = promote(inventory)

    assert status != 0
    assert "db1 has written without db2" in said
    assert calls.read_text().splitlines()[-1] == "systemctl start --no-block postgresql.service"


def test_promotion_in_order(inventory: Path) -> None:
    says(inventory, "runuser", is_("standby"), is_("primary"), is_("down"), "echo takes writes now")
    calls = says(inventory, "systemctl")

    status, said = promote(inventory)

    assert status == 0, said
    assert "db2 takes writes now" in said
    assert calls.read_text().splitlines() == ["systemctl stop postgresql@*.service"]
