"""Search keep ratios by CMA-ES of the library cmaes, an optional extra.

The only module that imports cmaes. Its optimizer lives on the host and draws its own numbers; here
the state is arrays, as of any searcher: what was told so far, from which the optimizer is built
anew by its public functions at every iteration.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count, require_extra, require_range
from rlprune_jax.search.environment import (
    Environment,
    check_environment,
    project_logits,
    ratios_to_masks,
    starting_logits,
)
from rlprune_jax.search.searcher import (
    Candidates,
    Metrics,
    Searcher,
    batch_metrics,
    check_told,
    worst_for_missing,
)
from rlprune_jax.types import PyTree


class Told(NamedTuple):
    """Hold all that a CMA-ES was told.

    Attributes:
        iteration: i32, tells seen.
        points: f32[T, N, G], logits of keep ratios.
        values: f32[T, N], rewards with the sign turned.
    """

    iteration: jax.Array
    points: jax.Array
    values: jax.Array


def cma_es(
    env: Environment, num_candidates: int, iterations: int, initial_std: float = 0.5
) -> Searcher:
    """Search keep ratios by covariance matrix adaptation.

    A Gaussian over their logits, from the same start as the agent's. Candidates are put on the
    budgets where the environment has traceable costs; else those over them count as the worst.

    Args:
        env: the problem.
        num_candidates: N, at least 2.
        iterations: T, length of the run.
        initial_std: of the logits, above 0.

    Raises:
        ValueError: cmaes is not installed, ``num_candidates`` below 2, another count below 1, or no
            positive deviation.

    Reference:
        Hansen 2016 (arXiv 1604.00772); cmaes, Nomura and Shibata 2024 (arXiv 2402.01373).
    """
    require_extra("cmaes", "rivals", "cma_es")
    check_environment(env)
    require_count("num_candidates", num_candidates, 2)
    require_count("iterations", iterations)
    require_range("initial_std", initial_std, 1e-6)

    def init(hparams: PyTree, key: jax.Array) -> Told:
        return Told(
            iteration=jnp.int32(0),
            points=jnp.zeros((iterations, num_candidates, env.num_groups)),
            values=jnp.zeros((iterations, num_candidates)),
        )

    def ask(state: Told, key: jax.Array) -> tuple[Candidates, Told]:
        # A seed of its own for each iteration, since the optimizer is another object every time.
        seed = jax.random.bits(key, dtype=jnp.uint32)
        start = starting_logits(env)
        shape = jax.ShapeDtypeStruct(state.points.shape[1:], jnp.float32)
        drawn = jax.pure_callback(
            partial(_draw, initial_std), shape, start, *state, seed, vmap_method="sequential"
        )
        if env.cost_fn is None:
            masks = ratios_to_masks(env, jax.nn.sigmoid(drawn))
        else:
            masks = project_logits(env, drawn)[0]
        return Candidates(masks=masks, trajectory=drawn), state

    def tell(
        state: Told, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[Told, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        good = jnp.all(costs <= env.limits, axis=-1)
        values = -worst_for_missing(jnp.where(good, rewards, jnp.nan))
        row = jnp.minimum(state.iteration, iterations - 1)
        return Told(
            iteration=state.iteration + 1,
            points=state.points.at[row].set(candidates.trajectory),
            values=state.values.at[row].set(values),
        ), metrics

    return Searcher(init=init, ask=ask, tell=tell, cost_fn=env.cost_fn, limits=env.limits)


def _draw(
    std: float,
    start: np.ndarray,
    iteration: np.ndarray,
    points: np.ndarray,
    values: np.ndarray,
    seed: np.ndarray,
) -> np.ndarray:
    """Tell a new optimizer all that was told, and ask it for a population f32[N, G]."""
    import cmaes

    points, values = np.asarray(points, np.float64), np.asarray(values, np.float64)
    optimizer = cmaes.CMA(
        mean=np.asarray(start, np.float64),
        sigma=std,
        seed=int(seed),
        population_size=points.shape[1],
    )
    for row in range(int(iteration)):
        optimizer.tell(list(zip(points[row], values[row], strict=True)))
    return np.stack([optimizer.ask() for _ in range(points.shape[1])]).astype(np.float32)
