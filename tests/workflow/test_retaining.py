"""What retention adds to rewards, and where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import QUICK, small_mlp, small_pruning

from rlprune_jax.search import masks_to_gates
from rlprune_jax.training.task import Task, regression
from rlprune_jax.units import mean_retention, retention, unit_covariances
from rlprune_jax.workflow.config import PruneConfig, resolve
from rlprune_jax.workflow.pruning import RETENTION, make_pruning
from rlprune_jax.workflow.retaining import dense_covariances, with_retention
from rlprune_jax.workflow.searches import search

SMALL = small_mlp()


def test_a_reward_is_the_weighted_mean_of_the_metric_and_of_retention():
    plain = search(small_pruning("params=0.5", reward_retention=0.0), "random_search")
    mixed = search(small_pruning("params=0.5", reward_retention=3.0), "random_search")
    pruning = small_pruning("params=0.5", reward_retention=3.0)
    entries = mixed.archive.feasible
    gates = masks_to_gates(pruning.env, jnp.asarray(entries.masks[0], jnp.float32))
    inputs = pruning.task.objective.network_inputs(pruning.task.sample("train", 16))
    found = unit_covariances(pruning.network.apply, pruning.graph, SMALL.variables, inputs)
    kept = float(mean_retention(retention(pruning.graph, found, gates)))
    # Both draw the same candidates, so the same one is there with its plain reward.
    place = np.unravel_index(np.argmax(mixed.rewards), mixed.rewards.shape)
    expected = (float(plain.rewards[place]) + 3 * kept) / 4
    np.testing.assert_allclose(entries.rewards[0], expected, rtol=1e-4)
    assert 0 < kept < 1


@pytest.mark.parametrize(
    "settings, expected",
    [({}, RETENTION), ({"finetune_steps": 0}, 0.0), ({"reward": "loss"}, 0.0)],
)
def test_retention_counts_beside_an_accuracy_of_what_is_finetuned(settings, expected):
    pruning = small_pruning("params=0.5", **{"reward_retention": None, **settings})
    assert pruning.config.reward_retention == expected
    assert (dense_covariances(pruning) is None) == (expected == 0)


def test_retention_does_not_count_beside_a_metric_of_any_scale():
    task = SMALL.task
    data = [jax.tree.map(lambda leaf: leaf, split) for split in (task.train, task.held_out)]
    values = [(inputs, np.eye(3, dtype=np.float32)[labels]) for inputs, labels in data]
    own: Task = regression(values[0], values[1], values[1])
    config = PruneConfig(**{**QUICK, "reward_retention": None})
    found = make_pruning(SMALL.network, own, "params=0.5", config)
    assert found.config.reward_retention == 0.0


def test_without_covariances_rewards_stay():
    pruning, rewards = small_pruning("params=0.5"), jnp.array([0.5, 0.25])
    assert with_retention(pruning, None, rewards, jnp.ones((2, 1, 1))) is rewards


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "much"])
def test_a_weight_that_cannot_be_is_refused(weight):
    with pytest.raises((ValueError, TypeError), match="reward_retention"):
        resolve(PruneConfig(reward_retention=weight))
