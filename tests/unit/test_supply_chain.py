"""What is deployed is locked, and nothing is fetched from elsewhere (C1, C5, C6)."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LOCKS = sorted((PROJECT / "locks").glob("*.txt"))
PACKAGES = (
    "vpn_core",
    "portal_app",
    "node_agent",
    "vpn_control",
    "filter_plugins",
    "roles",
)


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) \\$", path.read_text(), re.MULTILINE))


def test_there_is_a_lock_file_per_part_and_python_of_the_targets():
    assert [path.stem for path in LOCKS] == ["node-3.11", "node-3.13", "portal-3.11", "portal-3.13"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_has_one_version_and_hashes(path):
    """C1"""
    requirements = [line for line in path.read_text().split("\n") if line and not line.startswith((" ", "#"))]

    assert len(locked(path)) == len(requirements)
    for text in re.split(r"\n(?=\S)", path.read_text().strip()):
        assert "--hash=sha256:" in text or text.startswith("#"), text[:80]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_everything_that_the_distribution_needs_is_locked(path):
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    part = path.stem.split("-")[0]
    names = {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in extras[part]}

    assert names <= locked(path).keys()


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_portal_and_node_fit_into_one_environment(python):
    portal = locked(PROJECT / f"locks/portal-{python}.txt")
    node = locked(PROJECT / f"locks/node-{python}.txt")

    assert {name: node[name] for name in node.keys() & portal.keys()} == {
        name: portal[name] for name in node.keys() & portal.keys()
    }


def test_pages_load_nothing_from_another_host():
    """C5"""
    for path in (PROJECT / "portal_app").rglob("*"):
        if path.suffix in (".html", ".css", ".svg"):
            text = path.read_text()
            assert not re.search(r"""(?:src|action|@import|url\()\s*=?\s*["'(]?\s*(?:https?:)?//""", text), (
                path
            )
            assert not re.search(r"""<link[^>]*href\s*=\s*["'](?:https?:)?//""", text), path


def test_no_shell_no_pickle_no_unsafe_yaml():
    """C6"""
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name.split(".")[0] for alias in node.names}
                    names.add((getattr(node, "module", None) or "").split(".")[0])
                    assert not names & {"pickle", "marshal", "shelve"}, path
                if isinstance(node, ast.Call):
                    assert not any(
                        k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords
                    ), path
                    name = ast.unparse(node.func)
                    assert name not in ("yaml.load", "os.system", "os.popen", "eval", "exec"), path
