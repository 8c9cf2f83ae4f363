"""The examples in the docstrings of pruning by sparsity run and give what they say."""

import doctest
import importlib

import pytest

MODULES = ("masks", "scopes", "selection", "exact_counts", "pqi", "pruners", "updates")
WITHOUT = ("scopes",)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"rlprune_jax.sparsity.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or name in WITHOUT
