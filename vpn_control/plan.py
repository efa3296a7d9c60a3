"""Say what a deployment would do: ``python -m vpn_control.plan --inventory DIRECTORY``, or ``make plan``.

Runs ``site.yml`` in check mode and prints its summary. Changes nothing, on no host. Exit status 1 if the
inventory is wrong or a deployment would be refused; a host that cannot be reached is "unknown" and no error.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vpn_control import report, summary

PROJECT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    inventory = arguments.inventory.absolute()
    if not inventory.exists():
        return _fail(
            f"{arguments.inventory}: no such inventory; name yours: make plan INVENTORY=inventory/mine"
            " (without a name it is that of the lab, which make lab boots)"
        )
    print(f"Asking the hosts of {arguments.inventory}, about half a minute ...", file=sys.stderr, flush=True)
    record, output = _run(inventory, arguments.options)
    if record is None:
        return _fail(f"Ansible ended early:\n{output.strip()}")
    if not record["hosts"]:
        return _fail(f"no host of this inventory is in group 'portals' or 'nodes':\n{output.strip()}")
    return show(record, as_json=arguments.json)


def show(record: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the summary of a record; return the exit status."""
    if record["plan"] is None:
        refused = [text for host in record["hosts"].values() for text in host.get("failed", ())]
        if as_json:
            print(json.dumps({"refused": refused}, ensure_ascii=False))
        return _fail("\n".join(refused))
    found = summary.make(record)
    if as_json:
        print(json.dumps({"nothing_changes": found.nothing_changes} | asdict(found), ensure_ascii=False))
    else:
        print("\n".join(report.lines(found)).rstrip())
    return 1 if found.refused else 0


def _run(inventory: Path, options: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """Return what the run has recorded, None if it never came to its end, and what Ansible said."""
    with tempfile.TemporaryDirectory(prefix="causeway-plan-") as directory:
        file = Path(directory, "record.json")
        # Ansible reads its settings from where it runs; those of this project hold wherever this was called.
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "CAUSEWAY_SUMMARY_RECORD": str(file),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, "--inventory", str(inventory), "playbooks/site.yml", "--check", *options],
            cwd=PROJECT, env=environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return (json.loads(file.read_text()) if file.exists() else None), done.stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vpn_control.plan", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "options", nargs="*", help="for ansible-playbook, after --, such as -e vpn_renumber=true"
    )
    return parser


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
