"""One method's search on one problem, resumable."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs import search_costs
from rlprune_jax.runs import CompileClock, MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.search import (
    Archive,
    Environment,
    SearchState,
    feasible,
    masks_to_gates,
    run_search_host,
    start_search,
)
from rlprune_jax.training.task import Evaluation
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.candidates import CandidateData, Evaluator, evaluate_candidates
from rlprune_jax.workflow.config import AGENT
from rlprune_jax.workflow.methods import METHODS
from rlprune_jax.workflow.pruning import Pruning, candidate_data, stage_key

ARCHIVE_SIZE = 16
"""Masks that a search remembers, of each kind."""


class Search(NamedTuple):
    """Hold what a method has found.

    Attributes:
        archive: the best masks.
        rewards: f32[T, N] of all candidates.
        costs: f32[T, N, K] of all candidates.
        method: its name.
    """

    archive: Archive
    rewards: jax.Array
    costs: jax.Array
    method: str = AGENT

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated."""
        return int(np.isfinite(np.asarray(self.costs)).all(-1).sum())

    @property
    def best_reward(self) -> float:
        """Highest reward within every budget, -inf if there is none."""
        return float(self.archive.feasible.rewards[0])

    def feasible_fraction(self, limits: np.ndarray) -> float:
        """Return the fraction of candidates within every limit f32[K]."""
        return float(np.mean(np.asarray(feasible(self.costs, jnp.asarray(limits)))))


@partial(jax.jit, static_argnums=0)
def _evaluate(
    evaluator: Evaluator,
    variables: Variables,
    env: Environment,
    masks: jax.Array,
    data: CandidateData,
    key: jax.Array,
) -> Evaluation:
    return evaluate_candidates(evaluator, variables, masks_to_gates(env, masks), data, key)


def search(pruning: Pruning, method: str = AGENT, run: Run | None = None) -> Search:
    """Search a problem by one method.

    Use it to try methods one by one, or to do something of your own between search and delivery.
    A second search of the same structure compiles nothing new.

    Args:
        pruning: the problem; ``pruning.config`` says how many candidates are evaluated.
        method: a name among ``METHODS``.
        run: where checkpoints and metrics go; None keeps them in memory.

    Returns:
        The best masks, and every candidate's numbers.

    Raises:
        ValueError: an unknown method.
        CostError: a cost function failed on a candidate.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose from {', '.join(METHODS)}")
    run = MemoryRun() if run is None else run
    config, network = pruning.config, pruning.network
    strategy = METHODS[method](pruning)
    env, count, iterations = strategy.env, strategy.candidates, strategy.iterations
    data = candidate_data(pruning, train=max(config.reward_finetune) > 0)
    costs_of = search_costs(pruning.constraints)

    def costs(masks: np.ndarray) -> np.ndarray:
        return costs_of(masks_to_gates(env, jnp.asarray(masks)))

    def rewards(steps: int, masks: jax.Array, key: jax.Array) -> jax.Array:
        evaluator = Evaluator(
            definition=network.definition,
            objective=pruning.task.objective,
            chunk=config.chunk,
            finetune_steps=steps,
            batch_size=min(config.batch_size, 64),
        )
        found = _evaluate(evaluator, network.variables, env, masks, data, key)
        return -found.loss if config.reward == "loss" else found.metric

    def advance(
        state: tuple[SearchState, jax.Array, jax.Array], start: int, steps: int
    ) -> tuple[PyTree, list]:
        inner, all_rewards, all_costs = state
        rows = []
        for iteration in range(start, start + steps):
            began, compiled = time.perf_counter(), clock.seconds
            stairs = config.reward_finetune
            stair = stairs[iteration * len(stairs) // iterations]
            inner, metrics, history = run_search_host(
                strategy.method, env, partial(rewards, stair), inner, 1, costs
            )
            all_rewards = all_rewards.at[iteration].set(history.rewards[0])
            all_costs = all_costs.at[iteration].set(history.costs[0])
            row: dict[str, PyTree] = {name: np.asarray(value[0]) for name, value in metrics.items()}
            row |= {
                "best": np.asarray(inner.archive.feasible.rewards[0]),
                "seconds": time.perf_counter() - began,
                "compile_seconds": clock.seconds - compiled,
            }
            rows.append((iteration + 1, row))
        return (inner, all_rewards, all_costs), rows

    key = stage_key(config.seed, "search")
    empty = (
        start_search(strategy.method, env, strategy.hparams, ARCHIVE_SIZE, key),
        jnp.full((iterations, count), jnp.nan),
        jnp.full((iterations, count, len(pruning.constraints)), jnp.nan),
    )
    options = StageOptions(
        chunk=1,
        save_seconds=config.save_seconds,
        note=lambda values: f"best {float(str(values['best'])):.4f}",
        check=None,  # a reward that is NaN is a candidate's failure, not the search's
    )
    with CompileClock() as clock:
        found, all_rewards, all_costs = run_stage(
            run, f"search-{method}", empty, iterations, advance, options
        )
    return Search(archive=found.archive, rewards=all_rewards, costs=all_costs, method=method)
