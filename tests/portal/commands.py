"""``vpn-portal`` as an operator runs it: in a process of its own, with a settings file."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from portal_app.settings import Settings

PROGRAM = [sys.executable, "-c", "import sys; from portal_app.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    error: str


def write_settings(settings: Settings, file: Path) -> None:
    """Write what differs from the defaults as TOML."""
    lines = []
    for f in fields(Settings):
        value = getattr(settings, f.name)
        if value is not None and value != f.default:
            lines.append(f"{f.name} = {json.dumps(str(value) if isinstance(value, Path) else value)}\n")
    file.write_text("".join(lines))


def run_vpn_portal(file: Path, *words: str) -> Done:
    done = subprocess.run(
        [*PROGRAM, "--settings", file, *words], capture_output=True, text=True, timeout=60, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start_vpn_portal(file: Path, *words: str, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        return subprocess.Popen(
            [*PROGRAM, "--settings", file, *words],
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
