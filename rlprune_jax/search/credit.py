"""Give actions the credit for what was executed, without bias.

A projected candidate depends on what was sampled only up to what all of its actions share: masks
are the same when all priorities, or all logits, rise together. The gradient of the expected reward
is the mean of ``advantage * score``; any score's mean given what was executed serves as well, and
varies less (Rao and Blackwell). These are the two that the policies need.
"""

import jax
import jax.numpy as jnp

from rlprune_jax.kept import is_kept
from rlprune_jax.search.environment import Environment, best_units

FAR = 30.0
"""A threshold that no priority is near; what passes it is forced."""


def thresholds(
    env: Environment, priorities: jax.Array, masks: jax.Array, level: float | None = None
) -> jax.Array:
    """Return what each priority had to pass.

    Given the priorities of all other units, a unit is kept where its own is above this. So with
    logistic noise it is a Bernoulli of logit ``location - threshold``, whose score is that of the
    noise averaged over all noise that gives the same mask. A unit that is kept in any case has a
    threshold far below, and takes no credit.

    Exact where units cost alike: a cheap unit that was dropped might have fitted in what room was
    left. Where the environment rounds, a unit competes within its group.

    Args:
        env: the problem.
        priorities: f32[N, G, Cmax], logits and noise.
        masks: f32[N, G, Cmax] that came of them.
        level: of the priority that is kept; None where budgets decide.

    Returns:
        f32[N, G, Cmax].
    """
    kept = is_kept(masks) & env.alive
    dropped = env.alive & ~kept
    below = jnp.where(dropped, priorities, -jnp.inf)
    above = jnp.where(kept, priorities, jnp.inf)
    own_dropped, own_kept = below.max(-1, keepdims=True), above.min(-1, keepdims=True)
    if level is None:
        best_dropped = below.max((-2, -1), keepdims=True)
        # The best of each group are kept because min_keep says so; the others make room.
        free = kept & ~best_units(env, priorities)
        least_kept = jnp.where(free, priorities, jnp.inf).min((-2, -1), keepdims=True)
    else:
        best_dropped = least_kept = jnp.full((*kept.shape[:-2], 1, 1), level)
    if max(env.multiples) > 1:
        of_kept = jnp.where(dropped.any(-1, keepdims=True), own_dropped, best_dropped)
        of_dropped = jnp.where(kept.any(-1, keepdims=True), own_kept, least_kept)
    else:
        least = jnp.asarray(env.min_keep)[:, None]
        fewest = kept.sum(-1, keepdims=True) <= least
        of_kept = jnp.where(fewest, jnp.minimum(own_dropped, best_dropped), best_dropped)
        of_dropped = jnp.where(fewest, jnp.minimum(own_kept, least_kept), least_kept)
    return jnp.clip(jnp.where(kept, of_kept, of_dropped), -FAR, FAR)


def common_part(noise: jax.Array, std: jax.Array) -> jax.Array:
    """Return what Gaussian actions share.

    What is executed is the same when all actions move together; ``noise`` less this, over the
    variances, sums to zero and has the score's mean given what was executed.

    Args:
        noise: f32[G, N], actions less their means.
        std: f32[G, N], their deviations.

    Returns:
        f32[N], the mean over G by precision.

    Example:
        >>> common_part(jnp.array([[1.0], [3.0]]), jnp.ones((2, 1))).tolist()
        [2.0]
    """
    precision = 1.0 / jnp.square(std)
    return jnp.sum(noise * precision, axis=0) / jnp.sum(precision, axis=0)
