"""Model costs as quadratic functions of the numbers of units kept.

Parameters and MACs of a network are sums of products of two widths, so the model is exact there:
``c(u) = c_0 + a u + u' B u`` of widths u that are scaled to go from 0 at ``min_keep`` to 1. It is
found from the cost function at a few widths, G (G + 3) / 2 + 1 of them, and tested at others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search.environment import Environment, candidate_costs
from rlprune_jax.search.levels import counts_to_masks

AT_ONCE = 64  # masks whose costs are computed side by side
TRIALS = 16  # random widths at which the model is tested
TOLERANCE = 1e-4  # relative error from which the cost function itself is asked


class QuadraticCosts(NamedTuple):
    """Hold the coefficients of costs over scaled widths.

    Attributes:
        constant: f32[K], costs of the smallest network.
        linear: f32[K, G].
        product: f32[K, G, G], symmetric.
        is_exact: bool[K], whether the model agreed with the cost function where it was tested.
    """

    constant: jax.Array
    linear: jax.Array
    product: jax.Array
    is_exact: jax.Array


def fit_costs(env: Environment) -> QuadraticCosts:
    """Fit the quadratic model to the environment's costs.

    Args:
        env: the problem, with traceable costs.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda m: m[0].sum()[None] * m[1].sum() / 6)
        >>> model = fit_costs(env)
        >>> model_costs(env, model, jnp.array([2, 2])).tolist(), bool(model.is_exact[0])
        ([0.6666666865348816], True)
    """
    groups = env.num_groups
    least, sizes = np.array(env.min_keep), np.array(env.sizes)
    middle = _middle(env)
    first, second = np.triu_indices(groups, 1)
    rows = np.tile(least, (1 + 2 * groups + len(first), 1))
    each = np.arange(groups)
    rows[1 + each, each] = sizes
    rows[1 + groups + each, each] = middle
    pairs = 1 + 2 * groups + np.arange(len(first))
    rows[pairs, first] = sizes[first]
    rows[pairs, second] = sizes[second]
    found = costs_of_counts(env, jnp.asarray(rows, jnp.int32))
    constant = found[0]
    whole, half = found[1 : 1 + groups] - constant, found[1 + groups : 1 + 2 * groups] - constant
    # Of a u + b u**2 the value at 1 and at u; a group without a width between is linear.
    place = jnp.asarray((middle - least) / np.maximum(sizes - least, 1), jnp.float32)[:, None]
    inside = (place > 0) & (place < 1)
    square = jnp.where(inside, (half - place * whole) / jnp.where(inside, place**2 - place, 1), 0)
    mixed = found[1 + 2 * groups :] - constant - whole[first] - whole[second]
    product = jnp.zeros((env.num_budgets, groups, groups)).at[:, each, each].set(square.T)
    product = product.at[:, first, second].set(mixed.T / 2).at[:, second, first].set(mixed.T / 2)
    model = QuadraticCosts(
        constant=constant,
        linear=(whole - square).T,
        product=product,
        is_exact=jnp.zeros(env.num_budgets, bool),
    )
    return model._replace(is_exact=_agrees(env, model))


def _middle(env: Environment) -> np.ndarray:
    """An allowed number of units near the middle of each group, i[G]."""
    least, sizes = np.array(env.min_keep), np.array(env.sizes)
    multiples = np.array(env.multiples)
    middle = (least + sizes) // 2 // multiples * multiples
    return np.clip(middle, least, sizes)


def _agrees(env: Environment, model: QuadraticCosts) -> jax.Array:
    """Whether the model is right at random widths and of the whole network, bool[K]."""
    ratios = np.random.default_rng(0).uniform(size=(TRIALS, env.num_groups))
    room = np.array(env.sizes) - np.array(env.min_keep)
    multiples = np.array(env.multiples)
    counts = (np.array(env.min_keep) + ratios * room).astype(int) // multiples * multiples
    counts = np.clip(counts, env.min_keep, env.sizes)
    rows = jnp.asarray(np.concatenate([[env.sizes], counts]), jnp.int32)
    exact = costs_of_counts(env, rows)
    error = jnp.abs(model_costs(env, model, rows) - exact)
    return jnp.all(error <= TOLERANCE * jnp.abs(exact) + 1e-12, axis=0)


def costs_of_counts(env: Environment, counts: jax.Array) -> jax.Array:
    """Return the cost function's values at numbers of units.

    f32[M, K] of i32[M, G], a few at a time.
    """

    def one(row: jax.Array) -> jax.Array:
        return candidate_costs(env, counts_to_masks(env, row))

    return jax.lax.map(one, counts, batch_size=min(AT_ONCE, len(counts)))


def model_costs(env: Environment, model: QuadraticCosts, counts: jax.Array) -> jax.Array:
    """Return the model's costs at numbers of units.

    f32[..., K] of i32[..., G].
    """
    width = _scaled(env, counts)
    squares = jnp.einsum("kgh,...g,...h->...k", model.product, width, width)
    return model.constant + width @ model.linear.T + squares


def marginal_costs(
    env: Environment, model: QuadraticCosts, counts: jax.Array, levels: jax.Array
) -> jax.Array:
    """Return what each level of a group adds.

    All other groups stay as they are.

    The cost with group g at level s and the others at ``counts``, less that with g at its last
    level. Where the model is exact it answers, else the cost function.

    Args:
        env: the problem.
        model: from `fit_costs`.
        counts: i32[G].
        levels: i32[G, S], not rising.

    Returns:
        f32[G, S, K], not below 0.
    """

    def modelled() -> jax.Array:
        width, other = _scaled(env, counts), _scaled(env, levels.T).T
        slope = model.linear + 2 * model.product @ width  # f32[K, G]
        square = jnp.diagonal(model.product, axis1=1, axis2=2)
        change = other - width[:, None]
        found = slope[:, :, None] * change + square[:, :, None] * change**2
        return jnp.moveaxis(found, 0, -1)

    def asked() -> jax.Array:
        def of_group(group: jax.Array) -> jax.Array:
            rows = jax.vmap(lambda count: counts.at[group].set(count))(levels[group])
            return costs_of_counts(env, rows)

        return jax.lax.map(of_group, jnp.arange(env.num_groups))

    added = jax.lax.cond(model.is_exact.all(), modelled, asked)
    return jnp.maximum(added - added[:, -1:], 0.0)


def _scaled(env: Environment, counts: jax.Array) -> jax.Array:
    """Widths from 0 at ``min_keep`` to 1 of the whole group, f32[..., G]."""
    least = jnp.asarray(env.min_keep)
    room = jnp.maximum(jnp.asarray(env.sizes) - least, 1)
    return (counts - least) / room
