"""The examples in the docstrings of studies run and give what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["distributed", "results", "run", "settings"])
def test_examples(name):
    module = importlib.import_module(f"rlprune_jax.study.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
