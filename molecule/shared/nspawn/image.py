"""Base images: a small Debian per release, built once and kept between runs."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from nspawn.machine import ENDS_WITH_US, LabError, locked, remove_tree, say

# What boots, answers ssh and runs Ansible modules. Nothing a role should bring itself.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "iproute2", "procps", "openssh-server")
_MAX_AGE_SECONDS = 7 * 24 * 3600
_RECIPE = 1  # raise it when _finish changes, so that older images are not used


def cache_directory() -> Path:
    return Path(os.environ.get("CAUSEWAY_LAB_CACHE") or "/var/cache/causeway-lab")


@contextlib.contextmanager
def base_image(release: str) -> Iterator[Path]:
    """Yield the root directory of an image that is not older than a week, building it when needed.

    It stays as it is inside the ``with``: nobody rebuilds it meanwhile.
    """
    mirror = os.environ.get("CAUSEWAY_LAB_MIRROR") or "http://deb.debian.org"
    key = hashlib.sha256(f"{_RECIPE} {mirror} {PACKAGES}".encode()).hexdigest()[:12]
    image = cache_directory() / "images" / f"{release}-{key}"
    lock = f"image-{release}-{key}"
    with locked(lock):
        if _age_seconds(image) > _MAX_AGE_SECONDS:
            _rebuild(image, release, mirror)
    with locked(lock, shared=True):
        yield image / "root"


def _age_seconds(image: Path) -> float:
    try:
        return time.time() - (image / "built").stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _rebuild(image: Path, release: str, mirror: str) -> None:
    """Build beside, then rename: the next build removes what a crash left, and half an image never counts."""
    image.parent.mkdir(parents=True, exist_ok=True)
    beside = image.with_name(f"{image.name}.new")
    remove_tree(beside)
    beside.mkdir(mode=0o755)
    say(f"building the base image of {release} (about half a minute)")
    try:
        _bootstrap(beside, release, mirror)
    except LabError as error:
        remove_tree(beside)
        if not image.exists():
            raise
        say(f"{error}; going on with the image of {time.ctime((image / 'built').stat().st_mtime)}")
        return
    (beside / "built").touch()
    for old in image.parent.glob(f"{release}-*"):
        if not old.name.endswith(".new"):
            shutil.rmtree(old)
    beside.rename(image)
    # Packages kept for hosts of the old image are of its age: collect them anew.
    shutil.rmtree(package_cache(release), ignore_errors=True)


def _bootstrap(beside: Path, release: str, mirror: str) -> None:
    root, log = beside / "root", beside / "log"
    sources = [
        f"deb {mirror}/debian {release} main",
        f"deb {mirror}/debian {release}-updates main",
        f"deb {mirror}/debian-security {release}-security main",
    ]
    command = [
        # In namespaces of its own: nothing goes on building, and no mount stays.
        *ENDS_WITH_US, "unshare", "--mount", "--pid", "--fork", "--kill-child",
        "mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", release, str(root), *sources,
    ]  # fmt: skip
    with log.open("w") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode:
        lines = log.read_text().strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith(("E:", "Err:"))] or lines
        raise LabError(f"mmdebstrap {release} failed: {errors[0]}")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # every host gets its own


def package_cache(release: str) -> Path:
    """Where the .deb files that hosts downloaded are kept, so that the next ones need not."""
    return cache_directory() / "packages" / release


def lend_packages(release: str, root: Path) -> int:
    """Put kept packages into a host's apt archive; returns how many. apt checks their hashes itself."""
    with locked(f"packages-{release}", shared=True):
        return _link_packages(package_cache(release), root / "var/cache/apt/archives")


def keep_packages(release: str, root: Path) -> int:
    """Keep what a host downloaded; returns how many files were new."""
    with locked(f"packages-{release}"):
        return _link_packages(root / "var/cache/apt/archives", package_cache(release))


def _link_packages(source: Path, target: Path) -> int:
    """Hard links where possible: apt and dpkg replace these files, they never write into them."""
    target.mkdir(parents=True, exist_ok=True)
    new = [file for file in source.glob("*.deb") if not (target / file.name).exists()]
    for file in new:
        try:
            os.link(file, target / file.name)
        except OSError:
            beside = target / f".{file.name}.{os.getpid()}"
            shutil.copy2(file, beside)
            beside.replace(target / file.name)
    return len(new)
