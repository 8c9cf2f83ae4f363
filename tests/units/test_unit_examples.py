"""The examples in the docstrings of units run and give what they say."""

import doctest
import importlib

import pytest

WITH_EXAMPLES = ("gates",)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"rlprune_jax.units.{name}"))
    assert result.failed == 0 and result.attempted > 0
