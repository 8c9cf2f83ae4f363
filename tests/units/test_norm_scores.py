"""Scales of norms, found by what the program does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import mlp_apply, small_cnn, small_mlp

from rlprune_jax import trace_graph
from rlprune_jax.units.norm_scores import norm_scale_scores
from rlprune_jax.units.weight_scores import magnitude_scores


def test_scales_of_batch_norm_are_the_scores_and_biases_are_not():
    small = small_cnn()
    params = dict(small.variables["params"])
    for number, name in enumerate(("norm1", "norm2", "norm3", "norm4")):
        size = len(params[name]["scale"])
        scale = jnp.linspace(-2.0, 3.0, size) + number
        params[name] = {"scale": scale, "bias": 100 * jnp.ones(size)}
    variables = {**small.variables, "params": params}
    found = norm_scale_scores(small.network.apply, small.graph, variables, small.network.example)
    for number, name in enumerate(small.graph.names, 1):
        np.testing.assert_allclose(found[name], np.abs(params[f"norm{number}"]["scale"]), rtol=1e-6)


def normed(variables, x):
    """A residual width with a scale behind each of its producers, and a hidden width without."""
    hidden = (x @ variables["a"]) * variables["g"] + variables["h"]
    hidden = hidden + (jax.nn.relu(hidden @ variables["b"]) @ variables["c"]) * variables["k"]
    return hidden @ variables["d"]


VARIABLES = {
    "a": jnp.ones((3, 2)),
    "b": jnp.array([[1.0, 3.0], [1.0, 3.0]]),
    "c": jnp.ones((2, 2)),
    "d": jnp.ones((2, 1)),
    "g": jnp.array([-1.0, 2.0]),
    "h": jnp.array([9.0, 9.0]),
    "k": jnp.array([3.0, 4.0]),
}


@pytest.mark.parametrize(
    "reduction, expected",
    [("sum", [4, 6]), ("mean", [2, 3]), ("max", [3, 4]), ("first", [1, 2])],
)
def test_scales_of_coupled_norms_are_reduced(reduction, expected):
    x = jnp.ones((1, 3))
    graph = trace_graph(normed, VARIABLES, x)
    found = norm_scale_scores(normed, graph, VARIABLES, (x,), reduction=reduction)
    np.testing.assert_allclose(found["a"], expected)
    # The group without a norm is at the level of the others, in the order of its magnitudes.
    norms = magnitude_scores(graph, VARIABLES)["b"]
    np.testing.assert_allclose(found["b"], np.asarray(norms) * np.mean(expected), rtol=1e-6)


def test_a_network_without_norms_is_refused():
    small = small_mlp()
    with pytest.raises(ValueError, match="score='norm_scale' needs norms with a scale"):
        norm_scale_scores(mlp_apply, small.graph, small.variables, (jnp.ones((1, 4)),))
