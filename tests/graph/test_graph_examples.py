"""The examples in the docstrings of graph run and give what they say."""

import doctest
import importlib

import pytest

WITH_EXAMPLES = ("gating", "groups", "keywords", "memo", "slim", "trace")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"rlprune_jax.graph.{name}"))
    assert result.failed == 0 and result.attempted > 0
