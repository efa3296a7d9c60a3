"""Base images are kept between runs, and built anew when they are a week old or made of other packages."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "molecule/shared"))

from nspawn import image

pytestmark = pytest.mark.lab


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return the package lists of the images that were built; building one only makes its folder."""
    found: list[tuple[str, ...]] = []

    def bootstrap(beside: Path, *_what: Any) -> None:
        (beside / "root").mkdir()
        found.append(image.PACKAGES)

    monkeypatch.setenv("CAUSEWAY_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(image, "_bootstrap", bootstrap)
    return found


def use() -> Path:
    with image.base_image("bookworm") as root:
        assert root.is_dir()
        return root.parent


def test_an_image_is_built_once(built: list[tuple[str, ...]]) -> None:
    assert use() == use()
    assert len(built) == 1


def test_an_image_older_than_a_week_is_built_anew(built: list[tuple[str, ...]]) -> None:
    for days, builds in ((6, 1), (8, 2)):
        then = time.time() - days * 86_400
        os.utime(use() / "built", (then, then))
        use()
        assert len(built) == builds


def test_other_packages_are_another_image_and_the_old_one_goes(
    built: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = use()
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "less"))

    assert use() != first
    assert built[1][-1] == "less"
    assert not first.exists()
