"""The job of one search: the whole of it as one scan."""

import dataclasses
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from rlprune_jax.search import (
    Environment,
    HParams,
    archive_best,
    archive_init,
    feasible,
    masks_to_gates,
    project_ratios,
    run_search,
    search_method,
)
from rlprune_jax.study import Job
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.candidates import Evaluator, evaluate_candidates
from rlprune_jax.workflow.config import AGENT
from rlprune_jax.workflow.methods import METHODS, Strategy
from rlprune_jax.workflow.notes import notes
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.problem import (
    dense_accuracy,
    finetuned_accuracy,
    shared_arrays,
)

NUMBERS = tuple(HParams._fields)
"""Hyper-parameters of the agent that are traced."""

OF_CONFIG = ("granularity", "constraint", "dual", "candidates")
"""Static hyper-parameters that are settings of the pruning."""

OF_AGENT = ("epochs", "shaping")
"""Static hyper-parameters that the agent alone has."""

ARCHIVE_SIZE = 4
"""Masks that a search remembers."""


def search_study_job(
    pruning: Pruning, static: Collection[str], finetune_steps: int = 0
) -> StudyJob:
    """Make the job of one search on a problem.

    Args:
        pruning: the problem.
        static: which of ``"method"``, ``OF_CONFIG`` and ``OF_AGENT`` settings name.
        finetune_steps: of the best candidate; 0 for none.
    """
    cost = pruning.constraints[0].budget.name
    return StudyJob(
        job=search_job(pruning, finetune_steps),
        shared=shared_arrays(pruning, finetune=finetune_steps > 0),
        known=(*NUMBERS, *OF_CONFIG, *OF_AGENT, "method", cost),
        static=tuple(static),
        cost=cost,
        dense_accuracy=dense_accuracy(pruning),
        task_metric=pruning.task.objective.metric_name,
        notes=tuple(notes(pruning.config, pruning.task).values()),
    )


def search_job(pruning: Pruning, finetune_steps: int = 0) -> Job:
    """Make a whole search as one scan.

    It is ``(hparams, key, shared, **structure) -> metrics``. Hyper-parameters are the agent's
    numbers and, by the name of the first budget, its limit. Metrics: ``reward``, the best held-out
    metric within the budget; ``area``, the mean over evaluations of the best so far, before there
    is one 0 or the worst reward below it; ``feasible_fraction``; ``cost`` of the best; with
    ``finetune_steps`` also ``accuracy``, the metric on the test data after finetuning.

    Args:
        pruning: the problem.
        finetune_steps: of the best candidate; 0 for none.
    """
    definition, objective = pruning.network.definition, pruning.task.objective
    cost = pruning.constraints[0].budget.name

    def job(
        hparams: Mapping[str, jax.Array],
        key: jax.Array,
        shared: dict[str, PyTree],
        method: str = AGENT,
        **structure: PyTree,
    ) -> dict[str, jax.Array]:
        env = shared["env"]
        if cost in hparams:
            env = with_limit(env, hparams[cost])
        strategy = strategy_of(pruning, shared["variables"], env, method, structure)
        env, searcher = strategy.env, strategy.method(strategy.env)
        evaluator = Evaluator(
            definition, objective, chunk=structure.get("candidates", pruning.config.candidates)
        )

        def evaluate(masks: jax.Array, key: jax.Array) -> jax.Array:
            gates = masks_to_gates(env, masks)
            data = shared["data"]
            return evaluate_candidates(evaluator, shared["variables"], gates, data, key).metric

        numbers = {name: hparams[name] for name in NUMBERS if name in hparams}
        init_key, search_key, finetune_key = jax.random.split(key, 3)
        found = run_search(
            searcher,
            evaluate,
            env.limits,
            searcher.init(strategy.hparams and strategy.hparams._replace(**numbers), init_key),
            archive_init(env, ARCHIVE_SIZE),
            strategy.iterations,
            search_key,
        )
        rewards = found.history.rewards.reshape(-1)
        costs = found.history.costs.reshape(-1, env.num_budgets)
        good = feasible(costs, env.limits) & jnp.isfinite(rewards)
        # Before there is one within the budget: 0, or the worst where rewards are below 0.
        least = jnp.min(rewards, initial=0.0, where=jnp.isfinite(rewards))
        curve = jax.lax.cummax(jnp.where(good, rewards, least))
        best = archive_best(found.archive)
        metrics = {
            "reward": jnp.where(best.valid, best.rewards, jnp.nan),
            "area": curve.mean(),
            "feasible_fraction": good.mean(),
            "cost": jnp.where(best.valid, best.costs[0], jnp.nan),
        }
        if finetune_steps:
            gates = masks_to_gates(env, best.masks.astype(jnp.float32))
            tuned = finetuned_accuracy(pruning, shared, gates, finetune_steps, finetune_key)
            metrics["accuracy"] = jnp.where(best.valid, tuned, jnp.nan)
        return metrics

    return job


def strategy_of(
    pruning: Pruning,
    variables: PyTree,
    env: Environment,
    method: str,
    structure: Mapping[str, PyTree],
) -> Strategy:
    """Return a method's way with one setting's problem.

    Args:
        pruning: the problem.
        variables: dense, as an argument of the program.
        env: with the limit of the setting.
        method: a name among ``METHODS``.
        structure: static hyper-parameters of the setting.
    """
    changed = {name: structure[name] for name in OF_CONFIG if name in structure}
    problem = dataclasses.replace(
        pruning,
        network=pruning.network.replace(variables),
        env=env,
        config=dataclasses.replace(pruning.config, **changed),
    )
    strategy = METHODS[method](problem)
    own = {name: structure[name] for name in OF_AGENT if name in structure}
    if not own:
        return strategy
    config = dataclasses.replace(dict(strategy.method.options)["config"], **own)  # type: ignore[type-var]
    return dataclasses.replace(strategy, method=search_method(strategy.method.make, config=config))


def with_limit(env: Environment, limit: jax.Array) -> Environment:
    """Return the environment with another first limit.

    With it comes the uniform start that meets it.

    Args:
        env: the problem.
        limit: f32[], may be traced.
    """
    env = dataclasses.replace(env, limits=env.limits.at[0].set(limit))
    start = project_ratios(env, jnp.full(env.num_groups, 0.5))
    return dataclasses.replace(env, initial_keep=start)
