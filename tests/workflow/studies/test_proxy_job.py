"""The job of one candidate against the network that is really cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import candidate_costs, masks_to_gates
from rlprune_jax.workflow.delivery import evaluate_network
from rlprune_jax.workflow.learning import Training, run_training
from rlprune_jax.workflow.recipes import finetune_recipe
from rlprune_jax.workflow.studies.proxy_job import proxy_study_job, random_candidates


def test_rewards_of_a_candidate(pruning):
    job = proxy_study_job(pruning, 3, finetune_steps=40)
    found = jax.jit(job.job)({"candidate": jnp.int32(1)}, jax.random.key(0), job.shared)
    gates = masks_to_gates(pruning.env, job.shared["masks"][1])
    slim = pruning.network.slim(gates)
    inputs, labels = pruning.task.sample("held_out", 64)
    logits = slim(*pruning.task.objective.network_inputs((inputs, labels)))
    expected = float(jnp.mean(jnp.argmax(logits, -1) == labels))
    np.testing.assert_allclose(found["no_recalibration"], expected, rtol=1e-6)
    # An MLP has no running statistics.
    assert found["recalibration"] == found["no_recalibration"]
    # The long finetune is that of a delivery.
    training = Training(
        name="finetune",
        network=pruning.network,
        objective=pruning.task.objective,
        data=job.shared["all"],
        recipe=finetune_recipe(pruning.config),
        steps=40,
        gates=gates,
    )
    tuned = run_training(training, jax.random.split(jax.random.key(0))[1])
    cut = pruning.network.replace(tuned).slim(gates)
    whole = evaluate_network(cut, pruning.task.objective, pruning.task.test)
    np.testing.assert_allclose(found["accuracy"], whole.metric, atol=0.01)
    before = evaluate_network(slim, pruning.task.objective, pruning.task.test)
    assert whole.loss < before.loss
    assert set(found) == {
        *("no_recalibration", "recalibration", "finetune_32", "finetune_128", "accuracy")
    }


def test_candidates_differ_and_meet_the_budget(pruning):
    masks = random_candidates(pruning, 4)
    assert len({np.asarray(mask).tobytes() for mask in masks}) == 4
    assert (candidate_costs(pruning.env, masks) <= 0.5).all()


def test_too_few_different_candidates_are_refused(pruning):
    with pytest.raises(ValueError, match="candidates=200: only"):
        random_candidates(pruning, 200)
