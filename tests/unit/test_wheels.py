"""Bundles of wheels (C1, C5, C7 of reliability.md)."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from vpn_control import wheels

LOCKS = sorted((wheels.PROJECT / "locks").glob("*.txt"))


@pytest.mark.slow
def test_the_same_sources_make_the_same_wheel(tmp_path):
    first, second = (wheels.build_wheel(tmp_path / name).read_bytes() for name in ("one", "two"))

    assert first == second


@pytest.mark.slow
def test_wheel_is_built_once_for_the_same_sources(tmp_path):
    built = wheels.build_wheel(tmp_path).stat().st_mtime_ns

    assert wheels.build_wheel(tmp_path).stat().st_mtime_ns == built


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_locked_package_has_hashes_and_no_address(lock: Path):
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())

    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry)
        assert "--hash=sha256:" in entry
    assert "://" not in lock.read_text()


def test_every_target_has_its_lock_files():
    assert {path.stem for path in LOCKS} == {
        f"{part}-{python}" for part in wheels.PARTS for python in wheels.PYTHONS
    }


def test_portal_and_node_fit_into_one_environment():
    for python in wheels.PYTHONS:
        versions: dict[str, str] = {}
        for part in wheels.PARTS:
            text = (wheels.PROJECT / "locks" / f"{part}-{python}.txt").read_text()
            for name, version in re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE):
                assert versions.setdefault(name, version) == version


def test_archive_holds_only_wheels_that_a_lock_file_allows(tmp_path):
    (tmp_path / "wheels").mkdir()
    ours, allowed, old = (tmp_path / name for name in ("causeway-1.whl", "wheels/a-1.whl", "wheels/b-1.whl"))
    for file in (ours, allowed, old):
        file.write_text(file.name)
    lock = tmp_path / "node-3.11.txt"
    lock.write_text(f"a==1 --hash=sha256:{wheels.hashlib.sha256(allowed.read_bytes()).hexdigest()}\n")

    wheels._archive(tmp_path / "node.tar", ours, [lock], tmp_path / "wheels")

    with tarfile.open(tmp_path / "node.tar") as tar:
        assert set(tar.getnames()) == {"wheels/causeway-1.whl", "wheels/a-1.whl", "node-3.11.txt"}


def test_unknown_part_is_refused(tmp_path, capsys):
    assert wheels.main(["--output", str(tmp_path), "3.11:database"]) == 1
    assert "unknown part 'database'" in capsys.readouterr().err


def test_python_without_a_lock_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wheels, "build_wheel", lambda _output: tmp_path / "causeway-1.0-py3-none-any.whl")

    assert wheels.main(["--output", str(tmp_path), "3.9:node"]) == 1
    assert "3.9 is not a target" in capsys.readouterr().err


def test_bundle_is_left_as_it_is_when_nothing_changed(tmp_path, monkeypatch):
    ours = tmp_path / "causeway-1.0-py3-none-any.whl"
    ours.write_text("ours")
    monkeypatch.setattr(wheels, "build_wheel", lambda _output: ours)
    monkeypatch.setattr(wheels, "_download", lambda _lock, _python, directory: directory.mkdir(exist_ok=True))

    made, is_new = wheels.collect(tmp_path, "3.11", ["node"])

    assert is_new
    assert json.loads((tmp_path / "3.11/node.json").read_text()) == made
    assert wheels.collect(tmp_path, "3.11", ["node"]) == (made, False)
    ours.write_text("changed")
    assert wheels.collect(tmp_path, "3.11", ["node"])[1]


def test_what_is_there_is_not_fetched_again(tmp_path):
    wheel, lock = tmp_path / "a-1.whl", tmp_path / "node-3.11.txt"
    wheel.write_text("a")
    there, other = (wheels.hashlib.sha256(text).hexdigest() for text in (b"a", b"another platform's"))

    lock.write_text(f"a==1 \\\n    --hash=sha256:{other} \\\n    --hash=sha256:{there}\n")
    assert not wheels._lacks_something(lock, tmp_path)
    lock.write_text(f"{lock.read_text()}b==1 \\\n    --hash=sha256:{other}\n")
    assert wheels._lacks_something(lock, tmp_path)
