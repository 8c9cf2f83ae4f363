"""Critics of the reward and of each cost, and the running statistics that scale what they learn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.search.config import Config
from rlprune_jax.search.environment import Environment
from rlprune_jax.search.policy import Mlp, observation_size
from rlprune_jax.types import PyTree


class Critics(NamedTuple):
    """Value functions; without critics their parameters are empty and their values 0.

    Attributes:
        init: ``(key) -> params``.
        values: ``(params, observations f32[G, N, F']) -> f32[G, N, 1 + K]``, reward first.
    """

    init: Callable[[jax.Array], PyTree]
    values: Callable[[PyTree, jax.Array], jax.Array]


def make_critics(env: Environment, config: Config) -> Critics:
    """One network for the reward and one for the costs, as ``config`` asks."""
    outputs = 1 + env.num_budgets
    if not config.critic:
        return Critics(lambda key: {}, lambda _, x: jnp.zeros((*x.shape[:-1], outputs)))
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

    return Critics(init, values)


class Running(NamedTuple):
    """Running statistics: size of the sample, mean f32[F], summed squared deviation f32[F]."""

    size: jax.Array
    mean: jax.Array
    squares: jax.Array


def running_init(size: int) -> Running:
    """Statistics of nothing yet."""
    return Running(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def running_update(running: Running, batch: jax.Array) -> Running:
    """Add a batch f32[B, F] (Chan et al. 1979, the parallel form of Welford's update)."""
    size = batch.shape[0]
    mean = batch.mean(0)
    squares = jnp.sum((batch - mean) ** 2, axis=0)
    total = running.size + size
    delta = mean - running.mean
    return Running(
        total,
        running.mean + delta * size / total,
        running.squares + squares + delta**2 * running.size * size / total,
    )


def running_std(running: Running) -> jax.Array:
    """Standard deviation f32[F]; 1 before anything was seen and where nothing varies."""
    variance = running.squares / jnp.maximum(running.size, 1.0)
    return jnp.where(variance > 1e-12, jnp.sqrt(jnp.maximum(variance, 1e-12)), 1.0)
