"""Retention against least squares in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import mlp_apply, small_mlp

from rlprune_jax import ones_gates, trace_graph
from rlprune_jax.units.retention import _explained, mean_retention, retention, unit_covariances

SMALL = small_mlp()
X = SMALL.data.calibration[0]
RETAINED = jax.jit(retention, static_argnums=0)
FOUND = unit_covariances(mlp_apply, SMALL.graph, SMALL.variables, (jnp.asarray(X),))


def explained(values, kept):
    """Return the fraction of the variance of all columns that the kept ones explain."""
    values = np.asarray(values, np.float64)
    centred = values - values.mean(0)
    if not kept.any():
        return 0.0
    fit, *_ = np.linalg.lstsq(centred[:, kept], centred, rcond=1e-5)
    return 1 - ((centred - centred[:, kept] @ fit) ** 2).sum() / (centred**2).sum()


def hidden_layers():
    v = {name: np.asarray(leaf, np.float64) for name, leaf in SMALL.variables.items()}
    first = np.maximum(X.astype(np.float64) @ v["a"] + v["a_bias"], 0)
    return {"a": first, "b": np.maximum(first @ v["b"], 0)}


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_retention_is_what_least_squares_explain(seed):
    rng = np.random.default_rng(seed)
    gates = {
        name: (rng.uniform(size=gate.shape) < 0.5).astype(np.float32)
        for name, gate in ones_gates(SMALL.graph).items()
    }
    found = RETAINED(SMALL.graph, FOUND, gates)
    for name, values in hidden_layers().items():
        expected = explained(values, gates[name] > 0)
        np.testing.assert_allclose(found[name], expected, atol=3e-3)


def test_all_units_retain_all_and_none_nothing():
    whole = ones_gates(SMALL.graph)
    for value in RETAINED(SMALL.graph, FOUND, whole).values():
        np.testing.assert_allclose(value, 1.0, atol=2e-4)
    for value in RETAINED(SMALL.graph, FOUND, jax.tree.map(jnp.zeros_like, whole)).values():
        assert float(value) == 0.0


def test_many_masks_in_one_program_are_as_one_by_one():
    rng = np.random.default_rng(0)
    masks = {
        name: (rng.uniform(size=(5, *gate.shape)) < 0.5).astype(np.float32)
        for name, gate in ones_gates(SMALL.graph).items()
    }
    together = jax.jit(jax.vmap(lambda gates: retention(SMALL.graph, FOUND, gates)))(masks)
    for number in range(5):
        alone = RETAINED(SMALL.graph, FOUND, {name: m[number] for name, m in masks.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][number], value, rtol=1e-5)


def test_positions_of_a_flattened_channel_are_rows():
    """A channel that is read at several places counts as one unit, all places as examples."""

    def apply(variables, x):
        hidden = jax.nn.relu(x @ variables["a"])  # [N, 3, 4], channels last
        return hidden.reshape(len(x), -1) @ variables["b"]

    keys = jax.random.split(jax.random.key(1), 3)
    variables = {"a": jax.random.normal(keys[0], (2, 4)), "b": jax.random.normal(keys[1], (12, 2))}
    x = jax.random.normal(keys[2], (64, 3, 2))
    graph = trace_graph(apply, variables, x)
    found = unit_covariances(apply, graph, variables, (x,))
    hidden = np.maximum(np.asarray(x) @ np.asarray(variables["a"]), 0).reshape(-1, 4)
    expected = np.cov(hidden.T)
    np.testing.assert_allclose(found.of["a"], expected / np.trace(expected), rtol=1e-4, atol=1e-6)


def test_layers_that_read_a_group_count_alike():
    """By hand: one layer reads both units alike, one after a factor of 3 of the first."""

    def apply(variables, x):
        hidden = x @ variables["a"]
        return hidden @ variables["b"] + (hidden * jnp.array([3.0, 1.0])) @ variables["c"]

    variables = {"a": jnp.eye(2), "b": jnp.ones((2, 1)), "c": jnp.ones((2, 1))}
    x = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    graph = trace_graph(apply, variables, x)
    found = unit_covariances(apply, graph, variables, (x,))
    np.testing.assert_allclose(found.of["a"], [[0.7, 0.0], [0.0, 0.3]], atol=1e-6)


@pytest.mark.parametrize("size", [64, 2048])
def test_units_that_say_the_same_are_no_trouble(size):
    rng = np.random.default_rng(0)
    one = np.outer(rng.normal(size=50), np.abs(rng.normal(size=size)))
    covariance = jnp.asarray(one.T @ one / np.trace(one.T @ one), jnp.float32)
    for keep in (0.02, 0.3, 1.0):
        gate = jnp.asarray(rng.uniform(size=size) < keep, jnp.float32).at[0].set(1)
        assert 0.98 < float(_explained(covariance, gate)) <= 1.0


def test_activations_that_never_vary_lose_nothing():
    zero = jax.tree.map(jnp.zeros_like, SMALL.variables)
    found = unit_covariances(mlp_apply, SMALL.graph, zero, (jnp.asarray(X),))
    gates = jax.tree.map(jnp.zeros_like, ones_gates(SMALL.graph))
    assert all(float(value) == 1.0 for value in retention(SMALL.graph, found, gates).values())


def test_what_loops_alone_read_does_not_count():
    def apply(variables, x):
        hidden = x @ variables["a"]

        def step(carry, weights):
            return carry + (hidden @ weights).sum(), None

        return jax.lax.scan(step, jnp.zeros(()), variables["b"])[0] + jnp.zeros((len(x), 1))

    variables = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3, 4))}
    x = jnp.ones((1, 2))
    graph = trace_graph(apply, variables, x)
    assert "a" in graph.names
    assert "a" not in unit_covariances(apply, graph, variables, (x,)).of


def test_the_mean_is_near_the_smallest():
    found = {"a": jnp.float32(0.9), "b": jnp.float32(0.1)}
    expected = ((0.9**-2 + 0.1**-2) / 2) ** -0.5
    np.testing.assert_allclose(mean_retention(found), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="groups=0"):
        mean_retention({})
