"""The examples in the docstrings of the export run and give what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["description", "plan", "readme", "stablehlo", "weights"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"rlprune_jax.export.{name}"))
    assert result.failed == 0
    assert result.attempted > 0
