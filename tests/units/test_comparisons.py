"""Normalisers, costs and scopes against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_mlp

from rlprune_jax import ones_gates, trace_graph
from rlprune_jax.models import create_model
from rlprune_jax.units.comparisons import (
    isomorphic_scopes,
    isomorphic_scores,
    marginal_costs,
    normalise_scores,
    per_cost,
)

SMALL = small_mlp()
RANDOM = np.random.default_rng(0)
SCORES = {"a": RANDOM.uniform(0.1, 2, 8), "b": RANDOM.uniform(0.1, 2, 6)}
GATES = {"a": jnp.array([1.0, 1, 0, 1, 0, 1, 1, 1]), "b": jnp.array([0.0, 1, 1, 1, 1, 0])}


def lamp(s):
    return np.array([each / s[s >= each].sum() for each in s])


ORACLES = {
    "none": lambda s: s,
    "mean": lambda s: s / s.mean(),
    "max": lambda s: s / s.max(),
    "sum": lambda s: s / s.sum(),
    "standard": lambda s: (s - s.mean()) / s.std(),
    "lamp": lamp,
}


@pytest.mark.parametrize("name", ORACLES)
def test_normalisers_are_as_written(name):
    found = normalise_scores(SMALL.graph, SCORES, name)
    some = jax.jit(lambda s, g: normalise_scores(SMALL.graph, s, name, g))(SCORES, GATES)
    for group, scores in SCORES.items():
        np.testing.assert_allclose(found[group], ORACLES[name](scores), rtol=1e-5, atol=1e-6)
        kept = np.asarray(GATES[group]) > 0
        expected = np.zeros(len(scores))
        expected[kept] = ORACLES[name](scores[kept])
        np.testing.assert_allclose(some[group], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0])
def test_a_constant_score_stays_finite(name, value):
    constant = {group: np.full(len(scores), value) for group, scores in SCORES.items()}
    for group, found in normalise_scores(SMALL.graph, constant, name).items():
        assert np.isfinite(found).all()
        if name != "lamp":
            assert np.ptp(found) == 0
        elif value:
            # Of equals the first is kept longest: its sum is over itself alone.
            np.testing.assert_allclose(found, 1 / (1 + np.arange(len(SCORES[group]))), rtol=1e-5)


def test_nan_is_not_hidden():
    broken = SCORES | {"a": np.full(8, np.nan)}
    for name in ORACLES:
        assert np.isnan(normalise_scores(SMALL.graph, broken, name)["a"]).any()


def test_tiny_scores_are_normalised_as_others():
    tiny = {group: 1e-20 * scores for group, scores in SCORES.items()}
    found = normalise_scores(SMALL.graph, tiny, "mean")
    np.testing.assert_allclose(found["a"], SCORES["a"] / SCORES["a"].mean(), rtol=1e-5)


def params(gates):
    """Parameters of the MLP, as in ``small_mlp``."""
    first, second = gates["a"].sum(), gates["b"].sum()
    return (5 * first + first * second + 3 * second)[None]


@pytest.mark.parametrize("gates", [None, GATES])
def test_marginal_costs_are_those_of_removing_each_unit(gates):
    found = jax.jit(lambda: marginal_costs(SMALL.graph, params, gates))()
    at = ones_gates(SMALL.graph) if gates is None else gates
    for name, size in (("a", 8), ("b", 6)):
        for unit in range(size):
            without = at | {name: at[name].at[unit].set(0.0)}
            assert float(found[name][unit]) == float(params(at)[0] - params(without)[0])


def test_scores_per_cost_are_divided_and_several_costs_are_added():
    # By hand: a unit of the first group owns 4 + 1 + 6 parameters, one of the second 8 + 3.
    found = per_cost(SMALL.graph, SCORES, params)
    np.testing.assert_allclose(found["a"], SCORES["a"] / 11, rtol=1e-6)
    twice = per_cost(SMALL.graph, SCORES, lambda gates: jnp.tile(params(gates), 2))
    np.testing.assert_allclose(twice["b"], SCORES["b"] / 22, rtol=1e-6)
    free = per_cost(SMALL.graph, SCORES, lambda gates: jnp.zeros(1))
    np.testing.assert_allclose(free["b"], SCORES["b"], rtol=1e-6)


def test_places_are_those_within_a_scope():
    assert isomorphic_scopes(SMALL.graph) == (0, 1)  # the first has a bias
    found = isomorphic_scores(SMALL.graph, SCORES)
    for name, scores in SCORES.items():
        order = np.argsort(-scores)
        expected = np.empty(len(scores))
        expected[order] = 1 - np.arange(len(scores)) / len(scores)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    some = isomorphic_scores(SMALL.graph, SCORES, GATES)
    for name, scores in SCORES.items():
        kept = np.asarray(GATES[name]) > 0
        assert some[name][int(np.argmax(np.where(kept, scores, -1)))] == 1
        assert (np.asarray(some[name])[~kept] <= 0).all()
        assert (np.asarray(some[name])[kept] > 0).all()


def test_groups_of_one_kind_share_a_scale_and_others_do_not():
    """Three hidden widths: two between equal dots are one scope, that with a bias is its own."""

    def apply(v, x):
        return (((x @ v["a"]) @ v["b"]) @ v["c"] + v["bias"]) @ v["d"]

    variables = {name: jnp.ones((2, 2)) for name in "abcd"} | {"bias": jnp.ones(2)}
    graph = trace_graph(apply, variables, jnp.ones((1, 2)))
    assert isomorphic_scopes(graph) == (0, 0, 1)
    scores = {"a": np.array([5.0, 1]), "b": np.array([9.0, 3]), "c": np.array([1e-6, 1e-5])}
    found = {name: row.tolist() for name, row in isomorphic_scores(graph, scores).items()}
    assert found == {"a": [0.75, 0.25], "b": [1.0, 0.5], "c": [0.5, 1.0]}


def test_inner_and_residual_widths_of_a_resnet_are_different_scopes():
    module = create_model("resnet20", 4, width=0.25)
    x = jnp.zeros((1, 8, 8, 1))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    graph = trace_graph(lambda v, x: module.apply(v, x, train=False), shapes, x)
    inner = [name.endswith("conv1") for name in graph.names]
    scopes = np.array(isomorphic_scopes(graph))
    assert len(set(scopes[np.array(inner)])) == 1
    assert scopes[inner.index(True)] not in scopes[~np.array(inner)]


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(ValueError, match="normaliser='median' must be one of 'none'"):
        normalise_scores(SMALL.graph, SCORES, "median")
