"""Digests of code and of what it reads: they change with either, and with nothing else."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.origin import (
    check_stale,
    code_origin,
    differences,
    function_digest,
    package_digest,
)

SCALE = 2.0


def one(source, **given):
    """The function ``f`` that a source defines."""
    space = {"__name__": "mine", "jnp": jnp, "np": np, "jax": jax, "functools": functools, **given}
    exec(source, space)
    return space["f"]


PLAIN = "def f(x):\n    return x * 2"
SAME = [
    (PLAIN, "# a comment\n\n\ndef f(x):\n    return x * 2  # another"),
    ("def f(x):\n    return {'a', 'b', 'c'} & x", "def f(x):\n    return {'a', 'b', 'c'} & x"),
]
OTHER = [
    "def f(x):\n    return x * 3",
    "def f(x):\n    return x + 2",
    "def f(x, y=1):\n    return x * 2",
    "def f(x):\n    return jnp.sin(x) * 2",
    "def f(x):\n    return jnp.cos(x) * 2",
    "def g(x):\n    return x\ndef f(x):\n    return g(x) * 2",
    "def g(x):\n    return -x\ndef f(x):\n    return g(x) * 2",
    "def f(x):\n    return (lambda y: y + 1)(x) * 2",
    "def f(x):\n    return (lambda y: y - 1)(x) * 2",
    "k = 2\ndef f(x):\n    return x * k",
    "k = 3\ndef f(x):\n    return x * k",
    "k = np.arange(3)\ndef f(x):\n    return x * k",
    "k = np.arange(3.0)\ndef f(x):\n    return x * k",
    "def g(k):\n    return lambda x: x * k\nf = g(1)",
    "def g(k):\n    return lambda x: x * k\nf = g(np.ones(2))",
    "def g(k):\n    return lambda x: x * k\nf = g(np.zeros(2))",
    "def g(k):\n    return lambda x: x * k\nf = g({'a': [np.zeros(2)]})",
    "def g(k):\n    return lambda x: x * k\nf = g({'a': [np.ones(2)]})",
    "def g(k, x):\n    return x * k\nf = functools.partial(g, 2)",
    "def g(k, x):\n    return x * k\nf = functools.partial(g, 3)",
    "class A:\n    def __call__(self, x):\n        return x\nf = A()",
    "class A:\n    def __call__(self, x):\n        return -x\nf = A()",
    "class A:\n    def m(self, x):\n        return -x\nf = A().m",
    "@jax.jit\ndef f(x):\n    return x * 2",
    "@jax.jit\ndef f(x):\n    return x * 3",
]


def test_comments_change_nothing():
    for first, second in SAME:
        assert function_digest(one(first)) == function_digest(one(second))


def test_every_other_function_has_another_digest():
    digests = [function_digest(one(source)) for source in (PLAIN, *OTHER)]
    assert len(set(digests)) == len(digests)


def test_arrays_change_values_and_not_the_code():
    def closing(array):
        return lambda x: x * array

    first, second = (function_digest(closing(jnp.full(3, value))) for value in (1.0, 2.0))
    assert first.code == second.code and first.values != second.values
    assert function_digest(closing(np.ones(3))) == function_digest(closing(np.ones(3)))
    assert function_digest(closing(jnp.ones(3))) != function_digest(closing(jnp.ones(4)))
    keys = [function_digest(closing(jax.random.key(seed))) for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_functions_that_call_themselves_and_each_other_end():
    assert function_digest(one("def f(x):\n    return f(x - 1)"))
    assert function_digest(one("def g(x):\n    return f(x)\ndef f(x):\n    return g(x)"))


def test_digests_are_the_same_in_every_process():
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_origin import OTHER, one
from rlprune_jax.origin import code_origin, function_digest
print(code_origin(), [function_digest(one(source)) for source in OTHER])
"""
    root = str(Path(__file__).parents[1])
    lines = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines.add(done.stdout)
    here = f"{code_origin()} {[function_digest(one(source)) for source in OTHER]}\n"
    assert lines == {here}


def test_an_origin_names_versions_and_the_package():
    found = code_origin(data="abc")
    assert {"python", "jax", "numpy", "code", "data"} <= set(found) and "commit" not in found
    assert found["code"] == package_digest() and len(package_digest()) == 10
    assert differences(found, found) == ""
    assert differences(found, found | {"data": "abd"}) == "data (abc there, abd here)"
    assert differences({}, {"code": "a"}) == "code (none there, a here)"


def test_what_is_stale_is_treated_in_one_of_three_ways():
    for known in ("refuse", "redo", "keep"):
        check_stale(known)
    with pytest.raises(ValueError, match="stale='ignore' must be one of 'refuse', 'redo', 'keep'"):
        check_stale("ignore")
