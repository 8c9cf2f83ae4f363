"""Compute advantages, how much better an outcome was than expected.

Time axis first, pure functions.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def terminal_rewards(reward: jax.Array, num_steps: int) -> jax.Array:
    """Spread the reward of finished episodes over their steps.

    Use it where a step wants a reward of its own. Zero until the last of T steps.

    Args:
        reward: f32[...].
        num_steps: T.

    Returns:
        f32[T, ...].

    Example:
        >>> terminal_rewards(jnp.array([2.0]), 3)[:, 0].tolist()
        [0.0, 0.0, 2.0]
    """
    return jnp.zeros((num_steps, *reward.shape), reward.dtype).at[-1].set(reward)


def generalized_advantage_estimation(
    r_t: jax.Array, discount_t: jax.Array, lambda_: ArrayLike, values: jax.Array
) -> jax.Array:
    """Estimate generalised advantages by one backward scan.

    Use it with learned critics; without them `leave_one_out` needs no value function.

    ``A_t = delta_t + discount_t * lambda * A_{t+1}`` with
    ``delta_t = r_t + discount_t * v_{t+1} - v_t``.

    Args:
        r_t: f32[T, ...], reward after step t.
        discount_t: f32[T, ...], 0 where the episode ended.
        lambda_: scalar in [0, 1]; 1 gives the return less the baseline.
        values: f32[T + 1, ...], value before each step and after the last.

    Returns:
        f32[T, ...].
    """
    chex.assert_equal_shape([r_t, discount_t, values[:-1]])
    delta_t = r_t + discount_t * values[1:] - values[:-1]

    def backward(advantage: jax.Array, step: tuple[jax.Array, jax.Array]):
        delta, discount = step
        advantage = delta + discount * lambda_ * advantage
        return advantage, advantage

    start = jnp.zeros_like(delta_t[0])
    _, advantages = jax.lax.scan(backward, start, (delta_t, discount_t), reverse=True)
    return advantages


def episode_advantages(
    reward: jax.Array, values: jax.Array, gamma: ArrayLike, lambda_: ArrayLike
) -> jax.Array:
    """Estimate advantages of episodes rewarded at their end.

    Args:
        reward: f32[N].
        values: f32[T, N], the critic before each step; the value after the last step is 0.
        gamma: discount of one step, scalar.
        lambda_: decay of the trace, scalar.

    Example:
        >>> reward, values = jnp.array([1.0]), jnp.zeros((3, 1))
        >>> episode_advantages(reward, values, gamma=1.0, lambda_=0.5)[:, 0].tolist()
        [0.25, 0.5, 1.0]
    """
    chex.assert_rank([reward, values], [1, 2])
    discount = jnp.full(values.shape, gamma).at[-1].set(0.0)
    after = jnp.concatenate([values, jnp.zeros_like(values[:1])])
    rewards = terminal_rewards(reward, values.shape[0])
    return generalized_advantage_estimation(rewards, discount, lambda_, after)


def leave_one_out(reward: jax.Array) -> jax.Array:
    """Subtract from each reward the mean of the others.

    Use it as an unbiased baseline of f32[N, ...] where no critic is learned.

    With one candidate there are no others, and the advantage is 0.

    Example:
        >>> leave_one_out(jnp.array([1.0, 2.0, 6.0])).tolist()
        [-3.0, -1.5, 4.5]
    """
    count = reward.shape[0]
    return (reward - reward.mean(0)) * (count / max(count - 1, 1))


def normalise(advantage: jax.Array, centre_only: bool = False) -> jax.Array:
    """Centre f32[...] and, unless ``centre_only``, divide by its standard deviation.

    Where all entries are equal, as identical masks make them, the result is exactly 0.

    Example:
        >>> normalise(jnp.array([1.0, 3.0])).tolist()
        [-1.0, 1.0]
    """
    centred = advantage - advantage.mean()
    if centre_only:
        return centred
    deviation = jnp.sqrt(jnp.maximum(jnp.mean(centred**2), 1e-30))
    scale = jnp.maximum(jnp.max(jnp.abs(advantage)), 1e-30)
    flat = deviation <= 1e-6 * scale  # rounding of the mean, not a difference between candidates
    return jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, deviation))


def rank_utilities(advantage: jax.Array, elite_fraction: float | None = None) -> jax.Array:
    """Replace advantages by utilities of their ranks.

    Utilities have mean 0 and standard deviation 1, and ties get the same.

    Ranks do not see outliers, so one collapsed network cannot drown the rest of a batch.

    Args:
        advantage: f32[N].
        elite_fraction: None for evenly spaced utilities; else the fraction of candidates that gets
            the logarithmic weights of CMA-ES (Hansen 2016, arXiv 1604.00772), the rest equal.

    Example:
        >>> rank_utilities(jnp.array([5.0, -100.0])).tolist()
        [1.0, -1.0]
    """
    chex.assert_rank(advantage, 1)
    count = advantage.shape[0]
    below = jnp.sum(advantage[:, None] > advantage[None, :], axis=1)
    tied = jnp.sum(advantage[:, None] == advantage[None, :], axis=1)
    rank = count - below - 0.5 * (tied - 1)  # 1 is the best
    if elite_fraction is None:
        utility = -rank
    else:
        cut = jnp.log(elite_fraction * count + 1.0)
        utility = jnp.maximum(cut - jnp.log(rank), 0.0)
    return normalise(utility)
