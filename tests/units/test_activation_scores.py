"""Activations against NumPy, at the places where they are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import mlp_apply, small_mlp

from rlprune_jax import trace_graph
from rlprune_jax.units.activation_scores import activation_scores

SMALL = small_mlp()
X = SMALL.data.calibration[0]


def hidden_layers():
    v = {name: np.asarray(leaf, np.float64) for name, leaf in SMALL.variables.items()}
    first = np.maximum(X.astype(np.float64) @ v["a"] + v["a_bias"], 0)
    return {"a": first, "b": np.maximum(first @ v["b"], 0)}


@pytest.mark.parametrize(
    "statistic, expected",
    [("absolute", lambda h: np.abs(h).mean(0)), ("variance", lambda h: h.var(0))],
)
def test_statistics_are_those_of_what_is_read(statistic, expected):
    found = jax.jit(
        lambda v, x: activation_scores(
            mlp_apply, SMALL.graph, v, (x,), statistic=statistic, normaliser="none"
        )
    )(SMALL.variables, jnp.asarray(X))
    for name, values in hidden_layers().items():
        np.testing.assert_allclose(found[name], expected(values), rtol=1e-4, atol=1e-6)


def test_scores_are_over_the_groups_mean_unless_told():
    found = activation_scores(mlp_apply, SMALL.graph, SMALL.variables, (jnp.asarray(X),))
    for values in found.values():
        np.testing.assert_allclose(values.mean(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "reduction, expected", [("sum", 4.0), ("mean", 2.0), ("max", 3.0), ("first", 1.0)]
)
def test_layers_that_read_a_unit_are_reduced(reduction, expected):
    """By hand: the first layer reads 1, the second three times as much."""

    def apply(variables, x):
        hidden = x @ variables["a"]
        return hidden @ variables["b"] + (3 * hidden) @ variables["c"]

    variables = {"a": jnp.eye(2), "b": jnp.ones((2, 1)), "c": jnp.ones((2, 1))}
    x = jnp.ones((1, 2))
    graph = trace_graph(apply, variables, x)
    found = activation_scores(apply, graph, variables, (x,), reduction=reduction, normaliser="none")
    assert found["a"].tolist() == [expected, expected]


def test_a_unit_of_many_indices_is_the_mean_over_them():
    """A unit of two entries each, read after a reshape as four features: 1, 2 and 3, 4."""

    def apply(variables, x):
        hidden = (x[:, :, None] * jnp.ones((1, 1, 2))) * jnp.array([[1.0, 2.0]])
        units = jnp.einsum("nip,iu->nup", hidden, variables["a"])
        return units.reshape(len(x), -1) @ variables["b"]

    variables = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.ones((4, 1))}
    x = jnp.ones((2, 1))
    graph = trace_graph(apply, variables, x)
    found = activation_scores(apply, graph, variables, (x,), normaliser="none")
    np.testing.assert_allclose(found["a"], [1.5, 4.5])


def test_units_that_two_layers_read_in_parts_are_scored():
    def apply(variables, x):
        first, second = jnp.split(x @ variables["a"], 2, axis=1)
        return first @ variables["b"] + second @ variables["c"]

    variables = {"a": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "b": jnp.eye(2), "c": jnp.eye(2)}
    x = jnp.ones((1, 1))
    graph = trace_graph(apply, variables, x)
    found = activation_scores(apply, graph, variables, (x,), normaliser="none")
    for name, values in found.items():
        assert np.asarray(values).min() >= 1, name
    assert sorted(np.concatenate(list(found.values())).tolist()) == [1.0, 2.0, 3.0, 4.0]


def test_what_loops_alone_read_is_refused_by_name():
    def apply(variables, x):
        hidden = x @ variables["a"]

        def step(carry, weights):
            return carry + (hidden @ weights).sum(), None

        return jax.lax.scan(step, jnp.zeros(()), variables["b"])[0] + jnp.zeros((len(x), 1))

    variables = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3, 4))}
    x = jnp.ones((1, 2))
    graph = trace_graph(apply, variables, x)
    assert "a" in graph.names
    with pytest.raises(ValueError, match="no layer that reads the units of 'a' but inside"):
        activation_scores(apply, graph, variables, (x,))


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="statistic='median' must be one of 'absolute'"):
        activation_scores(mlp_apply, SMALL.graph, SMALL.variables, (X,), statistic="median")
