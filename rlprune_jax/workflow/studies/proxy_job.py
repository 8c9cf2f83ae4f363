"""The job of one random candidate: its rewards, and its accuracy after a long finetune."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search import masks_to_gates, random_search, search_method
from rlprune_jax.study import Job
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.candidates import Evaluator, evaluate_candidate
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.notes import notes
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.problem import (
    dense_accuracy,
    finetuned,
    finetuned_accuracy,
    shared_arrays,
)
from rlprune_jax.workflow.studies.proxy import PROXIES


def proxy_study_job(pruning: Pruning, candidates: int, finetune_steps: int) -> StudyJob:
    """Make the job of one candidate, and draw the candidates.

    Args:
        pruning: the problem.
        candidates: how many.
        finetune_steps: of the long finetune.

    Raises:
        ValueError: there are fewer different candidates within the budget.
    """
    shared = shared_arrays(pruning, finetune=True)
    shared["masks"] = random_candidates(pruning, candidates)
    return StudyJob(
        job=proxy_job(pruning, finetune_steps),
        shared=shared,
        known=("candidate",),
        cost=pruning.constraints[0].budget.name,
        dense_accuracy=dense_accuracy(pruning),
        task_metric=pruning.task.objective.metric_name,
        notes=tuple(notes(pruning.config, pruning.task).values()),
    )


def proxy_job(pruning: Pruning, finetune_steps: int) -> Job:
    """Make the job of one candidate.

    It is ``(hparams, key, shared) -> metrics``. Metrics are the rewards of ``PROXIES`` on held-out
    data, and ``accuracy``, on the test data after the long finetune.

    Args:
        pruning: the problem.
        finetune_steps: of the long finetune.
    """
    definition, objective = pruning.network.definition, pruning.task.objective

    def job(
        hparams: Mapping[str, jax.Array], key: jax.Array, shared: dict[str, PyTree]
    ) -> dict[str, jax.Array]:
        gates = masks_to_gates(shared["env"], shared["masks"][hparams["candidate"]])
        short_key, long_key = jax.random.split(key)

        def reward(steps: int | None) -> jax.Array:
            variables: Variables = shared["variables"]
            if steps:
                variables = finetuned(pruning, variables, gates, shared["train"], steps, short_key)
            evaluator = Evaluator(definition, objective, recalibration=steps is not None)
            return evaluate_candidate(evaluator, variables, gates, shared["data"]).metric

        rewards = {name: reward(steps) for name, steps in PROXIES.items()}
        accuracy = finetuned_accuracy(pruning, shared, gates, finetune_steps, long_key)
        return rewards | {"accuracy": accuracy}

    return job


def random_candidates(pruning: Pruning, count: int) -> jax.Array:
    """Draw different random masks within the budget.

    In keep ratios of groups.

    Args:
        pruning: the problem.
        count: how many.

    Returns:
        f32[count, G, Cmax].

    Raises:
        ValueError: fewer different ones were found.
    """
    method = search_method(random_search, num_candidates=4 * count, granularity="coarse")
    searcher = method(pruning.env)
    state = searcher.init(None, jax.random.key(0))
    masks = searcher.ask(state, stage_key(pruning.config.seed, "proxy"))[0].masks
    flat = np.asarray(masks, bool).reshape(len(masks), -1)
    _, first = np.unique(flat, axis=0, return_index=True)
    if len(first) < count:
        raise ValueError(
            f"candidates={count}: only {len(first)} different ones were found; lower it or raise "
            "the budget"
        )
    return masks[jnp.asarray(np.sort(first)[:count])]
