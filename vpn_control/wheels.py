"""Build our wheel and collect the locked ones: a deployed host reaches no package index and has no compiler.

``python -m vpn_control.wheels 3.11:portal-node`` makes one archive of what such hosts need::

    .wheels/3.11/portal-node.tar     our wheel, the locked wheels of both parts, their lock files
    .wheels/3.11/portal-node.json    {"version", "id", "archive"}; the id is what is in it

``--refresh-locks`` writes ``locks/*.txt`` anew from pyproject.toml (needs uv). Everything is left as it is
when nothing changed; pip's hash check covers all but our own wheel, which is made here and is the same
whenever the sources are.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("vpn_core", "vpn_control", "portal_app", "node_agent")
PARTS = ("portal", "node")
PYTHONS = ("3.11", "3.13")
#: Debian 12 has glibc 2.36: wheels made for older ones run on it.
_GLIBC = range(36, 16, -1)
#: 1980 is the oldest year that a zip file can say.
_EPOCH = 315_619_200


class WheelsError(Exception):
    """The wheels could not be collected; the message says what to do."""


def collect(output: Path, python: str, parts: Sequence[str]) -> tuple[dict[str, str], bool]:
    """Return version, id and archive of a bundle, and whether it had to be made."""
    if unknown := set(parts) - set(PARTS):
        raise WheelsError(f"unknown part {min(unknown)!r}; use portal, node or portal-node")
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("w") as lock:
        # Two deployments from one checkout may come here at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _collect(output, python, parts)


def _collect(output: Path, python: str, parts: Sequence[str]) -> tuple[dict[str, str], bool]:
    name = "-".join(part for part in PARTS if part in parts)
    directory = output / python
    directory.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(output)
    locks = [PROJECT / "locks" / f"{part}-{python}.txt" for part in PARTS if part in parts]
    for lock in locks:
        if not lock.exists():
            raise WheelsError(f"locks/{lock.name} is missing; Python {python} is not a target")
    version = wheel.name.split("-")[1]
    identity = f"{version}-{_digest([wheel, *locks])[:12]}"
    archive, note = directory / f"{name}.tar", directory / f"{name}.json"
    bundle = {"version": version, "id": identity, "archive": str(archive)}
    if archive.exists() and note.exists() and json.loads(note.read_text()) == bundle:
        return bundle, False
    wheels = directory / "wheels"
    for lock in locks:
        if _lacks_something(lock, wheels):
            _download(lock, python, wheels)
    _archive(archive, wheel, locks, wheels)
    note.write_text(json.dumps(bundle) + "\n")
    return bundle, True


def build_wheel(output: Path) -> Path:
    """Return our wheel, built from a clean copy of the sources. Same sources, same bytes."""
    sources = sorted(_sources())
    digest = _digest(sources)
    directory = output / "ours"
    note = directory / "sources.sha256"
    if note.exists() and note.read_text() == digest:
        for wheel in directory.glob("causeway-*.whl"):
            return wheel
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        for source in sources:
            copy = Path(work) / source.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            copy.chmod(0o644)
        # setuptools names the readme in the metadata; an older tree may lack it.
        _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), work)
    (wheel,) = directory.glob("causeway-*.whl")
    note.write_text(digest)
    return wheel


def refresh_locks(uv: str) -> None:
    """Write every lock file anew. A node's versions follow the portal's: both fit into one environment."""
    locks = PROJECT / "locks"
    locks.mkdir(exist_ok=True)
    for python in PYTHONS:
        for part in PARTS:
            target = locks / f"{part}-{python}.txt"
            command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate",
                       "--no-emit-index-url", "--no-emit-find-links", "--python-version", python,
                       "--python-platform", "x86_64-manylinux_2_36", "--only-binary", ":all:", "--upgrade",
                       "--extra", part, "--output-file", str(target)]  # fmt: skip
            if part == "node":
                command += ["--constraint", str(locks / f"portal-{python}.txt")]
            # Without the machine's own wheels: a lock file lists what everyone can get.
            environment = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
            subprocess.run([*command, str(PROJECT / "pyproject.toml")], check=True, env=environment)


def _sources() -> Iterable[Path]:
    yield from (
        PROJECT / name for name in ("pyproject.toml", "README.md", "LICENSE") if (PROJECT / name).exists()
    )
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                yield path


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _lacks_something(lock: Path, wheels: Path) -> bool:
    """Tell whether a requirement of a lock file has none of the wheels that it allows: pip would ask the
    index for each of them, also for those that lie there.
    """
    there = {hashlib.sha256(file.read_bytes()).hexdigest() for file in wheels.glob("*.whl")}
    requirements = re.split(r"^(?=\S)", lock.read_text(), flags=re.MULTILINE)
    allowed = [
        set(re.findall(r"--hash=sha256:([0-9a-f]{64})", text)) for text in requirements if "==" in text
    ]
    return any(there.isdisjoint(hashes) for hashes in allowed)


def _download(lock: Path, python: str, directory: Path) -> None:
    tags = ["any", *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC), "manylinux2014_x86_64"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    _pip("download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:",
         "--implementation", "cp", "--python-version", python, *platforms,
         "--dest", str(directory), "--requirement", str(lock))  # fmt: skip


def _pip(*words: str) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(_EPOCH), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise WheelsError(f"pip {words[0]} failed: {done.stderr.strip()[-2000:]}")


def _archive(archive: Path, wheel: Path, locks: Sequence[Path], wheels: Path) -> None:
    """Write the bundle: only wheels that a lock file allows, whatever older ones lie beside."""
    allowed = "".join(lock.read_text() for lock in locks)
    beside = archive.with_suffix(".new")
    with tarfile.open(beside, "w") as tar:
        tar.add(wheel, f"wheels/{wheel.name}")
        for lock in locks:
            tar.add(lock, lock.name)
        for file in sorted(wheels.glob("*.whl")):
            if hashlib.sha256(file.read_bytes()).hexdigest() in allowed:
                tar.add(file, f"wheels/{file.name}")
    beside.replace(archive)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vpn_control.wheels", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=PROJECT / ".wheels")
    parser.add_argument(
        "bundles",
        nargs="*",
        metavar="PYTHON:PARTS",
        help="what hosts need, such as 3.11:portal-node (default: all)",
    )
    parser.add_argument("--refresh-locks", action="store_true", help="write locks/*.txt anew; needs uv")
    options = parser.parse_args(arguments)
    try:
        if options.refresh_locks:
            refresh_locks(shutil.which("uv") or "uv")
            return 0
        for bundle in options.bundles or [f"{python}:portal-node" for python in PYTHONS]:
            python, _, parts = bundle.partition(":")
            made, is_new = collect(options.output.resolve(), python, parts.split("-"))
            print("collected" if is_new else "unchanged", json.dumps(made))
    except (WheelsError, OSError, subprocess.CalledProcessError) as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
