"""Choose a level for every group, of least error within the budgets.

Budgets that bound sums over groups are met by dynamic programming; costs that are products of
widths are linearised about where the solution is, again and again while the target shrinks; several
budgets become one by prices that rise on those that are over.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search.environment import Environment, feasible
from rlprune_jax.search.levels import kept_counts, put_on_budgets
from rlprune_jax.search.quadratic import (
    QuadraticCosts,
    costs_of_counts,
    marginal_costs,
    model_costs,
)

BUCKETS = 1024  # parts that a budget is cut into
SHRINKING_STEPS, LAST_STEPS = 24, 6  # linearisations on the way to the budgets, and at them
PRICE_RATE = 4.0  # of the logarithm of a price, per relative excess


def choose_levels(errors: jax.Array, costs: jax.Array, capacity: jax.Array) -> jax.Array:
    """Choose levels of least summed error within a capacity.

    Dynamic programming over groups and what is spent. Costs are rounded to the nearest of
    ``BUCKETS`` parts of the capacity, so that the sum may be over it by half a part per group.

    Args:
        errors: f32[G, S].
        costs: f32[G, S], 0 for the last level.
        capacity: f32[]; without any every group gets its last level.

    Returns:
        i32[G], numbers of levels; the first among equals.

    Example:
        >>> errors = jnp.array([[0., 1., 5.], [0., 2., 9.]])
        >>> costs = jnp.array([[4., 2., 0.], [4., 2., 0.]])
        >>> choose_levels(errors, costs, jnp.float32(6.0)).tolist()
        [1, 0]
    """
    spent = jnp.arange(BUCKETS + 1)
    share = costs / jnp.where(capacity > 0, capacity, 1.0)
    parts = jnp.where(capacity > 0, share * BUCKETS, jnp.where(costs > 0, jnp.inf, 0.0))
    parts = jnp.round(jnp.clip(parts, 0, BUCKETS + 1)).astype(jnp.int32)

    def forward(best: jax.Array, group: tuple[jax.Array, jax.Array]):
        error, part = group
        left = spent[:, None] - part
        total = jnp.where(left >= 0, best[jnp.maximum(left, 0)] + error, jnp.inf)
        choice = jnp.argmin(total, axis=1)
        return jnp.min(total, axis=1), choice.astype(jnp.int32)

    _, choices = jax.lax.scan(forward, jnp.zeros(BUCKETS + 1), (errors, parts))

    def backward(left: jax.Array, group: tuple[jax.Array, jax.Array]):
        choice, part = group
        level = choice[left]
        return left - part[level], level

    _, levels = jax.lax.scan(backward, jnp.int32(BUCKETS), (choices, parts), reverse=True)
    return levels


def solve_levels(
    env: Environment, model: QuadraticCosts, levels: np.ndarray, errors: jax.Array
) -> jax.Array:
    """Return widths of least summed error on the budgets.

    From the whole network, targets shrink geometrically to the limits in 24 steps; at each, costs
    are what levels add with all else as it is, and `choose_levels` chooses. Six more steps at the
    limits, each put on the budgets; the best of these by error is returned. Exact for one budget on
    a cost that is a sum over groups, up to the rounding of `choose_levels`.

    Args:
        env: the problem, with traceable costs.
        model: from `fit_costs`.
        levels: i32[G, S], not rising.
        errors: f32[G, S], of each level.

    Returns:
        i32[G], within every reachable budget; between levels where that fills a budget.

    Reference:
        Shrinking targets and linearised costs are HALP's (Shen et al. 2022, arXiv 2110.10811).
    """
    table = jnp.asarray(levels)
    whole = jnp.asarray(env.sizes, jnp.int32)
    dense = jnp.maximum(_costs(env, model, whole), 1e-30)

    def step(counts: jax.Array, log_price: jax.Array, way: jax.Array):
        target = jnp.exp(way * jnp.log(env.limits) + (1 - way) * jnp.log(dense))
        return _linear_step(env, _Problem(model, table, errors), counts, log_price, target)

    def shrink(index: jax.Array, carry: tuple[jax.Array, jax.Array]):
        return step(*carry, (index + 1) / SHRINKING_STEPS)

    def settle(_: jax.Array, carry: tuple[jax.Array, ...]):
        counts, log_price, best, least = carry
        counts, log_price = step(counts, log_price, jnp.float32(1.0))
        counts = kept_counts(env, put_on_budgets(env, counts))
        error = at_counts(table, errors, counts).sum()
        better = error < least
        return (
            counts,
            log_price,
            jnp.where(better, counts, best),
            jnp.where(better, error, least),
        )

    start = (whole, jnp.zeros(env.num_budgets))
    counts, log_price = jax.lax.fori_loop(0, SHRINKING_STEPS, shrink, start)
    smallest = jnp.asarray(env.min_keep, jnp.int32)
    settled = (counts, log_price, smallest, jnp.float32(jnp.inf))
    return jax.lax.fori_loop(0, LAST_STEPS, settle, settled)[2]


class _Problem(NamedTuple):
    """What the steps of `solve_levels` have in common."""

    model: QuadraticCosts
    table: jax.Array
    errors: jax.Array


def _linear_step(
    env: Environment,
    problem: _Problem,
    counts: jax.Array,
    log_price: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best levels by linearised costs, and the prices after them."""
    model, table, errors = problem
    price = jax.nn.softmax(log_price)
    costs = _costs(env, model, counts)
    added = marginal_costs(env, model, counts, table)
    # What the groups add now, at widths that may lie between levels.
    present = jax.vmap(at_counts, (None, -1, None), -1)(table, added, counts)
    fixed = costs - present.sum(0)
    capacity = jnp.sum(price * (1.0 - fixed / target))
    choice = choose_levels(errors, jnp.sum(price * added / target, -1), capacity)
    chosen = jnp.take_along_axis(table, choice[:, None], axis=1)[:, 0]
    excess = _costs(env, model, chosen) / target - 1.0
    return chosen, log_price + PRICE_RATE * jnp.clip(excess, -1.0, 1.0)


def _costs(env: Environment, model: QuadraticCosts, counts: jax.Array) -> jax.Array:
    """Costs f32[K] at numbers of units i32[G], by the model where it is exact."""
    return jax.lax.cond(
        model.is_exact.all(),
        lambda: model_costs(env, model, counts),
        lambda: costs_of_counts(env, counts[None])[0],
    )


def at_counts(levels: jax.Array, values: jax.Array, counts: jax.Array) -> jax.Array:
    """Interpolate what is known at levels.

    f32[G] at i32[G], of f32[G, S] at levels i32[G, S], not rising.
    """
    return jax.vmap(lambda x, xs, ys: jnp.interp(x, xs[::-1], ys[::-1]))(counts, levels, values)


def threshold_levels(env: Environment, levels: np.ndarray, errors: jax.Array) -> jax.Array:
    """Return the narrowest levels of error within one threshold.

    The threshold is the least whose levels are on the budgets, found by bisection on the cost
    function itself.

    Args:
        env: the problem, with traceable costs.
        levels: i32[G, S], not rising.
        errors: f32[G, S], not falling.

    Returns:
        i32[G]; ``min_keep`` where no threshold is enough.

    Reference:
        FastNAS of ModelOpt.
    """
    table, candidates = jnp.asarray(levels), jnp.sort(errors.reshape(-1))

    def at(threshold: jax.Array) -> jax.Array:
        level = jnp.sum(errors <= threshold, axis=1) - 1
        level = jnp.maximum(level, 0)  # the whole group, whose error is 0
        return jnp.take_along_axis(table, level[:, None], axis=1)[:, 0]

    def narrow(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = carry
        middle = (low + high) // 2
        costs = costs_of_counts(env, at(candidates[middle])[None])[0]
        good = feasible(costs, env.limits)
        return jnp.where(good, low, middle + 1), jnp.where(good, middle, high)

    last = candidates.size - 1
    steps = int(np.ceil(np.log2(candidates.size))) + 1
    found, _ = jax.lax.fori_loop(0, steps, narrow, (jnp.int32(0), jnp.int32(last)))
    return at(candidates[jnp.minimum(found, last)])
