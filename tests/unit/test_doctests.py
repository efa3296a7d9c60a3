"""The examples in the docstrings of vpn_core and vpn_control are true."""

import doctest
import importlib
import pkgutil

import pytest

import vpn_control
import vpn_core

MODULES = [
    module.name
    for package in (vpn_core, vpn_control)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_arithmetic_is_shown_by_examples():
    assert doctest.testmod(importlib.import_module("vpn_core.ranges")).attempted >= 8
