"""Search for how much each group's errors weigh, and solve for the widths."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_choice, require_count
from rlprune_jax.search.environment import Environment, feasible
from rlprune_jax.search.levels import (
    MeasurementPlan,
    group_levels,
    measured_errors,
    plan_measurements,
    put_on_budgets,
)
from rlprune_jax.search.measuring import (
    measure_or,
    note_measured,
    plan_solution,
    require_costs,
)
from rlprune_jax.search.quadratic import QuadraticCosts, fit_costs
from rlprune_jax.search.searcher import Candidates, Metrics, Searcher, batch_metrics, check_told
from rlprune_jax.search.solvers import solve_levels
from rlprune_jax.types import PyTree

LevelErrors = Literal["prior", "measured"]
"""Where the errors of levels come from: their place alone, or one group narrowed at a time."""

PRIOR_LEVELS = 24
"""Levels where none has to be measured."""

RANDOM_PART = 6
"""One in so many evaluations is a random start, as 100 of SPDY's 600."""


class Coefficients(NamedTuple):
    """Hold the best coefficients so far.

    Attributes:
        iteration: i32, tells seen.
        rewards: f32[T, N], of the measurements.
        model: of the costs.
        best: f32[G] in [0, 1].
        reward: f32[], of the network that they give; -inf before there is one.
    """

    iteration: jax.Array
    rewards: jax.Array
    model: QuadraticCosts
    best: jax.Array
    reward: jax.Array


def spdy(
    env: Environment,
    num_candidates: int,
    iterations: int,
    errors: LevelErrors = "prior",
) -> Searcher:
    """Search for coefficients of the errors of groups.

    A candidate is the solution of ``min sum_g c_g e_g(level)`` within the budgets, and its reward
    is the value of ``c``. A sixth of the evaluations draws ``c`` at random; after that some of the
    best one's coordinates are drawn anew, a tenth of them at first and one at the end, and
    improvements are kept.

    Args:
        env: the problem, with traceable costs.
        num_candidates: N.
        iterations: length of the run, measurements and all.
        errors: "prior" is ``(i / (S - 1))**2`` of the ith level; "measured" first evaluates single
            groups narrowed.

    Raises:
        ValueError: no traceable costs, a count below 1, or unknown errors.

    Reference:
        SPDY (Frantar and Alistarh 2022, arXiv 2201.13096).

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.6,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> searcher = spdy(env, num_candidates=4, iterations=4)
        >>> state = searcher.init(None, jax.random.key(0))
        >>> candidates, state = searcher.ask(state, jax.random.key(1))
        >>> candidates.masks.sum((1, 2)).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    require_costs(env, "spdy")
    require_count("iterations", iterations)
    require_choice("errors", errors, get_args(LevelErrors))
    plan = _plan(env, num_candidates, iterations, errors)
    left = iterations - plan.iterations
    random_iterations = max(1, round(left / RANDOM_PART))

    def init(hparams: PyTree, key: jax.Array) -> Coefficients:
        return Coefficients(
            iteration=jnp.int32(0),
            rewards=jnp.zeros(plan.counts.shape[:2], jnp.float32),
            model=fit_costs(env),
            best=jnp.ones(env.num_groups),
            reward=jnp.float32(-jnp.inf),
        )

    def propose(state: Coefficients, key: jax.Array) -> jax.Array:
        value_key, place_key = jax.random.split(key)
        shape = (num_candidates, env.num_groups)
        drawn = jax.random.uniform(value_key, shape)
        done = state.iteration - plan.iterations - random_iterations
        progress = done / max(1, left - random_iterations)
        changed = jnp.round(0.1 * env.num_groups * (1 - progress)).astype(jnp.int32)
        places = jnp.argsort(jnp.argsort(jax.random.uniform(place_key, shape), axis=1), axis=1)
        near = jnp.where(places < jnp.maximum(changed, 1), drawn, state.best)
        first = jnp.where(jnp.arange(num_candidates)[:, None] == 0, 1.0, drawn)
        drawn = jnp.where(state.iteration == plan.iterations, first, drawn)
        return jnp.where(done < 0, drawn, near)

    def ask(state: Coefficients, key: jax.Array) -> tuple[Candidates, Coefficients]:
        weights = propose(state, key)

        def solved() -> jax.Array:
            found = measured_errors(env, plan, state.rewards)
            weighted = weights[:, :, None] * found
            solve = lambda each: solve_levels(env, state.model, plan.levels, each)  # noqa: E731
            return put_on_budgets(env, jax.lax.map(solve, weighted))

        masks = measure_or(env, plan, state.iteration, solved)
        return Candidates(masks=masks, trajectory=weights), state

    def tell(
        state: Coefficients, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Coefficients, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        usable = jnp.isfinite(rewards) & feasible(costs, env.limits)
        usable &= state.iteration >= plan.iterations
        value = jnp.where(usable, rewards, -jnp.inf)
        top = jnp.argmax(value)
        better = value[top] > state.reward
        return Coefficients(
            iteration=state.iteration + 1,
            rewards=note_measured(plan, state.rewards, state.iteration, rewards),
            model=state.model,
            best=jnp.where(better, candidates.trajectory[top], state.best),
            reward=jnp.where(better, value[top], state.reward),
        ), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


def _plan(
    env: Environment, num_candidates: int, iterations: int, errors: LevelErrors
) -> MeasurementPlan:
    """What to measure; nothing where errors are guessed."""
    if errors == "measured":
        return plan_solution(env, num_candidates, iterations)
    plan = plan_measurements(env, num_candidates, 3, 0)
    return plan._replace(levels=group_levels(env, PRIOR_LEVELS))
