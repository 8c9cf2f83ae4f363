"""The seam that every search goes through: init, ask, tell."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.search.environment import feasible
from rlprune_jax.types import PyTree

Metrics = dict[str, jax.Array]
"""What one iteration reports: scalars, or f32[K] per budget."""


class Candidates(NamedTuple):
    """What ``ask`` proposes: N masks, and what ``tell`` needs to learn from them.

    Attributes:
        masks: f32[N, G, Cmax], 1 kept and 0 pruned.
        trajectory: whatever pytree the searcher wants back.
    """

    masks: jax.Array
    trajectory: PyTree


class Searcher(NamedTuple):
    """A search as three pure functions over an arrays-only state.

    Attributes:
        init: ``(hparams, key) -> state``.
        ask: ``(state, key) -> (candidates, state)``.
        tell: ``(state, candidates, rewards f32[N], costs f32[N, K]) -> (state, metrics)``.
    """

    init: Callable[..., PyTree]
    ask: Callable[[PyTree, jax.Array], tuple[Candidates, PyTree]]
    tell: Callable[[PyTree, Candidates, jax.Array, jax.Array], tuple[PyTree, Metrics]]


def worst_for_missing(rewards: jax.Array) -> jax.Array:
    """Rewards f32[N] in which NaN and infinities count as the worst finite one of the batch."""
    finite = jnp.isfinite(rewards)
    worst = jnp.min(jnp.where(finite, rewards, jnp.inf))
    return jnp.where(finite, rewards, jnp.where(jnp.isfinite(worst), worst, 0.0))


def worst_for_missing_costs(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """Costs f32[N, K] in which what is not finite counts as twice over budget, or the worst."""
    finite = jnp.isfinite(costs)
    worst = jnp.max(jnp.where(finite, costs, -jnp.inf), axis=0)
    return jnp.where(finite, costs, jnp.maximum(worst, 2.0 * limits))


def violation(costs: jax.Array, limits: jax.Array) -> jax.Array:
    """Sum over budgets of how far costs f32[..., K] pass limits f32[K], relative to them."""
    return jnp.sum(jnp.maximum(costs / limits - 1.0, 0.0), axis=-1)


def batch_metrics(rewards: jax.Array, costs: jax.Array, limits: jax.Array) -> Metrics:
    """What any searcher can say of rewards f32[N] and costs f32[N, K].

    Returns:
        ``reward_mean``, ``reward_best`` (over the feasible ones, -inf if none),
        ``cost_mean`` f32[K], ``feasible_fraction``, ``missing_fraction`` (rewards not finite).
    """
    finite = jnp.isfinite(rewards)
    good = feasible(costs, limits)
    return {
        "reward_mean": jnp.mean(worst_for_missing(rewards)),
        "reward_best": jnp.max(jnp.where(finite & good, rewards, -jnp.inf)),
        "cost_mean": jnp.mean(worst_for_missing_costs(costs, limits), axis=0),
        "feasible_fraction": jnp.mean(good.astype(jnp.float32)),
        "missing_fraction": jnp.mean(1.0 - finite.astype(jnp.float32)),
    }


def check_told(
    masks: jax.Array, rewards: jax.Array, costs: jax.Array, num_budgets: int
) -> tuple[jax.Array, jax.Array]:
    """Rewards and costs as float32, or a ValueError that names the wrong one."""
    rewards, costs = jnp.asarray(rewards, jnp.float32), jnp.asarray(costs, jnp.float32)
    count = masks.shape[0]
    if rewards.shape != (count,):
        raise ValueError(f"rewards has shape {rewards.shape}: needs ({count},), one per candidate")
    if costs.shape != (count, num_budgets):
        raise ValueError(f"costs has shape {costs.shape}: needs ({count}, {num_budgets} budgets)")
    return rewards, costs


def check_positive(argument: str, value: int) -> None:
    """Raise ValueError unless an integer argument is at least 1."""
    if value < 1:
        raise ValueError(f"{argument}={value}: needs at least 1")
