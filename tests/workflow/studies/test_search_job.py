"""The job of one search against the same steps taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.costs import count_params
from rlprune_jax.search import masks_to_gates, project_ratios, ratios_to_masks
from rlprune_jax.workflow.studies.search_job import search_study_job, strategy_of, with_limit


def slim_accuracy(pruning, gates, batch):
    """Accuracy of the network that is really cut: another way to a reward."""
    slim = pruning.network.slim(gates)
    logits = slim(*pruning.task.objective.network_inputs(batch))
    return float(jnp.mean(jnp.argmax(logits, -1) == batch[1]))


def test_the_uniform_method_rewards_the_uniform_network(pruning):
    job = search_study_job(pruning, ("method",), finetune_steps=5)
    limit = 0.4
    call = jax.jit(job.job, static_argnums=3)
    found = call({"params": limit}, jax.random.key(0), job.shared, "uniform")
    env = with_limit(pruning.env, jnp.float32(limit))
    masks = ratios_to_masks(env, project_ratios(env, jnp.full(env.num_groups, 0.5)))
    gates = masks_to_gates(env, masks)
    cost = count_params(pruning.graph, gates) / count_params(pruning.graph)
    assert cost <= limit
    np.testing.assert_allclose(found["cost"], cost, rtol=1e-6)
    held_out = pruning.task.sample("held_out", 64)
    np.testing.assert_allclose(found["reward"], slim_accuracy(pruning, gates, held_out), rtol=1e-6)
    np.testing.assert_allclose(found["area"], found["reward"])  # one evaluation
    assert found["feasible_fraction"] == 1
    before = slim_accuracy(pruning, gates, pruning.task.test)
    assert abs(found["accuracy"] - before) < 0.1 and found["accuracy"] != before  # a few steps


@pytest.fixture(scope="module")
def searched(pruning):
    """The agent under two limits, with two rates and three seeds."""
    job = search_study_job(pruning, ())
    keys = jax.random.split(jax.random.key(1), 3)

    def cell(limit, rate, key):
        return job.job({"params": limit, "unit_learning_rate": rate}, key, job.shared)

    grid = jax.vmap(jax.vmap(cell, (None, None, 0)), (0, 0, None))
    return jax.jit(grid)(jnp.array([0.4, 0.7, 0.7]), jnp.array([0.1, 0.1, 0.8]), keys)


def test_limits_are_kept_and_more_room_is_used(searched):
    assert (searched["cost"] <= jnp.array([[0.4], [0.7], [0.7]]) + 1e-6).all()
    assert (searched["cost"][1] > 0.4).all()
    assert ((searched["area"] >= 0) & (searched["area"] <= searched["reward"])).all()
    assert (searched["feasible_fraction"] == 1).all()  # all candidates are projected


def test_numbers_and_keys_of_the_agent_reach_it(searched):
    assert not np.array_equal(searched["area"][1], searched["area"][2])
    assert len(set(np.asarray(searched["area"][1]).tolist())) > 1


def test_structure_reaches_the_method(pruning):
    structure = {"epochs": 2, "shaping": "elite", "candidates": 6, "granularity": "coarse"}
    variables = pruning.network.variables
    strategy = strategy_of(pruning, variables, pruning.env, "agent", structure)
    config = dict(strategy.method.options)["config"]
    assert (config.epochs, config.shaping, config.granularity) == (2, "elite", "coarse")
    assert config.candidates == 6
    assert config.iterations == strategy.iterations == 2  # 12 evaluations


def test_the_job_knows_its_names(pruning):
    job = search_study_job(pruning, ())
    assert {"params", "method", "epochs", "unit_learning_rate", "candidates"} <= set(job.known)
    assert job.cost == "params" and 0 < job.dense_accuracy < 1
    assert "train" not in job.shared and "test" not in job.shared
