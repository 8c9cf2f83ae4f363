"""Scoring units and searching: the agent and its baselines, one resumable stage each."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from problem import Images, Jobs, Problem
from rlprune_jax.costs.budget import Budget, cost_function, limits, search_costs
from settings import (
    AGENT,
    BASELINES,
    DETERMINISTIC,
    Config,
    agent_config,
    informed,
    numbers_of,
    stage_key,
)

from rlprune_jax.runs.compile_clock import CompileClock
from rlprune_jax.runs.run_directory import RunDirectory
from rlprune_jax.runs.stages import run_stage
from rlprune_jax.search import (
    Archive,
    Environment,
    HParams,
    make_environment,
    masks_to_gates,
    ppo_lagrangian,
    run_search_host,
    search_method,
    start_search,
)
from rlprune_jax.types import Gates, Variables
from rlprune_jax.units.descriptors import layer_descriptors
from rlprune_jax.units.scores import magnitude_scores, random_scores, taylor_scores
from rlprune_jax.units.structured_sap import group_sparsity
from rlprune_jax.workflow.candidates import CandidateData

ARCHIVE_SIZE = 16


def score_units(config: Config, problem: Problem, variables: Variables) -> Gates:
    """Score every unit, on training images where the score looks at any."""
    if config.score == "random":
        return random_scores(problem.graph, stage_key(config, "scores"))
    if config.score == "magnitude":
        return magnitude_scores(problem.graph, variables)
    batch, batches = 64, max(1, min(1024, len(problem.train.labels)) // 64)

    @jax.jit
    def score(variables: Variables, images: Images) -> Gates:
        x = problem.prepare(images.images[: batch * batches])
        x = x.reshape(batches, batch, *x.shape[1:])
        labels = images.labels[: batch * batches].reshape(batches, batch)
        return taylor_scores(problem.functions.apply, problem.graph, variables, x, labels)

    return score(variables, problem.train)


def make_search_environment(
    config: Config,
    problem: Problem,
    budgets: Sequence[Budget],
    scores: Gates,
    variables: Variables,
) -> Environment:
    """The constrained decision process of this network and these budgets."""
    graph = problem.graph
    cost = cost_function(graph, budgets)

    def mask_cost(masks: jax.Array) -> jax.Array:
        return cost(
            {
                name: masks[i, :size]
                for i, (name, size) in enumerate(zip(graph.names, graph.sizes, strict=True))
            }
        )

    env = make_environment(
        dict(zip(graph.names, graph.sizes, strict=True)),
        {name: np.asarray(score) for name, score in scores.items()},
        layer_descriptors(graph),
        limits(budgets),
        min_keep=numbers_of(config, "min_keep", graph.names),
        round_to=numbers_of(config, "round_to", graph.names),
        cost_fn=mask_cost,
        measured=[budget.is_measured for budget in budgets],
    )
    if not config.sparsity_informed:
        return env
    sparsity = group_sparsity(graph, variables)
    return informed(env, sparsity.pq_index, sparsity.keep_ratio)


class Search(NamedTuple):
    """What a method found: its archive, and ``rewards`` [T, N] and ``costs`` [T, N, K] of all."""

    archive: Archive
    rewards: jax.Array
    costs: jax.Array


def search(
    config: Config,
    run: RunDirectory,
    problem: Problem,
    jobs: Jobs,
    variables: Variables,
    env: Environment,
    budgets: Sequence[Budget],
    method: str,
    clock: CompileClock,
) -> Search:
    """Run one method for ``evaluations`` candidates, or all it has where these are fewer."""
    iterations = 1 if method in DETERMINISTIC else config.evaluations // config.candidates
    searching = (
        search_method(ppo_lagrangian, config=agent_config(config))
        if method == AGENT
        else BASELINES[method](config, problem.graph, variables)
    )
    key = stage_key(config, "search")
    held_out, train = problem.held_out, problem.train
    rewarded = min(config.reward_images, len(held_out.labels))
    sample = CandidateData(
        problem.prepare(train.images[: config.calibration_images]),
        problem.prepare(held_out.images[:rewarded]),
        held_out.labels[:rewarded],
    )
    costs_of = search_costs(problem.graph, budgets)

    def costs(masks: np.ndarray) -> np.ndarray:
        return costs_of(masks_to_gates(env, jnp.asarray(masks)))

    def evaluate_with(steps: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def evaluate(masks: jax.Array, key: jax.Array) -> jax.Array:
            judged = jobs.judge(
                variables, masks_to_gates(env, masks), sample, key, finetune_steps=steps
            )
            return judged.accuracy if config.reward == "accuracy" else -judged.loss

        return evaluate

    def advance(state: Any, start: int, count: int) -> tuple[Any, list]:
        standing, rewards, paid = state
        rows = []
        for iteration in range(start, start + count):
            began, compiled = time.perf_counter(), clock.seconds
            stair = config.reward_finetune[iteration * len(config.reward_finetune) // iterations]
            standing, metrics, history = run_search_host(
                searching, env, evaluate_with(stair), standing, 1, costs
            )
            rewards = rewards.at[iteration].set(history.rewards[0])
            paid = paid.at[iteration].set(history.costs[0])
            values: dict[str, Any] = {name: value[0] for name, value in metrics.items()}
            best = np.asarray(standing.archive.feasible.rewards[0])
            values |= {
                "best": best,
                "seconds": time.perf_counter() - began,
                "compile_seconds": clock.seconds - compiled,
            }
            rows.append((iteration + 1, values))
        return (standing, rewards, paid), rows

    count = 1 if method == "uniform" else config.candidates
    begin = (
        start_search(searching, env, HParams(), ARCHIVE_SIZE, key),
        jnp.full((iterations, count), jnp.nan),
        jnp.full((iterations, count, env.num_budgets), jnp.nan),
    )
    standing, rewards, paid = run_stage(
        run,
        f"search-{method}",
        begin,
        iterations,
        advance,
        chunk=1,
        save_seconds=config.save_seconds,
        note=lambda values: f"best {float(values['best']):.4f}",
    )
    return Search(standing.archive, rewards, paid)
