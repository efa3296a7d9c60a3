"""The tunnel of the verification client, with a wireguard-go that does not always start."""

import shutil
from pathlib import Path

import pytest

from portal_app.verification import tunnel
from portal_app.verification.browser import VerificationError

# Needs a network namespace: root.
pytestmark = pytest.mark.slow


@pytest.fixture
def configuration() -> tuple[str, str]:
    """An answer to ``/connect`` whose node answers nothing, and the private key for it."""
    private, public = tunnel.new_wireguard_key()
    lines = ("[Interface]", "Address = 10.99.0.2/24", "[Peer]", f"PublicKey = {public}",
             "AllowedIPs = 10.99.0.0/24", "Endpoint = 192.0.2.1:9", "")  # fmt: skip
    return "\n".join(lines), private


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: as many lines as it has, so often wireguard-go ends at once. The kernel does no WireGuard."""
    file, real_ip, real = tmp_path / "failures", shutil.which("ip"), shutil.which("wireguard-go")
    scripts = {
        "wireguard-go": f'if [ -s {file} ]; then sed -i 1d {file}; echo "no more files" >&2; exit 1; fi\n'
        f'exec {real} "$@"\n',
        "ip": f'case "$*" in "link add"*) exit 1; esac\nexec {real_ip} "$@"\n',
    }
    for name, script in scripts.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return file


def test_a_client_that_ends_while_it_starts_is_started_again(
    failing: Path, configuration: tuple[str, str]
) -> None:
    failing.write_text("once\ntwice\n")
    with tunnel.namespace(), tunnel.wireguard(*configuration) as up:
        assert up.gateways == ("10.99.0.1",)
    assert failing.read_text() == ""


def test_a_client_that_never_starts_is_named_with_what_it_said(
    failing: Path, configuration: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "UP_SECONDS", 0.5)
    failing.write_text("again\n" * 1000)
    with (
        tunnel.namespace(),
        pytest.raises(VerificationError, match=r"wg is not up after 0\.5 s no more files"),
        tunnel.wireguard(*configuration),
    ):
        pass
