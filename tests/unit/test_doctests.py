"""The examples in the docstrings of vpn_core are true."""

import doctest
import importlib
import pkgutil

import pytest

import vpn_core

MODULES = [m.name for m in pkgutil.iter_modules(vpn_core.__path__, "vpn_core.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_arithmetic_is_shown_by_examples():
    assert doctest.testmod(importlib.import_module("vpn_core.ranges")).attempted >= 8
