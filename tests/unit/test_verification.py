"""The verification client runs as root from wherever an operator stands."""

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from portal_app.cli import verify as cli_verify
from portal_app.verification.tunnel import OWN_MODULE


def test_a_file_in_the_current_directory_is_not_imported(tmp_path: Path) -> None:
    """S1, H2: whoever can write where root happens to stand must not get root."""
    planted = tmp_path / "portal_app" / "verification"
    planted.mkdir(parents=True)
    for package in (planted.parent, planted):
        (package / "__init__.py").write_text("")
    (planted / "resolver.py").write_text("print('planted')\n")

    done = subprocess.run(
        (*OWN_MODULE, "portal_app.verification.resolver"),
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert "planted" not in done.stdout
    assert "IndexError" in done.stderr  # ours ran, and missed its arguments


def test_a_failed_proof_names_the_nodes_that_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"name": "ams1", "state": "up", "remarks": []},
        {"name": "ams2", "state": "maintenance", "remarks": []},
        {"name": "ams3", "state": "down", "remarks": ["no answer since 12:00"]},
    ]
    monkeypatch.setattr(cli_verify, "_vpn_portal", lambda *_words: json.dumps(nodes))

    assert cli_verify._nodes_that_are_not_up(argparse.Namespace()) == [
        "node ams2 takes no connections, it is in maintenance: vpn-portal node maintenance ams2 off",
        "node ams3 is down: no answer since 12:00",
    ]
