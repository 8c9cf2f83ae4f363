"""Searches without learning of a policy, on the same seam: what an agent has to beat.

Where the environment has traceable costs, every candidate is projected onto the budgets.
``init(hparams, key)`` ignores ``hparams``, so that a baseline stands wherever an agent does.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.search.environment import (
    Environment,
    best_units,
    feasible,
    gates_to_masks,
    logit,
    project_logits,
    project_priorities,
    project_ratios,
    ratios_to_masks,
    round_masks,
    starting_logits,
)
from rlprune_jax.search.searcher import (
    Candidates,
    Metrics,
    Searcher,
    batch_metrics,
    check_positive,
    check_told,
    violation,
    worst_for_missing,
    worst_for_missing_costs,
)
from rlprune_jax.types import Gates, PyTree


class Nothing(NamedTuple):
    """State of a search that does not learn: i32 iterations seen."""

    iteration: jax.Array


class Distribution(NamedTuple):
    """State of the cross-entropy method: mean and deviation of its logits, same shape."""

    mean: jax.Array
    std: jax.Array


def uniform(env: Environment, num_candidates: int) -> Searcher:
    """The same keep ratio in every group: the largest that meets the budgets.

    Further candidates try smaller ratios, evenly spaced down to half of it.
    """
    check_positive("num_candidates", num_candidates)
    share = jnp.linspace(1.0, 0.5, num_candidates)

    def propose(state: Nothing, key: jax.Array) -> jax.Array:
        ratios = jnp.full(env.num_groups, 0.5)
        ratios = project_ratios(env, ratios) if env.cost_fn else env.initial_keep
        return ratios_to_masks(env, share[:, None] * ratios)

    return _without_learning(env, propose)


def global_threshold(env: Environment, num_candidates: int) -> Searcher:
    """One threshold on the scores of all units, as low as the budgets allow.

    The first candidate compares raw scores; further ones divide them by their group's mean to a
    power that rises to 1, since layers score on scales of their own.
    """
    check_positive("num_candidates", num_candidates)
    power = jnp.linspace(0.0, 1.0, num_candidates)[:, None, None]

    def propose(state: Nothing, key: jax.Array) -> jax.Array:
        sizes = jnp.asarray(env.sizes, jnp.float32)[:, None]
        level = jnp.abs(env.raw_scores).sum(1, keepdims=True) / sizes
        priorities = env.raw_scores / jnp.maximum(level, 1e-12) ** power
        return _thresholded(env, priorities)

    return _without_learning(env, propose)


def ranked(env: Environment, scores: Gates) -> Searcher:
    """One threshold on given scores of all units, as low as the budgets allow.

    Args:
        env: the problem.
        scores: group -> f32[N, units], comparable across groups; N ways to score, a candidate each.
    """
    priorities = gates_to_masks(env, scores)
    return _without_learning(env, lambda state, key: _thresholded(env, priorities))


def random_search(env: Environment, num_candidates: int, granularity: str = "coarse") -> Searcher:
    """Random candidates on the budgets, from a mixture that covers near and far.

    Coarse: keep ratios around the uniform one in logit space, with a deviation drawn per
    candidate between 0.1 and 2. Fine: units kept by score plus logistic noise, with a slope
    drawn per candidate between 4 and 40 and the same random offsets per group.

    Raises:
        ValueError: ``num_candidates`` below 1 or an unknown granularity.
    """
    check_positive("num_candidates", num_candidates)
    _check_granularity(granularity)

    def propose(state: Nothing, key: jax.Array) -> jax.Array:
        width_key, ratio_key, slope_key, unit_key = jax.random.split(key, 4)
        width = _log_uniform(width_key, num_candidates, 0.1, 2.0)
        normal = jax.random.normal(ratio_key, (num_candidates, env.num_groups))
        logits = starting_logits(env) + width[:, None] * normal
        if granularity == "coarse":
            return _ratios(env, logits)
        slope = _log_uniform(slope_key, num_candidates, 4.0, 40.0)[:, None, None]
        start = slope * _score_logits(env, jax.nn.sigmoid(logits))
        noise = jax.random.logistic(unit_key, start.shape)
        return _units(env, start + noise)

    return _without_learning(env, propose)


def cross_entropy(
    env: Environment,
    num_candidates: int,
    elite_fraction: float = 0.25,
    granularity: str = "coarse",
    smoothing: float | None = None,
    initial_std: float = 0.7,
    minimum_std: float = 0.05,
    sharpness: float = 6.0,
) -> Searcher:
    """The cross-entropy method (Rubinstein 1999): move a distribution to the best candidates.

    Coarse: a Gaussian over logits of keep ratios. Fine: a Bernoulli per unit, started from the
    scores with slope ``sharpness``. Feasible candidates rank above infeasible ones.

    Args:
        env: the problem.
        num_candidates: N.
        elite_fraction: share of the candidates that are followed.
        granularity: "coarse" or "fine".
        smoothing: how far the distribution moves to the elites per iteration, in (0, 1]; by
            default 0.5 coarse and 0.3 fine, the best of a sweep.
        initial_std: of the coarse logits.
        minimum_std: of the coarse logits.
        sharpness: of the fine starting logits.

    Raises:
        ValueError: ``num_candidates`` below 1, a fraction outside (0, 1], unknown granularity.
    """
    check_positive("num_candidates", num_candidates)
    _check_granularity(granularity)
    if smoothing is None:
        smoothing = 0.5 if granularity == "coarse" else 0.3
    for argument, value in (("elite_fraction", elite_fraction), ("smoothing", smoothing)):
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{argument}={value}: needs a number in (0, 1]")
    elites = max(1, round(elite_fraction * num_candidates))
    coarse = granularity == "coarse"

    def init(hparams: PyTree, key: jax.Array) -> Distribution:
        if coarse:
            return Distribution(starting_logits(env), jnp.full(env.num_groups, initial_std))
        start = sharpness * _score_logits(env, env.initial_keep)
        return Distribution(start, jnp.zeros_like(start))

    def ask(state: Distribution, key: jax.Array) -> tuple[Candidates, Distribution]:
        shape = (num_candidates, *state.mean.shape)
        if not coarse:
            masks = _units(env, state.mean + jax.random.logistic(key, shape))
            return Candidates(masks, masks), state
        logits = state.mean + state.std * jax.random.normal(key, shape)
        if not env.cost_fn:
            return Candidates(ratios_to_masks(env, jax.nn.sigmoid(logits)), logits), state
        masks, shift = project_logits(env, logits)
        # Elites are followed where they were executed, but for the shift that all share.
        moved = logits + jnp.clip(shift - shift.mean(), -3.0, 3.0)[:, None]
        return Candidates(masks, moved), state

    def tell(
        state: Distribution, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Distribution, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        good = feasible(costs, env.limits)
        over = violation(worst_for_missing_costs(costs, env.limits), env.limits)
        rewards = worst_for_missing(rewards)
        order = jnp.lexsort((-rewards, jnp.where(good, 0.0, over)))
        best = candidates.trajectory[order[:elites]]
        if coarse:
            mean, std = best.mean(0), jnp.maximum(best.std(0), minimum_std)
        else:
            old = jax.nn.sigmoid(state.mean)
            # Probabilities stop short of 0 and 1, so that no unit is lost for good.
            share = jnp.clip((1.0 - smoothing) * old + smoothing * best.mean(0), 0.01, 0.99)
            return Distribution(logit(share), state.std), metrics
        blend = lambda old, new: (1.0 - smoothing) * old + smoothing * new  # noqa: E731
        return Distribution(blend(state.mean, mean), blend(state.std, std)), metrics

    return Searcher(init, ask, tell)


def _without_learning(
    env: Environment, propose: Callable[[Nothing, jax.Array], jax.Array]
) -> Searcher:
    def init(hparams: PyTree, key: jax.Array) -> Nothing:
        return Nothing(jnp.int32(0))

    def ask(state: Nothing, key: jax.Array) -> tuple[Candidates, Nothing]:
        return Candidates(propose(state, key), ()), state

    def tell(
        state: Nothing, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Nothing, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        return Nothing(state.iteration + 1), metrics

    return Searcher(init, ask, tell)


def _thresholded(env: Environment, priorities: jax.Array) -> jax.Array:
    """Masks f32[N, G, Cmax] of the highest priorities f32[N, G, Cmax], over all groups."""
    if env.cost_fn:
        return project_priorities(env, priorities)
    count = jnp.round(env.initial_keep.mean() * sum(env.sizes)).astype(jnp.int32)
    flat = jnp.where(env.alive, priorities, -jnp.inf).reshape(len(priorities), -1)
    cut = jnp.sort(flat)[:, -count][:, None, None]
    best = env.ranks < jnp.asarray(env.min_keep)[:, None]
    masks = (env.alive & ((priorities >= cut) | best)).astype(jnp.float32)
    return round_masks(env, masks, jnp.where(best, jnp.inf, priorities))


def _check_granularity(granularity: str) -> None:
    if granularity not in ("coarse", "fine"):
        raise ValueError(f"granularity={granularity!r}: choose 'coarse' or 'fine'")


def _log_uniform(key: jax.Array, count: int, low: float, high: float) -> jax.Array:
    return jnp.exp(jax.random.uniform(key, (count,), minval=jnp.log(low), maxval=jnp.log(high)))


def _score_logits(env: Environment, ratios: jax.Array) -> jax.Array:
    """How far inside f32[..., G] keep ratios each unit ranks, f32[..., G, Cmax], unscaled."""
    sizes = jnp.asarray(env.sizes, jnp.float32)[:, None]
    return ratios[..., None] - (jnp.where(env.alive, env.ranks, 0) + 0.5) / sizes


def _ratios(env: Environment, logits: jax.Array) -> jax.Array:
    if env.cost_fn:
        return project_logits(env, logits)[0]
    return ratios_to_masks(env, jax.nn.sigmoid(logits))


def _units(env: Environment, priorities: jax.Array) -> jax.Array:
    """Masks of perturbed logits: projected, or above 0 and never below ``min_keep``."""
    if env.cost_fn:
        return project_priorities(env, priorities)
    masks = (env.alive & ((priorities > 0) | best_units(env, priorities))).astype(jnp.float32)
    return round_masks(env, masks, priorities)
