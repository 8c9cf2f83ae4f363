import jax
import jax.numpy as jnp
import numpy as np
import pytest
from separable import SIZES, attention, linear, problem, product
from small import small_cnn

from rlprune_jax.costs import constrain, count_macs, count_params, limits
from rlprune_jax.search.levels import group_levels
from rlprune_jax.search.quadratic import (
    costs_of_counts,
    fit_costs,
    marginal_costs,
    model_costs,
)
from rlprune_jax.units.weight_scores import magnitude_scores
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.pruning import search_environment


def random_counts(env, count=20):
    rng = np.random.default_rng(1)
    return rng.integers(env.min_keep, np.array(env.sizes) + 1, (count, env.num_groups))


def test_the_model_counts_parameters_and_macs_of_a_network():
    small = small_cnn()
    constraints = constrain(small.network, ["params=0.4", "macs=0.4"])
    scores = magnitude_scores(small.graph, small.variables)
    env = search_environment(small.graph, constraints, scores, PruneConfig(min_keep=1))
    assert limits(constraints).shape == (2,)
    model = jax.jit(fit_costs)(env)
    assert model.is_exact.all()
    rows = random_counts(env)
    found = np.asarray(model_costs(env, model, jnp.asarray(rows)))
    for row, costs in zip(rows, found, strict=True):
        gates = {
            name: jnp.arange(size) < kept
            for name, size, kept in zip(env.names, env.sizes, row, strict=True)
        }
        expected = [
            count(small.graph, gates) / count(small.graph) for count in (count_params, count_macs)
        ]
        np.testing.assert_allclose(costs, expected, rtol=1e-5)


@pytest.mark.parametrize("least, multiple", [(0, 1), (1, 3), (4, 1)])
@pytest.mark.parametrize("cost_fn, budgets", [(linear, 2), (product, 1)])
def test_sums_and_products_are_exact_whatever_may_be_kept(cost_fn, budgets, least, multiple):
    env = problem(cost_fn, [30.0] * budgets, min_keep=least, round_to=multiple)
    model = fit_costs(env)
    assert model.is_exact.all()
    rows = jnp.asarray(random_counts(env)) // multiple * multiple
    rows = jnp.clip(rows, jnp.asarray(env.min_keep), jnp.asarray(SIZES))
    expected = costs_of_counts(env, rows)
    np.testing.assert_allclose(model_costs(env, model, rows), expected, rtol=1e-5)


def test_a_product_of_three_widths_is_told_from_a_quadratic():
    model = fit_costs(problem(attention, [30.0]))
    assert not model.is_exact.any()


@pytest.mark.parametrize("cost_fn", [product, attention])
def test_what_a_level_adds_is_a_difference_of_costs(cost_fn):
    env = problem(cost_fn, [30.0])
    levels, counts = group_levels(env, 4), np.array([3, 5, 2, 6])
    added = jax.jit(marginal_costs)(env, fit_costs(env), jnp.asarray(counts), jnp.asarray(levels))
    for group in range(4):
        rows = np.tile(counts, (4, 1))
        rows[:, group] = levels[group]
        costs = costs_of_counts(env, jnp.asarray(rows))
        np.testing.assert_allclose(added[group], costs - costs[-1], rtol=1e-4, atol=1e-4)
