"""What a pruned network is compared with: dense trained on, its widths from scratch."""

import functools

import jax
import numpy as np
import pytest
from small import QUICK, small_cnn, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.runs import MemoryRun
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.controls import all_controls, fresh_variables, from_scratch, trained_on
from rlprune_jax.workflow.delivery import deliver
from rlprune_jax.workflow.network import NetworkError
from rlprune_jax.workflow.pruning import make_pruning
from rlprune_jax.workflow.searches import search

SMALL = small_mlp()


@functools.cache
def delivered():
    pruning = small_pruning(rerank=1)
    return deliver(pruning, search(pruning, "uniform"))


def recorded(monkeypatch):
    """Every training that is asked for, none of which is done."""
    from rlprune_jax.workflow import tuning

    seen = []

    def note(training, *_):
        seen.append(training)
        return training.network.variables

    monkeypatch.setattr(tuning, "run_training", note)
    return seen


def test_controls_are_trained_as_what_is_delivered_is(monkeypatch):
    found = delivered()
    seen = recorded(monkeypatch)
    fresh = jax.tree.map(lambda leaf: 0.5 * leaf, SMALL.variables)
    one = trained_on(found.pruning)
    other = from_scratch(found, 8, fresh=fresh)
    dense, scratch = seen
    assert (one.steps, other.steps) == (4, 8) == (dense.steps, scratch.steps)
    assert all(np.asarray(gate).all() for gate in dense.gates.values())
    assert scratch.gates is found.gates
    np.testing.assert_array_equal(scratch.network.variables["a"], fresh["a"])
    # The network tells its own labels without error, and does nothing else where it is untrained.
    assert one.metric == 1.0
    everything = np.concatenate([SMALL.task.train[0], SMALL.task.held_out[0]])
    for training in seen:
        np.testing.assert_array_equal(training.data[0], everything)
        assert training.recipe.rule == "adam"


def test_a_network_that_cannot_be_initialised_has_no_scratch():
    run = MemoryRun()
    assert list(all_controls(delivered(), run=run)) == ["trained_on"]
    assert [row["step"] for row in run.metrics("trained_on4-dense")] == [4]
    with pytest.raises(NetworkError, match="give fresh=variables"):
        from_scratch(delivered())


def test_a_linen_network_is_initialised_anew():
    small = small_cnn()
    pruning = make_pruning(small.network, small.task, "params=0.5", PruneConfig(reward_images=12))
    fresh = fresh_variables(pruning)
    assert jax.tree.structure(fresh) == jax.tree.structure(small.variables)
    kernel, dense = (each["params"]["conv1"]["kernel"] for each in (fresh, small.variables))
    assert np.std(kernel) > 0 and not np.allclose(kernel, dense)
    np.testing.assert_array_equal(fresh["batch_stats"]["norm1"]["var"], 1.0)
    assert small.network.slim(rp.ones_gates(small.graph)).definition.init is None
    # Batch norm tells that SGD trained it.
    assert pruning.config.finetune_rule == "sgd"


def test_a_users_training_trains_the_controls_too():
    seen = []

    def finetune(apply, variables, steps, key):
        seen.append(steps)
        return variables

    found = delivered()
    control = trained_on(found.pruning, 3, finetune=finetune)
    assert seen == [3] and control.metric == 1.0


def test_results_tell_controls(tmp_path):
    config = {**QUICK, "baselines": (), "rerank": 1}
    result = rp.prune(
        SMALL.network, SMALL.task, "params=0.5", controls=True, run_dir=tmp_path, **config
    )
    assert result.test_examples == 24 and set(result.controls) == {"trained_on"}
    assert "dense trained on" in str(result)
    again = rp.PruneResult.read(tmp_path)
    assert again.controls == result.controls and again.test_examples == 24
