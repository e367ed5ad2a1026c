"""The examples in the docstrings print what they say, in JAX's default precision."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import functional_bp

MODULES = ["functional_bp"] + [
    module.name
    for module in pkgutil.walk_packages(functional_bp.__path__, "functional_bp.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    with jax.enable_x64(False):
        failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
