"""The job of a study of adaptive pruning by the PQ Index: the whole loop as one scan."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.sparsity.pruners import sap
from rlprune_jax.training import data
from rlprune_jax.training.augmentation import make_prepare
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.workflow.iterative import IterativeData, iterative_pruning

NAMES = ("p", "q", "eta_r", "gamma", "beta", "scope")


def sap_job(config: Any) -> tuple[Callable[..., dict[str, jax.Array]], IterativeData]:
    """The job ``(hparams, key, shared, scope) -> metrics`` and the images it shares.

    Metrics: ``accuracy`` and ``density`` of the last network; ``kept_sparsity``, the largest
    sparsity whose accuracy is within a point of the dense network's, 0 if none; ``dense_accuracy``.
    """
    dataset = data.load(config.dataset, config.data_dir, seed=config.seed)
    # Held-out images take the place of the test ones: a study chooses by what it reads.
    shared = IterativeData(
        *map(jnp.asarray, (dataset.train.images, dataset.train.labels)),
        *map(jnp.asarray, (dataset.held_out.images, dataset.held_out.labels)),
    )
    options: dict[str, Any] = {"widths": config.widths} if config.widths else {}
    functions = model_functions(create_model(config.model, dataset.num_classes, **options))
    prepare = make_prepare(jnp.array(dataset.mean), jnp.array(dataset.std))
    batch = min(config.batch_size, len(dataset.train.labels))
    steps = max(1, config.epochs * (len(dataset.train.labels) // batch))
    optimizer = make_optimizer(
        "sgd",
        learning_rate=0.1,
        num_steps=steps,
        schedule="cosine",
        weight_decay=5e-4,
        decayed="all",
        clip_norm=1.0,
    )

    def job(
        hparams: Mapping[str, jax.Array], key: jax.Array, shared: IterativeData, scope: str
    ) -> dict[str, jax.Array]:
        numbers: dict[str, Any] = {name: hparams[name] for name in NAMES[:-1] if name in hparams}
        loop = iterative_pruning(
            functions,
            optimizer,
            sap(**numbers, scope=scope),
            batch_size=batch,
            num_steps=steps,
            prepare=prepare,
            evaluation_batch=min(500, len(shared.test_labels)),
        )

        def step(state: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            state, measured = loop.step(state, shared)
            return state, (measured.accuracy, measured.density)

        state = loop.init(shared, key)
        _, (accuracy, density) = jax.lax.scan(step, state, None, length=config.iterations + 1)
        near = accuracy >= accuracy[0] - 0.01
        return {
            "kept_sparsity": jnp.max(jnp.where(near, 1.0 - density, 0.0)),
            "accuracy": accuracy[-1],
            "density": density[-1],
            "dense_accuracy": accuracy[0],
        }

    return job, shared
