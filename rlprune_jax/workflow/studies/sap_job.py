"""The job of one iterative pruning by the PQ Index: the whole loop as one scan."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlprune_jax.models import model_functions
from rlprune_jax.sparsity.pruners import sap
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.iterative import IterativeData, Schedule, iterative_pruning
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.problem import build_module
from rlprune_jax.workflow.studies.sap import NUMBERS, SapStudy

NEAR = 0.01
"""Accuracy that may be lost where a sparsity counts as kept."""


def sap_study_job(study: SapStudy) -> StudyJob:
    """Make the job of one iterative pruning.

    Metrics: ``accuracy`` and ``density`` of the last network; ``kept_sparsity``, the largest
    sparsity whose accuracy is within a point of the dense network's, 0 if none; ``dense_accuracy``.
    Accuracies are on held-out data, since a study chooses by what it reads.

    Raises:
        ValueError: a batch above the training images, or an unknown model.
    """
    module, task = build_module(study)
    functions = model_functions(module)
    objective = dataclasses.replace(task.objective, augment=None)
    images = task.size("train")
    assert images is not None
    if study.batch_size > images:
        raise ValueError(
            f"batch_size={study.batch_size} is above the {images} training images of "
            f"{study.dataset}; lower it"
        )
    data = IterativeData(*jax.tree.map(jnp.asarray, (task.train, task.held_out)))
    schedule = Schedule(
        batch_size=study.batch_size, num_steps=study.epochs * (images // study.batch_size)
    )
    optimizer = make_optimizer(
        "sgd",
        learning_rate=0.1,
        num_steps=schedule.num_steps,
        schedule="cosine",
        weight_decay=5e-4,
        decayed="all",
        clip_norm=1.0,
    )

    def job(
        hparams: Mapping[str, jax.Array], key: jax.Array, shared: IterativeData, scope: str
    ) -> dict[str, jax.Array]:
        pruner = sap(**{name: hparams[name] for name in NUMBERS}, scope=scope)  # type: ignore[arg-type]
        loop = iterative_pruning(functions, objective, optimizer, pruner, schedule)

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

    return StudyJob(job=job, shared=data, known=(*NUMBERS, "scope"), static=("scope",))
