"""Scores of weights against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn

from rlprune_jax import trace_graph
from rlprune_jax.units.weight_scores import (
    geometric_median_scores,
    lamp_scores,
    magnitude_scores,
    reduce_slots,
)


def residual(variables, x):
    """A residual width of four units, made by ``a`` and ``c``."""
    hidden = x @ variables["a"]
    hidden = hidden + jax.nn.relu(hidden @ variables["b"]) @ variables["c"]
    return hidden @ variables["d"]


def residual_network(seed=0):
    random = np.random.default_rng(seed)
    shapes = {"a": (3, 4), "b": (4, 5), "c": (5, 4), "d": (4, 2)}
    variables = {
        name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    return trace_graph(residual, variables, jnp.ones((1, 3))), variables


GRAPH, VARIABLES = residual_network()
A, B, C = (np.asarray(VARIABLES[name], np.float64).T for name in "abc")
"""One row a unit."""


def test_magnitude_is_the_norm_of_each_filter_over_its_groups_mean():
    small = small_cnn()
    scores = magnitude_scores(small.graph, small.variables)
    for group in small.graph.groups:
        kernel = np.asarray(small.variables["params"][group.name]["kernel"], np.float64)
        norms = np.sqrt((kernel**2).sum((0, 1, 2)))
        np.testing.assert_allclose(scores[group.name], norms / norms.mean(), rtol=1e-5)


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    "reduction, reduce",
    [
        ("sum", lambda a, c: a + c),
        ("mean", lambda a, c: (a + c) / 2),
        ("max", np.maximum),
        ("first", lambda a, c: a),
    ],
)
def test_norms_of_coupled_producers_are_reduced(norm, reduction, reduce):
    found = magnitude_scores(GRAPH, VARIABLES, norm=norm, reduction=reduction, normaliser="none")
    powers = [(np.abs(each) ** norm).sum(1) for each in (A, C)]
    np.testing.assert_allclose(found["a"], reduce(*powers) ** (1 / norm), rtol=1e-5)
    np.testing.assert_allclose(found["b"], (np.abs(B) ** norm).sum(1) ** (1 / norm), rtol=1e-5)


def test_the_default_is_the_norm_of_all_weights_over_its_mean():
    norms = np.sqrt((A**2).sum(1) + (C**2).sum(1))
    np.testing.assert_allclose(
        magnitude_scores(GRAPH, VARIABLES)["a"], norms / norms.mean(), rtol=1e-5
    )


def test_lamp_is_a_square_over_those_no_smaller():
    found = lamp_scores(GRAPH, VARIABLES)
    for name, squares in (("a", (A**2).sum(1) + (C**2).sum(1)), ("b", (B**2).sum(1))):
        expected = [square / squares[squares >= square].sum() for square in squares]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
        assert found[name].max() == 1


def test_geometric_median_sums_the_distances_to_all_others():
    found = geometric_median_scores(GRAPH, VARIABLES, normaliser="none")

    def distances(rows):
        return np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(1)

    np.testing.assert_allclose(found["a"], distances(A) + distances(C), rtol=1e-5)
    np.testing.assert_allclose(found["b"], distances(B), rtol=1e-5)
    # A copy of another unit is what it can best do without.
    twins = VARIABLES | {"b": VARIABLES["b"].at[:, 1].set(VARIABLES["b"][:, 0])}
    small = np.argsort(geometric_median_scores(GRAPH, twins)["b"])[:2]
    rows = np.asarray(twins["b"]).T
    np.testing.assert_array_equal(sorted(small), sorted(np.argsort(distances(rows))[:2]))


def test_a_unit_that_owns_several_indices_counts_them_all():
    """Of a convolution that is flattened nothing is lost: conv makes the units, one row each."""
    small = small_cnn()
    group = small.graph.groups[0]
    kernel = np.asarray(small.variables["params"][group.name]["kernel"], np.float64)
    rows = np.moveaxis(kernel, 3, 0).reshape(group.size, -1)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(1)
    found = geometric_median_scores(small.graph, small.variables, normaliser="none")
    np.testing.assert_allclose(found[group.name], expected, rtol=1e-5)


def test_residual_branches_and_steps_of_loops_are_scored():
    block = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 4))}

    def blocks(v, x):
        x = x @ v["in"]
        for name in "ab":
            x = x + jax.nn.relu(x @ v[name]["up"]) @ v[name]["down"]
        return x @ v["out"]

    variables = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2)), "a": block}
    variables["b"] = jax.tree.map(lambda leaf: 3 * leaf, block)
    graph = trace_graph(blocks, variables, jnp.ones((1, 3)), depth_groups=True)
    for score in (magnitude_scores, geometric_median_scores):
        np.testing.assert_allclose(score(graph, variables)["depth"], [0.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(lamp_scores(graph, variables)["depth"], [0.1, 1.0], rtol=1e-6)


def test_weights_of_zero_and_equal_weights_give_finite_scores():
    for factor in (0.0, 1.0):
        equal = {name: factor * jnp.ones_like(leaf) for name, leaf in VARIABLES.items()}
        for score in (magnitude_scores, lamp_scores, geometric_median_scores):
            for values in jax.jit(lambda v, s=score: s(GRAPH, v))(equal).values():
                assert np.isfinite(values).all()


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="norm=0 must be a finite number above 0"):
        magnitude_scores(GRAPH, VARIABLES, norm=0)
    with pytest.raises(ValueError, match="reduction='last' must be one of 'sum'"):
        reduce_slots([jnp.ones(2)], "last")
