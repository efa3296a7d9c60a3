"""The verification client runs as root from wherever an operator stands."""

import subprocess
from pathlib import Path

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
