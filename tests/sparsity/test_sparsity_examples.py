"""The examples in the docstrings of pruning by sparsity run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

from rlprune_jax import sparsity

MODULES = sorted(module.name for module in pkgutil.iter_modules(sparsity.__path__))
WITHOUT = ("moments",)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"rlprune_jax.sparsity.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert (result.attempted == 0) == (name in WITHOUT)


def test_every_public_name_is_there():
    assert all(hasattr(sparsity, name) for name in sparsity.__all__)
    assert list(sparsity.__all__) == sorted(set(sparsity.__all__))
