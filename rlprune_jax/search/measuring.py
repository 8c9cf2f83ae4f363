"""Search that first asks what every group costs alone, then solves for the widths."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count
from rlprune_jax.search.environment import Environment, check_environment
from rlprune_jax.search.levels import (
    MeasurementPlan,
    counts_to_masks,
    fine_levels,
    measured_errors,
    plan_measurements,
    prior_errors,
    put_on_budgets,
)
from rlprune_jax.search.quadratic import QuadraticCosts, fit_costs
from rlprune_jax.search.searcher import Candidates, Metrics, Searcher, batch_metrics, check_told
from rlprune_jax.search.solvers import solve_levels, threshold_levels
from rlprune_jax.types import PyTree

LEVELS = 12
"""Numbers of units that are measured of each group, at most."""

KNAPSACK_LEVELS = 32
"""Numbers of units of a group among which the knapsack chooses, at most."""


class SingleGroups(NamedTuple):
    """Hold what single groups cost.

    Attributes:
        iteration: i32, tells seen.
        rewards: f32[T, N], of the measurements.
        model: of the costs.
    """

    iteration: jax.Array
    rewards: jax.Array
    model: QuadraticCosts


class Solve(Protocol):
    """Turn errors of levels into numbers of units."""

    def __call__(self, model: QuadraticCosts, errors: jax.Array, /) -> jax.Array:
        """Return i32[G] of errors f32[G, S]."""


def require_costs(env: Environment, method: str) -> None:
    """Refuse a problem whose costs cannot be traced.

    Raises:
        ValueError: naming the method.
    """
    check_environment(env)
    if env.cost_fn is None:
        raise ValueError(
            f"cost_fn=None: {method} needs traceable costs, an estimate at least; costs of the "
            "host alone go to random_search or cross_entropy"
        )


def fastnas(
    env: Environment, num_candidates: int, most_iterations: int, num_levels: int = LEVELS
) -> Searcher:
    """Narrow all groups until each loses as much alone.

    Every level of every group is evaluated with that group alone narrowed. Then each group takes
    the narrowest level whose loss is within one threshold, the least that meets the budgets. One
    iteration follows the measurements: its first candidate is that solution, the others divide
    losses by their group's mean to a power that rises to 1.

    Args:
        env: the problem, with traceable costs.
        num_candidates: N.
        most_iterations: T, measurements and all.
        num_levels: S at most, fewer where iterations are few.

    Raises:
        ValueError: no traceable costs, or a count below 1.

    Reference:
        FastNAS of NVIDIA's ModelOpt.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = fastnas(env, num_candidates=4, most_iterations=4)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.sum(-1).tolist()
        [[2.0, 3.0], [2.0, 2.0], [1.0, 3.0], [2.0, 1.0]]
    """
    require_costs(env, "fastnas")
    plan = plan_solution(env, num_candidates, most_iterations, num_levels)
    power = jnp.linspace(0.0, 1.0, num_candidates)

    def one(power: jax.Array, errors: jax.Array) -> jax.Array:
        scale = jnp.maximum(errors.mean(1, keepdims=True), 1e-12) ** power
        return threshold_levels(env, plan.levels, errors / scale)

    def solve(model: QuadraticCosts, errors: jax.Array) -> jax.Array:
        return jax.lax.map(lambda each: one(each, errors), power)

    return _measure_then(env, plan, solve)


def dynamic_programming(
    env: Environment, num_candidates: int, most_iterations: int, num_levels: int = LEVELS
) -> Searcher:
    """Solve for the widths of least summed loss.

    Losses are measured with a single group narrowed at a time, and taken to add up. One iteration
    follows the measurements: its first candidate is the solution of `solve_levels`, the others mix
    more and more of `prior_errors` in.

    Args:
        env: the problem, with traceable costs.
        num_candidates: N.
        most_iterations: T, measurements and all.
        num_levels: S at most, fewer where iterations are few.

    Raises:
        ValueError: no traceable costs, or a count below 1.

    Reference:
        OBC (Frantar and Alistarh 2022, arXiv 2208.11580) solves so over measured errors.

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = dynamic_programming(env, num_candidates=4, most_iterations=4)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.sum(-1).tolist()
        [[2.0, 3.0], [2.0, 2.0], [1.0, 3.0], [2.0, 1.0]]
    """
    require_costs(env, "dynamic_programming")
    plan = plan_solution(env, num_candidates, most_iterations, num_levels)
    prior = prior_errors(env, plan.levels)
    part = jnp.linspace(0.0, 1.0, num_candidates)

    def solve(model: QuadraticCosts, errors: jax.Array) -> jax.Array:
        scale = errors.mean() / jnp.maximum(prior.mean(), 1e-12)
        mixed = (1 - part)[:, None, None] * errors + (part * scale)[:, None, None] * prior
        return jax.lax.map(lambda each: solve_levels(env, model, plan.levels, each), mixed)

    return _measure_then(env, plan, solve)


def plan_solution(
    env: Environment, num_candidates: int, most_iterations: int, num_levels: int = LEVELS
) -> MeasurementPlan:
    """Plan measurements in half of the iterations.

    All but the last where half is not enough for three levels of each group.
    """
    require_count("num_candidates", num_candidates)
    require_count("most_iterations", most_iterations)
    require_count("num_levels", num_levels, 2)
    plan = plan_measurements(env, num_candidates, num_levels, most_iterations // 2)
    if (plan.place >= 0).all():
        return plan
    return plan_measurements(env, num_candidates, 3, most_iterations - 1)


def _measure_then(
    env: Environment,
    plan: MeasurementPlan,
    solve: Callable[[QuadraticCosts, jax.Array], jax.Array],
) -> Searcher:
    """Measure as planned, then propose what is solved for, i32[N, G]."""

    def init(hparams: PyTree, key: jax.Array) -> SingleGroups:
        rewards = jnp.zeros(plan.counts.shape[:2], jnp.float32)
        return SingleGroups(iteration=jnp.int32(0), rewards=rewards, model=fit_costs(env))

    def solved(state: SingleGroups) -> jax.Array:
        errors = measured_errors(env, plan, state.rewards)
        return put_on_budgets(env, solve(state.model, errors))

    def ask(state: SingleGroups, key: jax.Array) -> tuple[Candidates, SingleGroups]:
        masks = measure_or(env, plan, state.iteration, lambda: solved(state))
        return Candidates(masks=masks, trajectory=()), state

    def tell(
        state: SingleGroups, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[SingleGroups, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        told = note_measured(plan, state.rewards, state.iteration, rewards)
        return state._replace(iteration=state.iteration + 1, rewards=told), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


def measure_or(
    env: Environment,
    plan: MeasurementPlan,
    iteration: jax.Array,
    otherwise: Callable[[], jax.Array],
) -> jax.Array:
    """Return masks to measure, or others once that is done.

    Both are f32[N, G, Cmax]; only what is needed is computed.
    """
    if plan.iterations == 0:
        return otherwise()
    rows = jnp.asarray(plan.counts)[jnp.minimum(iteration, plan.iterations - 1)]
    return jax.lax.cond(iteration < plan.iterations, lambda: counts_to_masks(env, rows), otherwise)


def note_measured(
    plan: MeasurementPlan, known: jax.Array, iteration: jax.Array, rewards: jax.Array
) -> jax.Array:
    """Return measurements with an iteration's rewards among them.

    f32[T, N] and f32[N].
    """
    if plan.iterations == 0:
        return known
    row = jnp.minimum(iteration, plan.iterations - 1)
    return known.at[row].set(jnp.where(iteration < plan.iterations, rewards, known[row]))


class KnapsackState(NamedTuple):
    """Count iterations of a search that learns nothing from rewards.

    Attributes:
        iteration: i32, tells seen.
        model: of the costs.
    """

    iteration: jax.Array
    model: QuadraticCosts


def knapsack(env: Environment, num_candidates: int) -> Searcher:
    """Keep the units of most importance for their cost.

    Units of a group go in the order of their scores, each with the importance that it adds and the
    cost that it adds at its width. Dynamic programming keeps the most importance within the
    budgets, which are reached in steps (`solve_levels`). Use it for costs that jump with widths,
    such as latency.

    The first candidate takes scores as they are; further ones divide them by their group's mean to
    a power that rises to 1, since layers score on scales of their own.

    Args:
        env: the problem, with traceable costs.
        num_candidates: N, of the one iteration that is needed.

    Raises:
        ValueError: no traceable costs, or ``num_candidates`` below 1.

    Reference:
        After the idea of HALP (Shen et al. 2022, arXiv 2110.10811).

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = knapsack(env, num_candidates=1)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> searcher.ask(state, jax.random.key(1))[0].masks.tolist()
        [[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]
    """
    require_costs(env, "knapsack")
    require_count("num_candidates", num_candidates)
    levels = fine_levels(env, KNAPSACK_LEVELS)
    power = jnp.linspace(0.0, 1.0, num_candidates)

    def init(hparams: PyTree, key: jax.Array) -> KnapsackState:
        return KnapsackState(iteration=jnp.int32(0), model=fit_costs(env))

    def ask(state: KnapsackState, key: jax.Array) -> tuple[Candidates, KnapsackState]:
        lost = lost_importance(env, levels)
        sizes = jnp.asarray(env.sizes, jnp.float32)[:, None]
        mean = jnp.maximum(jnp.abs(env.raw_scores).sum(1, keepdims=True) / sizes, 1e-12)

        def one(power: jax.Array) -> jax.Array:
            return solve_levels(env, state.model, levels, lost / mean**power)

        masks = put_on_budgets(env, jax.lax.map(one, power))
        return Candidates(masks=masks, trajectory=()), state

    def tell(
        state: KnapsackState, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[KnapsackState, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        return state._replace(iteration=state.iteration + 1), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


def lost_importance(env: Environment, levels: np.ndarray) -> jax.Array:
    """Sum the scores of the units that each level drops.

    f32[G, S] of levels i32[G, S].
    """
    dropped = env.alive[:, None] & (env.ranks[:, None] >= jnp.asarray(levels)[..., None])
    return jnp.sum(jnp.where(dropped, env.raw_scores[:, None], 0.0), axis=-1)
