"""Search without learning a policy, as rivals of the agent.

Where the environment has traceable costs, every candidate is projected onto the budgets.
``init(hparams, key)`` ignores ``hparams``, so that a baseline stands wherever an agent does.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require, require_choice, require_count, require_range
from rlprune_jax.search.config import CHOICES, Granularity
from rlprune_jax.search.environment import (
    Environment,
    best_units,
    check_environment,
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
    check_told,
    violation,
    worst_for_missing,
    worst_for_missing_costs,
)
from rlprune_jax.types import Gates, PyTree


class Nothing(NamedTuple):
    """Count iterations where nothing is learned.

    Attributes:
        iteration: i32, tells seen.
    """

    iteration: jax.Array


class Distribution(NamedTuple):
    """Hold the distribution of the cross-entropy method.

    Attributes:
        mean: f32[G] or f32[G, Cmax], of its logits.
        std: same shape, their standard deviation.
    """

    mean: jax.Array
    std: jax.Array


def uniform(env: Environment, num_candidates: int) -> Searcher:
    """Try the same keep ratio in every group.

    The plainest rival. The first candidate has the largest ratio that meets the budgets.

    Further candidates try smaller ratios, evenly spaced down to half of it.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = uniform(env, num_candidates=1)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.sum(-1).tolist()
        [[1.0, 2.0]]
    """
    check_environment(env)
    require_count("num_candidates", num_candidates)
    scale = jnp.linspace(1.0, 0.5, num_candidates)

    def propose(state: Nothing, key: jax.Array) -> jax.Array:
        ratios = jnp.full(env.num_groups, 0.5, jnp.float32)
        ratios = project_ratios(env, ratios) if env.cost_fn else env.initial_keep
        return ratios_to_masks(env, scale[:, None] * ratios)

    return _without_learning(env, propose)


def global_threshold(env: Environment, num_candidates: int) -> Searcher:
    """Cut all units at one threshold on their scores.

    The threshold is as low as the budgets allow. Use it where scores compare across groups.

    The first candidate compares raw scores; further ones divide them by their group's mean to a
    power that rises to 1, since layers score on scales of their own.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = global_threshold(env, num_candidates=1)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.tolist()
        [[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]
    """
    check_environment(env)
    require_count("num_candidates", num_candidates)
    power = jnp.linspace(0.0, 1.0, num_candidates)[:, None, None]

    def propose(state: Nothing, key: jax.Array) -> jax.Array:
        sizes = jnp.asarray(env.sizes, jnp.float32)[:, None]
        level = jnp.abs(env.raw_scores).sum(1, keepdims=True) / sizes
        priorities = env.raw_scores / jnp.maximum(level, 1e-12) ** power
        return _thresholded(env, priorities)

    return _without_learning(env, propose)


def ranked(env: Environment, scores: Gates) -> Searcher:
    """Cut all units at one threshold on given scores.

    Use it to turn any ranking of units, such as structured SAP's, into a rival. The threshold is as
    low as the budgets allow.

    Args:
        env: the problem.
        scores: group -> f32[N, units], comparable across groups; N ways to score, a candidate each.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> scores = {"group0": jnp.array([[5., 4.]]), "group1": jnp.array([[1., 2., 3.]])}
        >>> searcher = ranked(env, scores)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.tolist()
        [[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]
    """
    priorities = gates_to_masks(env, scores)
    return _without_learning(env, lambda state, key: _thresholded(env, priorities))


def random_search(
    env: Environment, num_candidates: int, granularity: Granularity = "coarse"
) -> Searcher:
    """Draw random candidates on the budgets.

    They come from a mixture that covers near and far, which makes a hard rival to beat.

    Coarse: keep ratios around the uniform one in logit space, with a deviation drawn per
    candidate between 0.1 and 2. Fine: units kept by score plus logistic noise, with a slope
    drawn per candidate between 4 and 40 and the same random offsets per group.

    Raises:
        ValueError: ``num_candidates`` below 1 or an unknown granularity.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = random_search(env, num_candidates=8)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> candidates, state = searcher.ask(state, jax.random.key(1))
        >>> candidates.masks.shape, float(candidates.masks.sum((1, 2)).max())
        ((8, 2, 3), 3.0)
    """
    check_environment(env)
    require_count("num_candidates", num_candidates)
    require_choice("granularity", granularity, CHOICES["granularity"])

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
    granularity: Granularity = "coarse",
    smoothing: float | None = None,
    initial_std: float = 0.7,
    minimum_std: float = 0.05,
    sharpness: float = 6.0,
) -> Searcher:
    """Move a distribution towards the best candidates.

    The cross-entropy method (Rubinstein 1999), a rival that learns without a gradient.

    Coarse: a Gaussian over logits of keep ratios. Fine: a Bernoulli per unit, started from the
    scores with slope ``sharpness``. Feasible candidates rank above infeasible ones.

    Args:
        env: the problem.
        num_candidates: N.
        elite_fraction: fraction of the candidates that are followed.
        granularity: "coarse" or "fine".
        smoothing: how far the distribution moves to the elites per iteration, in (0, 1]; by
            default 0.5 coarse and 0.3 fine, the best of a sweep.
        initial_std: of the coarse logits.
        minimum_std: of the coarse logits.
        sharpness: of the fine starting logits.

    Raises:
        ValueError: ``num_candidates`` below 1, a fraction outside (0, 1], a negative deviation,
            unknown granularity.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = cross_entropy(env, num_candidates=8, granularity="fine")
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.shape
        (8, 2, 3)
    """
    check_environment(env)
    require_count("num_candidates", num_candidates)
    require_choice("granularity", granularity, CHOICES["granularity"])
    if smoothing is None:
        smoothing = 0.5 if granularity == "coarse" else 0.3
    for argument, value in (("elite_fraction", elite_fraction), ("smoothing", smoothing)):
        require_range(argument, value, 0.0, 1.0)
        require(value > 0, argument, value, "above 0 and at most 1")
    for argument, value in (("initial_std", initial_std), ("minimum_std", minimum_std)):
        require_range(argument, value, 0.0)
    require_range("sharpness", sharpness, 0.0)
    elites = max(1, round(elite_fraction * num_candidates))
    coarse = granularity == "coarse"

    def init(hparams: PyTree, key: jax.Array) -> Distribution:
        if coarse:
            return Distribution(
                mean=starting_logits(env), std=jnp.full(env.num_groups, initial_std, jnp.float32)
            )
        start = sharpness * _score_logits(env, env.initial_keep)
        return Distribution(mean=start, std=jnp.zeros_like(start))

    def ask(state: Distribution, key: jax.Array) -> tuple[Candidates, Distribution]:
        shape = (num_candidates, *state.mean.shape)
        if not coarse:
            masks = _units(env, state.mean + jax.random.logistic(key, shape))
            return Candidates(masks=masks, trajectory=masks), state
        logits = state.mean + state.std * jax.random.normal(key, shape)
        if not env.cost_fn:
            masks = ratios_to_masks(env, jax.nn.sigmoid(logits))
            return Candidates(masks=masks, trajectory=logits), state
        masks, shift = project_logits(env, logits)
        # Elites are followed where they were executed, but for the shift that all share.
        moved = logits + jnp.clip(shift - shift.mean(), -3.0, 3.0)[:, None]
        return Candidates(masks=masks, trajectory=moved), state

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
            kept = jnp.clip((1.0 - smoothing) * old + smoothing * best.mean(0), 0.01, 0.99)
            return Distribution(mean=logit(kept), std=state.std), metrics
        return Distribution(
            mean=(1.0 - smoothing) * state.mean + smoothing * mean,
            std=(1.0 - smoothing) * state.std + smoothing * std,
        ), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


class Propose(Protocol):
    """Propose candidates without having learned."""

    def __call__(self, state: Nothing, key: jax.Array, /) -> jax.Array:
        """Return masks f32[N, G, Cmax]."""


def _without_learning(env: Environment, propose: Propose) -> Searcher:
    def init(hparams: PyTree, key: jax.Array) -> Nothing:
        return Nothing(iteration=jnp.int32(0))

    def ask(state: Nothing, key: jax.Array) -> tuple[Candidates, Nothing]:
        return Candidates(masks=propose(state, key), trajectory=()), state

    def tell(
        state: Nothing, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Nothing, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        return Nothing(iteration=state.iteration + 1), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


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
