"""The job of one iterative pruning against the loop stepped from Python."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.sparsity.pruners import sap
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.workflow.iterative import Schedule, iterative_pruning
from rlprune_jax.workflow.studies import SapStudy
from rlprune_jax.workflow.studies.problem import build
from rlprune_jax.workflow.studies.sap_job import sap_study_job

TINY = SapStudy(widths=(6,), iterations=2, epochs=1)


def test_the_scan_is_the_loop():
    job = sap_study_job(TINY)
    numbers = {"p": 0.5, "q": 2.0, "eta_r": 0.1, "gamma": 1.0, "beta": 0.6}
    hparams = {name: jnp.float32(value) for name, value in numbers.items()}
    found = jax.jit(job.job, static_argnums=3)(hparams, jax.random.key(3), job.shared, "layer")
    task = build(TINY)[1]
    module = create_model("mlp", 10, widths=(6,))
    optimizer = make_optimizer(
        "sgd",
        learning_rate=0.1,
        num_steps=4,
        schedule="cosine",
        weight_decay=5e-4,
        decayed="all",
        clip_norm=1.0,
    )
    loop = iterative_pruning(
        model_functions(module),
        dataclasses.replace(task.objective, augment=None),
        optimizer,
        sap(**numbers, scope="layer"),
        Schedule(batch_size=250, num_steps=4),  # 1,150 images
    )
    state = loop.init(job.shared, jax.random.key(3))
    step, rows = jax.jit(loop.step), []
    for _ in range(3):
        state, row = step(state, job.shared)
        rows.append(row)
    near = [row for row in rows if row.metric >= rows[0].metric - 0.01]
    assert float(rows[-1].density) < float(rows[0].density) == 1
    np.testing.assert_allclose(found["density"], rows[-1].density, rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], rows[-1].metric, atol=1e-2)
    np.testing.assert_allclose(found["dense_accuracy"], rows[0].metric, atol=1e-2)
    if len(near) == 1:
        assert found["kept_sparsity"] == 0


def test_a_batch_above_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size=100000 is above the 1150 training images"):
        sap_study_job(dataclasses.replace(TINY, batch_size=100_000))
