"""The examples in the docstrings of the search run and give what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "advantages",
    "archive",
    "baselines",
    "config",
    "critics",
    "environment",
    "loop",
    "multipliers",
    "ppo_lagrangian",
    "problem",
    "ranking",
    "searcher",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"rlprune_jax.search.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
