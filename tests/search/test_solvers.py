import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from separable import (
    SIZES,
    attention,
    best_value,
    costs_of,
    gains,
    linear,
    problem,
    product,
    separable_value,
)

from rlprune_jax.search.levels import fine_levels, group_levels
from rlprune_jax.search.quadratic import fit_costs
from rlprune_jax.search.solvers import (
    BUCKETS,
    at_counts,
    choose_levels,
    solve_levels,
    threshold_levels,
)


def lost(levels):
    """What levels lose of the gains, f32[G, S]."""
    table, whole = gains(), gains()[np.arange(len(SIZES)), list(SIZES)]
    return jnp.asarray(
        whole[:, None] - np.take_along_axis(table, levels.astype(int), 1), jnp.float32
    )


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_dynamic_programming_is_exact_where_costs_fall_on_the_buckets(seed):
    rng = np.random.default_rng(seed)
    errors = rng.uniform(size=(4, 5)).astype(np.float32)
    costs = -np.sort(-rng.integers(0, 20, (4, 5)), axis=1)
    costs[:, -1] = 0
    capacity = 32  # a divisor of the buckets, so that every integer cost is whole buckets
    assert BUCKETS % capacity == 0
    found = np.asarray(jax.jit(choose_levels)(errors, costs.astype(np.float32), jnp.float32(32)))
    choices = np.array(list(itertools.product(range(5), repeat=4)))
    total = errors[np.arange(4), choices].sum(1)
    within = costs[np.arange(4), choices].sum(1) <= capacity
    assert costs[np.arange(4), found].sum() <= capacity
    assert errors[np.arange(4), found].sum() == pytest.approx(total[within].min(), rel=1e-5)


def test_without_capacity_every_group_gets_its_last_level():
    errors, costs = jnp.zeros((3, 2)).at[:, 1].set(1.0), jnp.ones((3, 2)).at[:, 1].set(0.0)
    for capacity in (0.0, -1.0):
        assert choose_levels(errors, costs, jnp.float32(capacity)).tolist() == [1, 1, 1]
    # What costs nothing is kept all the same.
    assert choose_levels(errors, 0 * costs, jnp.float32(-1.0)).tolist() == [0, 0, 0]


def test_one_budget_on_a_sum_is_solved_exactly():
    env = problem(lambda masks: linear(masks)[:1], [32.0 + sum((3, 1, 4, 2))])
    levels = fine_levels(env, 64)
    counts = jax.jit(lambda: solve_levels(env, fit_costs(env), levels, lost(levels)))()
    found = separable_value(np.asarray(counts)[None])[0]
    assert (costs_of(env, np.asarray(counts)[None]) <= env.limits).all()
    assert found == pytest.approx(best_value(env, separable_value), rel=1e-6)


@pytest.mark.parametrize(
    "cost_fn, limits, bound",
    [
        (product, [70.0], 0.99),
        (product, [30.0], 0.95),
        (attention, [60.0], 0.97),
        (linear, [30.0, 12.0], 0.98),
        (linear, [45.0, 9.0], 0.98),
    ],
)
def test_products_and_several_budgets_come_near_the_best(cost_fn, limits, bound):
    env = problem(cost_fn, limits)
    levels = fine_levels(env, 64)
    counts = jax.jit(lambda: solve_levels(env, fit_costs(env), levels, lost(levels)))()
    rows = np.asarray(counts)[None]
    assert (costs_of(env, rows) <= env.limits).all()
    best, least = best_value(env, separable_value), separable_value(np.ones((1, 4), int))[0]
    assert (separable_value(rows)[0] - least) >= bound * (best - least)


def test_an_unreachable_budget_gives_the_smallest_network():
    env = problem(linear, [1.0, 1.0], min_keep=2)
    levels = group_levels(env, 6)
    counts = solve_levels(env, fit_costs(env), levels, lost(levels))
    assert counts.tolist() == list(env.min_keep)
    assert threshold_levels(env, levels, lost(levels)).tolist() == list(env.min_keep)


def test_a_slack_budget_keeps_the_whole_network():
    env = problem(linear, [1000.0, 1000.0])
    levels = group_levels(env, 6)
    assert solve_levels(env, fit_costs(env), levels, lost(levels)).tolist() == list(SIZES)
    assert threshold_levels(env, levels, lost(levels)).tolist() == list(SIZES)


def test_a_threshold_is_the_least_that_meets_the_budgets():
    env = problem(product, [60.0])
    levels = group_levels(env, 6)
    errors = np.asarray(lost(levels))
    found = np.asarray(threshold_levels(env, levels, jnp.asarray(errors)))
    for threshold in np.unique(errors):
        level = (errors <= threshold).sum(1) - 1
        counts = np.take_along_axis(levels, level[:, None], 1)[:, 0]
        if (costs_of(env, counts[None]) <= env.limits).all():
            break
    assert found.tolist() == counts.tolist()


def test_what_lies_between_levels_is_interpolated():
    levels = jnp.array([[6, 3, 1, 1], [9, 5, 2, 1]])
    values = jnp.array([[0.0, 1.0, 2.0, 2.0], [0.0, 4.0, 7.0, 9.0]])
    assert at_counts(levels, values, jnp.array([2, 7])).tolist() == [1.5, 2.0]
    assert at_counts(levels, values, jnp.array([1, 9])).tolist() == [2.0, 0.0]
