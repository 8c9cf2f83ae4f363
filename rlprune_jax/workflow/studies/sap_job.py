"""The job of one iterative pruning by the PQ Index: the whole loop as one scan."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlprune_jax.sparsity.pruners import sap
from rlprune_jax.training.task import count_examples
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.curves import functions_of, paper_optimizer
from rlprune_jax.workflow.iterative import IterativeData, Schedule, iterative_pruning
from rlprune_jax.workflow.pruning import check_arrays, check_fit
from rlprune_jax.workflow.sap import prunable_of
from rlprune_jax.workflow.sources import is_own
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.problem import build
from rlprune_jax.workflow.studies.sap import NUMBERS, SapStudy

NEAR = 0.01
"""Accuracy that may be lost where a sparsity counts as kept."""


def sap_study_job(study: SapStudy) -> StudyJob:
    """Make the job of one iterative pruning.

    Metrics: ``accuracy`` and ``density`` of the last network; ``kept_sparsity``, the largest
    sparsity whose accuracy is within a point of the dense network's, 0 if none; ``dense_accuracy``.
    Accuracies are the task's metric on held-out data, since a study chooses by what it reads.

    Raises:
        ValueError: a batch above the training images, or a network or data that cannot be.
        TaskError: data that come batch by batch, or that do not fit the network.
    """
    (network, _, init), task = build(study)
    check_arrays(task, "iterative pruning does")
    check_fit(network, task, PruneConfig())
    images = count_examples(task.train)
    if study.batch_size > images:
        raise ValueError(
            f"batch_size={study.batch_size} is above the {images} training images of "
            f"{study.dataset}; lower it"
        )
    functions = functions_of(network, init)
    # Built-in images are augmented where a network is trained once; here as in the paper.
    own = is_own(study.dataset)
    objective = task.objective if own else dataclasses.replace(task.objective, augment=None)
    data = IterativeData(*jax.tree.map(jnp.asarray, (task.train, task.held_out)))
    schedule = Schedule(
        batch_size=study.batch_size, num_steps=study.epochs * (images // study.batch_size)
    )
    optimizer = paper_optimizer(schedule.num_steps)
    prunable = prunable_of(study.ignore)

    def job(
        hparams: Mapping[str, jax.Array], key: jax.Array, shared: IterativeData, scope: str
    ) -> dict[str, jax.Array]:
        pruner = sap(**{name: hparams[name] for name in NUMBERS}, scope=scope)  # type: ignore[arg-type]
        loop = iterative_pruning(functions, objective, optimizer, pruner, schedule, prunable)

        def step(state: PyTree, _: None) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
            state, measured = loop.step(state, shared)
            return state, (measured.metric, measured.density)

        state = loop.init(shared, key)
        _, (accuracy, density) = jax.lax.scan(step, state, None, length=study.iterations + 1)
        near = accuracy >= accuracy[0] - NEAR
        return {
            "kept_sparsity": jnp.max(jnp.where(near, 1.0 - density, 0.0)),
            "accuracy": accuracy[-1],
            "density": density[-1],
            "dense_accuracy": accuracy[0],
        }

    return StudyJob(
        job=job,
        shared=data,
        known=(*NUMBERS, "scope"),
        static=("scope",),
        task_metric=objective.metric_name,
    )
