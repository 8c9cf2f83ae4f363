"""Learn values of the reward and of each cost.

With the running statistics that scale what critics learn.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.search.config import AgentConfig
from rlprune_jax.search.environment import Environment
from rlprune_jax.search.policy import Mlp, observation_size
from rlprune_jax.types import PyTree


class InitCritics(Protocol):
    """Draw the critics' parameters."""

    def __call__(self, key: jax.Array, /) -> PyTree:
        """Return parameters."""


class Values(Protocol):
    """Predict the reward and the costs of an episode."""

    def __call__(self, params: PyTree, observations: jax.Array, /) -> jax.Array:
        """Return f32[G, N, 1 + K] of observations f32[G, N, F'], reward first."""


class Critics(NamedTuple):
    """Bundle the value functions of reward and costs.

    Without critics their parameters are empty and their values 0.

    Attributes:
        init: ``(key) -> params``.
        values: ``(params, observations f32[G, N, F']) -> f32[G, N, 1 + K]``, reward first.
    """

    init: InitCritics
    values: Values


def make_critics(env: Environment, config: AgentConfig) -> Critics:
    """Make one network for the reward and one for costs."""
    outputs = 1 + env.num_budgets
    if not config.critic:
        return Critics(init=lambda key: {}, values=lambda _, x: jnp.zeros((*x.shape[:-1], outputs)))
    reward_net = Mlp(config.hidden_sizes, 1, 1.0)
    cost_net = Mlp(config.hidden_sizes, env.num_budgets, 1.0)

    def init(key: jax.Array) -> PyTree:
        first, second = jax.random.split(key)
        example = jnp.zeros(observation_size(env))
        return {"reward": reward_net.init(first, example), "cost": cost_net.init(second, example)}

    def values(params: PyTree, observations: jax.Array) -> jax.Array:
        reward = jnp.asarray(reward_net.apply(params["reward"], observations))
        cost = jnp.asarray(cost_net.apply(params["cost"], observations))
        return jnp.concatenate([reward, cost], axis=-1)

    return Critics(init=init, values=values)


class Running(NamedTuple):
    """Hold running statistics of a stream of vectors.

    Attributes:
        size: f32[], vectors seen.
        mean: f32[F].
        squares: f32[F], summed squared deviations.
    """

    size: jax.Array
    mean: jax.Array
    squares: jax.Array


def running_init(size: int) -> Running:
    """Return statistics of nothing yet."""
    return Running(size=jnp.zeros(()), mean=jnp.zeros(size), squares=jnp.zeros(size))


def running_update(running: Running, batch: jax.Array) -> Running:
    """Add a batch to running statistics.

    The parallel form of Welford's update (Chan et al. 1979) of a batch f32[B, F].

    Example:
        >>> running_update(running_init(1), jnp.array([[1.0], [3.0]])).mean.tolist()
        [2.0]
    """
    size = batch.shape[0]
    mean = batch.mean(0)
    squares = jnp.sum((batch - mean) ** 2, axis=0)
    total = running.size + size
    delta = mean - running.mean
    return Running(
        size=total,
        mean=running.mean + delta * size / total,
        squares=running.squares + squares + delta**2 * running.size * size / total,
    )


def running_std(running: Running) -> jax.Array:
    """Return the standard deviation of what was seen.

    f32[F], 1 before anything was seen and where nothing varies.
    """
    variance = running.squares / jnp.maximum(running.size, 1.0)
    return jnp.where(variance > 1e-12, jnp.sqrt(jnp.maximum(variance, 1e-12)), 1.0)
