"""One method's search on one problem, resumable."""

import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs import search_costs
from rlprune_jax.runs import CompileClock, Json, MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.search import (
    Archive,
    Environment,
    SearchState,
    feasible,
    masks_to_gates,
    renew_rewards,
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
        fill: whether room that is left within the budgets is filled in what is delivered.
    """

    archive: Archive
    rewards: jax.Array
    costs: jax.Array
    method: str = AGENT
    fill: bool = True

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


def evaluator_of(pruning: Pruning, finetune_steps: int) -> Evaluator:
    """Return how candidates are evaluated after finetuning steps."""
    config = pruning.config
    return Evaluator(
        definition=pruning.network.definition,
        objective=pruning.task.objective,
        chunk=config.chunk,
        finetune_steps=finetune_steps,
        batch_size=min(config.batch_size, 64),
    )


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
    config = pruning.config
    strategy = METHODS[method](pruning)
    env, iterations = strategy.env, strategy.iterations
    data = candidate_data(pruning, train=max(config.reward_finetune) > 0)
    costs_of = search_costs(pruning.constraints)

    def costs(masks: np.ndarray) -> np.ndarray:
        return costs_of(masks_to_gates(env, jnp.asarray(masks)))

    def rewards(steps: int, masks: jax.Array, key: jax.Array) -> jax.Array:
        evaluator = evaluator_of(pruning, steps)
        found = _evaluate(evaluator, pruning.network.variables, env, masks, data, key)
        return -found.loss if config.reward == "loss" else found.metric

    def advance(state: SearchState, start: int, steps: int) -> tuple[SearchState, list]:
        rows: list[tuple[int, dict[str, PyTree]]] = []
        for iteration in range(start, start + steps):
            began, compiled = time.perf_counter(), clock.seconds
            stair = stair_of(config.reward_finetune, iteration, iterations)
            if len(set(config.reward_finetune)) > 1:
                before = last_stair(run.metrics(f"search-{method}"), rows)
                if stair != before and int(state.archive.seen):
                    state = renew_rewards(strategy.method, env, partial(rewards, stair), state)
            state, metrics, history = run_search_host(
                strategy.method, env, partial(rewards, stair), state, 1, costs
            )
            row: dict[str, PyTree] = {name: np.asarray(value[0]) for name, value in metrics.items()}
            row |= {
                "reward_finetune": stair,
                "best": np.asarray(state.archive.feasible.rewards[0]),
                "seconds": time.perf_counter() - began,
                "compile_seconds": clock.seconds - compiled,
                "rewards": np.asarray(history.rewards[0]),
                "costs": np.asarray(history.costs[0]),
            }
            rows.append((iteration + 1, row))
        return state, rows

    key = stage_key(config.seed, "search")
    empty = start_search(strategy.method, env, strategy.hparams, ARCHIVE_SIZE, key)
    options = StageOptions(
        chunk=1,
        save_seconds=config.save_seconds,
        note=lambda values: f"best {float(str(values['best'])):.4f}",
        check=None,  # a reward that is NaN is a candidate's failure, not the search's
    )
    with CompileClock() as clock:
        found = run_stage(run, f"search-{method}", empty, iterations, advance, options)
    # Not in the state, whose shapes would then say how long the search is: it can be extended.
    rows = run.metrics(f"search-{method}")
    return Search(
        archive=found.archive,
        rewards=history_of(rows, "rewards"),
        costs=history_of(rows, "costs"),
        method=method,
        fill=strategy.fill,
    )


def stair_of(stairs: Sequence[int], iteration: int, iterations: int) -> int:
    """Return the finetuning steps before a reward in an iteration.

    Equal parts of a search, and its last iteration has the last entry, however few there are: what
    methods of one iteration and of many find is then rewarded alike.

    Example:
        >>> [stair_of((0, 20, 40), iteration, 6) for iteration in range(6)]
        [0, 0, 20, 20, 40, 40]
        >>> stair_of((0, 20, 40), 0, 1)
        40
    """
    return stairs[((iteration + 1) * len(stairs) - 1) // iterations]


def last_stair(stored: Sequence[Json], rows: Sequence[tuple[int, dict]]) -> int | None:
    """Return the finetuning steps of the last iteration.

    None before any. Read from what was recorded, as a search that is extended has other parts than
    before.
    """
    values = rows[-1][1] if rows else stored[-1] if stored else {}
    return values.get("reward_finetune")


def history_of(rows: Sequence[Json], name: str) -> jax.Array:
    """Return what iterations recorded, NaN where not finite.

    Example:
        >>> history_of([{"rewards": [0.5, None]}], "rewards")
        Array([[0.5, nan]], dtype=float32)
    """
    return jnp.asarray(np.array([row[name] for row in rows], np.float32))
