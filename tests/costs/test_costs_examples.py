"""The examples in the docstrings of costs run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

from rlprune_jax import costs

MODULES = sorted(module.name for module in pkgutil.iter_modules(costs.__path__))
WITHOUT = {
    *("extents", "interpolation", "latency_table", "options", "segments"),
    *("slim_latency", "timings"),
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"rlprune_jax.costs.{name}"))
    assert result.failed == 0
    assert (result.attempted == 0) == (name in WITHOUT)


def test_every_public_name_is_there():
    assert all(hasattr(costs, name) for name in costs.__all__)
    assert sorted(costs.__all__, key=str.lower) == sorted(set(costs.__all__), key=str.lower)
