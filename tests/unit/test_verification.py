"""The verification client runs as root from wherever an operator stands."""

import argparse
import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from portal_app import verification
from portal_app.cli import verify as cli_verify
from portal_app.verification import ways
from portal_app.verification.browser import VerificationError
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


def test_a_failed_proof_names_the_nodes_that_take_nothing() -> None:
    nodes = [
        {"name": "ams1", "state": "up", "remarks": []},
        {"name": "ams2", "state": "maintenance", "remarks": []},
        {"name": "ams3", "state": "down", "remarks": ["no answer since 12:00"]},
    ]
    commands = create_autospec(cli_verify.Commands)
    commands.run.return_value = json.dumps(nodes)

    assert cli_verify._nodes_that_are_not_up(commands) == [
        "node ams2 takes no connections, it is in maintenance: vpn-portal node maintenance ams2 off",
        "node ams3 is down: no answer since 12:00",
    ]


def served(name: str, wireguard: list[str], openvpn: dict[str, list[str]]) -> dict[str, Any]:
    """Return a node's entry in a plan."""
    return {
        "name": name,
        "wireguard": [{"profile_id": profile} for profile in wireguard],
        "openvpn": [
            {"profile_id": profile, "protocol": carrier}
            for profile, found in openvpn.items()
            for carrier in found
        ],
    }


BOTH = ["udp", "tcp"]


@pytest.mark.parametrize(
    ("wireguard", "openvpn", "expected"),
    [
        (["a"], {"a": BOTH}, {"a wireguard+udp", "a openvpn+udp", "a openvpn+tcp"}),
        (["a", "b"], {"a": BOTH, "b": BOTH}, {"a wireguard+udp", "b openvpn+udp", "b openvpn+tcp"}),
        (["a", "b"], {"a": BOTH}, {"b wireguard+udp", "a openvpn+udp", "a openvpn+tcp"}),
        (["b"], {"a": BOTH, "b": BOTH}, {"b wireguard+udp", "a openvpn+udp", "a openvpn+tcp"}),
        (
            ["a", "b", "c"],
            {"a": BOTH, "b": BOTH, "c": BOTH, "d": ["tcp"]},
            {"a wireguard+udp", "b openvpn+udp", "b openvpn+tcp", "c wireguard+udp", "d openvpn+tcp"},
        ),
        ([], {"a": ["udp"], "b": BOTH}, {"b openvpn+udp", "b openvpn+tcp", "a openvpn+udp"}),
        (["a", "b"], {}, {"a wireguard+udp", "b wireguard+udp"}),
        ([], {}, set()),
    ],
)
def test_node_is_proved_for_each_profile_and_over_each_protocol(wireguard, openvpn, expected):
    """And in no more ways than that takes: a proof of many nodes is waited for."""
    found = ways(served("ams1", wireguard, openvpn), whole=False)

    tried = [f"{way.profile_id} {way.protocol}+{carrier}" for way in found for carrier in way.carriers]
    assert sorted(tried) == sorted(expected)


def test_node_that_is_named_is_proved_for_each_profile_over_each_protocol():
    found = ways(served("ams1", ["a", "b"], {"a": [*BOTH, "udp"], "c": ["tcp"]}), whole=True)

    assert [(way.profile_id, way.protocol, way.carriers) for way in found] == [
        ("a", "wireguard", ("udp",)),
        ("b", "wireguard", ("udp",)),
        ("a", "openvpn", ("udp", "tcp")),
        ("c", "openvpn", ("tcp",)),
    ]


def test_proof_of_a_node_goes_on_after_a_way_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.tunnel, "namespace", nullcontext)
    passed: list[tuple[str, str]] = []
    monkeypatch.setattr(
        verification, "_pass_traffic", lambda config, carrier, *_words: passed.append((config, carrier))
    )

    def make(profile_id: str, protocol: str) -> str:
        if profile_id == "a":
            raise VerificationError("no room")
        return f"{profile_id} {protocol}"

    done = verification.Verification(lambda _check: None)
    verification.verify_node(
        done, served("ams1", ["a", "b"], {"b": BOTH}), make, "vpn.example.org", whole=False
    )

    assert passed == [("b openvpn", "udp"), ("b openvpn", "tcp")]
    assert [check.name for check in done.checks if not check.passed] == ["ams1: a wireguard configuration"]


def test_it_trusts_what_the_certificate_of_the_portal_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The own CA, the one of vpn_portal_ca, or what the system trusts."""
    own, given = tmp_path / "ca.crt", tmp_path / "trusted.crt"
    monkeypatch.setattr(cli_verify, "OWN_TLS_CA", own)
    monkeypatch.setattr(cli_verify, "TRUSTED_TLS_CA", given)

    def trusted() -> Path | None:
        parser = argparse.ArgumentParser()
        cli_verify.register(parser.add_subparsers())
        file: Path | None = parser.parse_args(["verify"]).ca_file
        return file

    assert trusted() is None
    given.touch()
    assert trusted() == given
    given.unlink()
    own.touch()
    assert trusted() == own


def test_the_playbook_lays_the_ca_where_it_is_looked_for() -> None:
    playbooks = Path(__file__).parents[2] / "playbooks"

    for path in ("portal.yml", "group_vars/all/roles.yml"):
        assert str(cli_verify.TRUSTED_TLS_CA) in (playbooks / path).read_text()
