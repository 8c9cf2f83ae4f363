"""Sizes of axes inside jit are those counted on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import trace_graph
from rlprune_jax.costs.counts import count_macs, count_params, macs_ratio, params_ratio
from rlprune_jax.costs.extents import exact_extents, traced_extents


def apply(variables, x):
    """Two residual branches on a stream of 5, then an output of it."""
    x = x @ variables["in"]
    x = x + jax.nn.relu(x @ variables["a"]) @ variables["b"]
    x = x + jax.nn.relu(x @ variables["c"]) @ variables["d"]
    return x @ variables["out"]


SHAPES = {"in": (3, 5), "a": (5, 4), "b": (4, 5), "c": (5, 6), "d": (6, 5), "out": (5, 2)}
VARIABLES = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
GRAPH = trace_graph(apply, VARIABLES, jnp.ones((1, 3)), depth_groups=True)


def draw(seed):
    generator = np.random.default_rng(seed)
    return {
        group.name: jnp.asarray(generator.random(group.size) < 0.6, jnp.float32)
        for group in GRAPH.groups
    }


def test_axes_of_any_owners():
    generator = np.random.default_rng(0)
    arrays = [
        tuple(
            generator.integers(-1, GRAPH.units, generator.integers(0, 9)).astype(np.int32)
            for _ in range(generator.integers(0, 4))
        )
        for _ in range(30)
    ]
    arrays += [(np.arange(GRAPH.units, dtype=np.int32).repeat(2),)]
    extents = jax.jit(traced_extents(GRAPH, arrays))
    for seed in range(4):
        gates = draw(seed)
        found = np.asarray(extents(gates))
        for row, expected in zip(found, exact_extents(GRAPH, arrays, gates), strict=True):
            assert tuple(row[: len(expected)]) == expected
            assert (row[len(expected) :] == 1).all()


@pytest.mark.parametrize(
    ("count", "ratio"), [(count_params, params_ratio), (count_macs, macs_ratio)]
)
def test_a_branch_that_is_left_out_counts_nothing(count, ratio):
    assert GRAPH.group("depth").size == 2
    traced = jax.jit(ratio(GRAPH))
    ones = {group.name: jnp.ones(group.size) for group in GRAPH.groups}
    # 5 x 4 and 4 x 5 weights are the first branch's, each used once for an example.
    assert count(GRAPH, ones) - count(GRAPH, ones | {"depth": jnp.array([0.0, 1.0])}) == 40
    for seed in range(6):
        gates = draw(seed)
        expected = count(GRAPH, gates) / count(GRAPH)
        assert float(traced(gates)) == pytest.approx(expected, rel=1e-6, abs=1e-7)
