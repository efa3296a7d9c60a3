"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "filter_plugins", "node_agent", "portal_app", "vpn_control", "vpn_core")
MODULES = sorted(
    ".".join(file.relative_to(PROJECT).with_suffix("").parts)
    for package in PACKAGES
    for file in (PROJECT / package).rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    found = doctest.testmod(importlib.import_module(name))

    assert found.attempted
    assert not found.failed


def test_arithmetic_is_shown_by_examples():
    assert doctest.testmod(importlib.import_module("vpn_core.ranges")).attempted >= 8
