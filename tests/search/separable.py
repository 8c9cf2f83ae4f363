"""Problems whose best widths are known by enumeration."""

import itertools

import jax.numpy as jnp
import numpy as np

from rlprune_jax.search import make_environment

SIZES = (6, 9, 4, 7)
PRICES = (3.0, 1.0, 4.0, 2.0)  # of a unit, by group


def gains():
    """What the best k units of each group are worth, concave in k, f64[G, Cmax + 1]."""
    rng = np.random.default_rng(5)
    scale, power = rng.uniform(1.0, 6.0, len(SIZES)), rng.uniform(0.25, 0.9, len(SIZES))
    counts = np.arange(max(SIZES) + 1)
    return scale[:, None] * (counts / np.array(SIZES)[:, None]) ** power[:, None]


def reward(masks, key=None):
    """The sum over groups of what their number of units is worth, f32[N]."""
    table = jnp.asarray(gains(), jnp.float32)
    counts = masks.sum(-1).astype(jnp.int32)
    return jnp.take_along_axis(table[None], counts[..., None], axis=-1)[..., 0].sum(-1)


def linear(masks):
    """A price per unit, and the number of units, f32[2]."""
    counts = masks.sum(-1)
    return jnp.stack([counts @ jnp.asarray(PRICES), counts.sum()])


def product(masks):
    """Products of neighbouring widths, as MACs of a chain, f32[1]."""
    counts = jnp.concatenate([jnp.array([3.0]), masks.sum(-1), jnp.array([5.0])])
    return jnp.sum(counts[:-1] * counts[1:])[None]


def attention(masks):
    """A product of three widths, which no quadratic is, f32[1]."""
    counts = masks.sum(-1)
    return (counts[0] * counts[1] * counts[2] + counts[3])[None]


def problem(cost_fn, limits, scores=None, **options):
    """Return an environment over these groups, better units first."""
    if scores is None:
        scores = [np.arange(size, 0, -1.0) for size in SIZES]
    return make_environment(SIZES, scores, np.ones((4, 1)), limits, cost_fn=cost_fn, **options)


def best_value(env, value, allowed=None):
    """The largest value within the budgets over all widths, by enumeration.

    Args:
        env: the problem.
        value: ``f64[M] of counts i64[M, G]``.
        allowed: numbers of units per group; by default all from ``min_keep`` on.
    """
    if allowed is None:
        allowed = [
            range(least, size + 1) for least, size in zip(env.min_keep, env.sizes, strict=True)
        ]
    counts = np.array(list(itertools.product(*allowed)))
    costs = np.asarray(costs_of(env, counts))
    good = (costs <= np.asarray(env.limits)).all(-1)
    return value(counts)[good].max()


def costs_of(env, counts):
    """Costs f32[M, K] of keeping numbers of units."""
    places = np.arange(env.num_units)
    masks = jnp.asarray(places < counts[..., None], jnp.float32)
    return jnp.vectorize(env.cost_fn, signature="(g,c)->(k)")(masks)


def separable_value(counts):
    """The reward of numbers of units i64[M, G]."""
    return gains()[np.arange(len(SIZES)), counts].sum(-1)
