"""One method's search on one problem, resumable."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_type
from rlprune_jax.costs import search_costs
from rlprune_jax.runs import CompileClock, Json, MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.runs.run import check_run
from rlprune_jax.search import (
    Archive,
    Environment,
    SearchState,
    check_archive,
    feasible,
    masks_to_gates,
    renew_rewards,
    run_search_host,
    start_from,
    start_search,
)
from rlprune_jax.training.task import Evaluation
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.candidates import (
    CandidateData,
    Evaluator,
    Halving,
    evaluate_candidates,
    usual_chunk,
)
from rlprune_jax.workflow.config import AGENT, PruneConfig
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.methods import METHODS, Strategy
from rlprune_jax.workflow.pruning import Pruning, candidate_data, reward_repair
from rlprune_jax.workflow.recipes import finetune_recipe
from rlprune_jax.workflow.retaining import dense_covariances, with_retention

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
        spent: evaluations that the method's preparation was worth.
    """

    archive: Archive
    rewards: jax.Array
    costs: jax.Array
    method: str = AGENT
    fill: bool = True
    spent: int = 0

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated.

        What came before the search counts as the evaluations that it was worth.
        """
        return self.spent + int(np.isfinite(np.asarray(self.costs)).all(-1).sum())

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
    config, recipe = pruning.config, finetune_recipe(pruning.config)
    return Evaluator(
        definition=pruning.network.definition,
        objective=pruning.task.objective,
        chunk=config.chunk,
        finetune_steps=finetune_steps,
        recipe=dataclasses.replace(recipe, batch_size=min(config.batch_size, 64)),
        repair=reward_repair(pruning),
        precision=config.precision,
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
    require_type("pruning", pruning, Pruning, "make it by make_pruning")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose from {', '.join(METHODS)}")
    check_run(run)
    run = MemoryRun() if run is None else run
    if method == AGENT and pruning.config.start is not None:
        strategy, archive = begun(pruning, run)
    else:
        strategy, archive = METHODS[method](pruning), None
    found = run_strategy(pruning, strategy, f"search-{method}", run, archive)
    # Not in the state, whose shapes would then say how long the search is: it can be extended.
    rows = search_rows(run, method)
    return Search(
        archive=found.archive,
        rewards=history_of(rows, "rewards"),
        costs=history_of(rows, "costs"),
        method=method,
        fill=strategy.fill,
        spent=strategy.spent,
    )


START_STAGE = f"search-{AGENT}-start"
"""Stage in which the agent's start is searched for."""


def search_rows(run: Run, method: str) -> list[Json]:
    """Return what the iterations of a method recorded.

    Those of the agent's start come first.
    """
    start = run.metrics(START_STAGE) if method == AGENT else []
    return [*start, *run.metrics(f"search-{method}")]


def begun(pruning: Pruning, run: Run) -> tuple[Strategy, Archive]:
    """Search for the agent's start, by another method.

    Returns:
        The agent's strategy, for the evaluations that are left and from the best mask that was
        found; and the archive to go on with.

    Raises:
        EmptyArchiveError: nothing was found.
    """
    config = pruning.config
    assert config.start is not None
    part = dataclasses.replace(config, start=None, evaluations=evaluations_of_start(config))
    strategy = METHODS[config.start](dataclasses.replace(pruning, config=part))
    found = run_strategy(pruning, strategy, START_STAGE, run)
    check_archive(found.archive)
    used = strategy.spent + int(found.archive.seen)
    rest = dataclasses.replace(config, start=None, evaluations=config.evaluations - used)
    agent = METHODS[AGENT](dataclasses.replace(pruning, config=rest))
    entries = found.archive
    best = jnp.where(
        entries.feasible.valid[0], entries.feasible.masks[0], entries.infeasible.masks[0]
    )
    started = dataclasses.replace(agent, env=start_from(agent.env, best), spent=strategy.spent)
    return started, found.archive


def evaluations_of_start(config: PruneConfig) -> int:
    """Return how many evaluations the agent's start may have.

    A quarter of all unless told, at least one iteration.
    """
    given = config.start_evaluations
    return max(config.candidates, config.evaluations // 4 if given is None else given)


def run_strategy(
    pruning: Pruning, strategy: Strategy, stage: str, run: Run, archive: Archive | None = None
) -> SearchState:
    """Run a strategy as a stage.

    It goes on from its last checkpoint.

    Args:
        pruning: the problem.
        strategy: how it is searched.
        stage: name in metrics and checkpoints.
        run: where these go.
        archive: to begin with; empty where None.
    """
    config, env, iterations = pruning.config, strategy.env, strategy.iterations
    data = candidate_data(pruning, train=max(config.reward_finetune) > 0)
    covariances = dense_covariances(pruning)
    costs_of = search_costs(pruning.constraints)
    variables, halving = pruning.network.variables, Halving()
    stairs = config.reward_finetune[-1:] if strategy.remembers else config.reward_finetune

    def costs(masks: np.ndarray) -> np.ndarray:
        return costs_of(masks_to_gates(env, jnp.asarray(masks)))

    def rewards(steps: int, masks: jax.Array, key: jax.Array) -> jax.Array:
        evaluator = evaluator_of(pruning, steps)
        found = halving(
            lambda limited: _evaluate(limited, variables, env, masks, data, key),
            evaluator,
            lambda: min(len(masks), evaluator.chunk or usual_chunk(evaluator, variables, data)),
        )
        reward = -found.loss if config.reward == "loss" else found.metric
        return with_retention(pruning, covariances, reward, masks)

    def advance(state: SearchState, start: int, steps: int) -> tuple[SearchState, list]:
        rows: list[tuple[int, dict[str, PyTree]]] = []
        for iteration in range(start, start + steps):
            began, compiled = time.perf_counter(), clock.seconds
            stair = stair_of(stairs, iteration, iterations)
            if len(set(stairs)) > 1:
                before = last_stair(run.metrics(stage), rows)
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
    first = start_search(strategy.method, env, strategy.hparams, ARCHIVE_SIZE, key)
    if archive is not None:
        first = first._replace(archive=archive)
    options = StageOptions(
        chunk=1,
        save_seconds=config.save_seconds,
        note=lambda values: f"best {float(str(values['best'])):.4f}",
        check=None,  # a reward that is NaN is a candidate's failure, not the search's
    )
    with CompileClock() as clock:
        return run_stage(run, stage, first, iterations, advance, options)


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

    Iterations of fewer candidates than others are filled up with NaN.

    Example:
        >>> history_of([{"rewards": [0.5, None]}], "rewards")
        Array([[0.5, nan]], dtype=float32)
    """
    found = [np.array(row[name], np.float32) for row in rows]
    # The agent's start may have had fewer candidates an iteration.
    widest = max(map(len, found))
    missing = [[(0, widest - len(row)), *[(0, 0)] * (row.ndim - 1)] for row in found]
    padded = [
        np.pad(row, width, constant_values=np.nan)
        for row, width in zip(found, missing, strict=True)
    ]
    return jnp.asarray(np.stack(padded))
