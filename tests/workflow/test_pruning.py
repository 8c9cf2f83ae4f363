"""What cannot be pruned is refused at the door; what can is bound once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import QUICK, in_batches, mlp_apply, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.training.task import TaskError
from rlprune_jax.workflow.config import PruneConfig, resolve
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.network import NetworkError
from rlprune_jax.workflow.pruning import (
    bind_budgets,
    candidate_data,
    check_fit,
    check_problem,
    repeated,
)

SMALL = small_mlp()
NETWORK, TASK = SMALL.network, SMALL.task
X, Y = TASK.train
CONFIG = resolve(PruneConfig(**QUICK))


def problem(task=TASK, network=NETWORK, budgets="params=0.5", **settings):
    return check_problem(network, task, budgets, PruneConfig(**settings))


def with_splits(**changes):
    splits = {split: getattr(TASK, split) for split in ("train", "held_out", "test")}
    return rp.Task(TASK.loss, TASK.metric, **{**splits, **changes})


def test_a_problem_holds_what_every_stage_takes():
    pruning = small_pruning("params=0.5", "macs=0.6")
    assert pruning.graph is NETWORK.graph
    assert [each.budget.name for each in pruning.constraints] == ["params", "macs"]
    np.testing.assert_allclose(pruning.env.limits, [0.5, 0.6])
    # A network without running statistics, of unknown training: all but its finetune is as given.
    assert pruning.config == dataclasses.replace(
        CONFIG, finetune_rule="adam", finetune_rate=pruning.config.finetune_rate
    )
    assert isinstance(pruning.task.train[0], jax.Array)


def test_the_least_reachable_value_is_told_before_any_training():
    """With one unit a group, 4 + 1 + 1 + 3 = 9 of 106 parameters are left, 0.0849."""
    config = PruneConfig(min_keep=1)
    with pytest.raises(ValueError, match=r"'params'=0.05 cannot be met.* to at least 0.085"):
        bind_budgets(NETWORK, ["params=0.05"], config)
    assert bind_budgets(NETWORK, "params=0.085", config)[0].budget.limit == 0.085
    with pytest.raises(ValueError, match=r"params.* cannot be met: min_keep=\{'.\*': 1, 'a': 8\}"):
        problem(budgets="params=0.3", min_keep=1, min_keep_of=("a=8",))


def test_a_cost_of_the_host_asks_for_both_ways_of_handling_constraints():
    budget = rp.Budget("energy", 0.5, True, lambda widths, gates: sum(widths.values()))
    pruning = rp.make_pruning(NETWORK, TASK, [budget], PruneConfig(**QUICK))
    assert pruning.config.constraint == "both"
    assert pruning.env.measured == (True,)


@pytest.mark.parametrize(
    ("network", "task", "message"),
    [
        (lambda v, x: x, TASK, "network is a function, not a Network; make one by"),
        (NETWORK, (X, Y), "task is a tuple, not a Task; make one by classification"),
    ],
)
def test_other_things_are_no_network_and_no_task(network, task, message):
    with pytest.raises(TypeError, match=message):
        problem(task, network)


def test_weights_that_are_nan_are_refused_naming_the_leaf():
    bad = {**NETWORK.variables, "b": NETWORK.variables["b"].at[1, 2].set(jnp.nan)}
    with pytest.raises(NetworkError, match="not finite at 'b'"):
        rp.Network(mlp_apply, bad, X[:2])
    with pytest.raises(NetworkError, match="not finite at 'b'"):
        problem(network=NETWORK.replace(bad))


def test_a_network_without_groups_is_refused():
    network = rp.Network(lambda v, x: x @ v["a"], {"a": jnp.ones((4, 3))}, X[:2])
    with pytest.raises(ValueError, match="nothing in this network can be pruned"):
        problem(network=network)


def test_accuracy_of_a_regression_is_refused():
    targets = np.zeros((6, 3), np.float32)
    data = (X[:6], targets)
    with pytest.raises(TaskError, match="reward='accuracy': the task's metric is 'negative_loss'"):
        problem(rp.regression(data, data, data), reward="accuracy")
    with pytest.raises(TaskError, match=r"task's metric.*accuracy takes one integer"):
        problem(rp.regression(data, data, data, metric="accuracy"))
    problem(TASK, reward="accuracy")


@pytest.mark.parametrize("split", ["train", "held_out", "test"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:6, :3], Y[:6]), "the network does not take the task's inputs.*float32.6, 3"),
        ((X[:6], np.full(6, 3, np.int32)), "labels hold 3; the network tells 3 classes apart"),
    ],
)
def test_each_split_has_to_fit_the_network(split, data, message):
    data = (data[0][:2], data[1][:2]) if "float32" in message else data
    message = message.replace("6, 3", "2, 3")
    splits = {each: getattr(TASK, each) for each in ("train", "held_out", "test")}
    task = rp.classification(**{**splits, split: data})
    with pytest.raises(TaskError, match=f"{split}: {message}"):
        problem(task)


def test_held_out_examples_of_another_kind_are_refused():
    """They are joined with the training data in the last finetune."""
    held_out = {"x": TASK.held_out[0], "y": TASK.held_out[1]}
    task = rp.Task(
        lambda outputs, batch: outputs.sum(),
        lambda outputs, batch: outputs.sum(),
        TASK.train,
        held_out,
        TASK.test,
        inputs=lambda batch: batch["x"] if isinstance(batch, dict) else batch[0],
    )
    with pytest.raises(TaskError, match="train and held_out hold examples of different kinds"):
        problem(task)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, batch: outputs[:, 5].mean() + batch[3], "do not fit the task's loss"),
        (lambda outputs, batch: outputs.mean(-1), r"loss returns float32\[2\], not a scalar"),
    ],
)
def test_outputs_that_do_not_fit_the_loss_are_refused(loss, message):
    splits = [getattr(TASK, each) for each in ("train", "held_out", "test")]
    with pytest.raises(TaskError, match=message):
        problem(rp.Task(loss, TASK.metric, *splits))


def test_a_metric_is_not_named_as_something_else_is():
    task = rp.Task(TASK.loss, TASK.metric, *[TASK.train] * 3, metric_name="params")
    with pytest.raises(TaskError, match="metric_name='params' has another meaning"):
        problem(task)


def test_checking_computes_nothing():
    def loss(outputs, batch):
        assert isinstance(outputs, jax.core.Tracer)
        return outputs.mean()

    check_fit(NETWORK, rp.Task(loss, loss, *[TASK.train] * 3, metric_name="own"), CONFIG)


def test_the_scores_of_units_are_those_asked_for():
    from rlprune_jax.units import magnitude_scores, random_scores

    by_score = {name: small_pruning(score=name).env for name in ("magnitude", "random")}
    wanted = magnitude_scores(SMALL.graph, SMALL.variables)
    drawn = random_scores(SMALL.graph, stage_key(0, "scores"))
    for index, (name, size) in enumerate(zip(SMALL.graph.names, SMALL.graph.sizes, strict=True)):
        found = by_score["magnitude"].raw_scores[index, :size]
        np.testing.assert_allclose(found, wanted[name], rtol=1e-6)
        np.testing.assert_allclose(by_score["random"].raw_scores[index, :size], drawn[name])


def test_taylor_scores_are_the_slopes_of_the_tasks_own_loss():
    """All 48 examples are one minibatch, so the score is the squared slope of the whole loss."""
    env = small_pruning().env
    ones = SMALL.ones

    def loss(gates):
        return TASK.loss(NETWORK.definition.masked(SMALL.variables, gates, jnp.asarray(X)), (X, Y))

    slopes = jax.grad(loss)(ones)
    for index, name in enumerate(SMALL.graph.names):
        expected = np.asarray(slopes[name]) ** 2
        np.testing.assert_allclose(
            env.raw_scores[index, : len(expected)], expected, rtol=1e-4, atol=1e-9
        )


def test_candidates_see_the_numbers_of_examples_that_are_asked_for():
    pruning = small_pruning()
    data = candidate_data(pruning)
    assert data.calibration[0].shape == (16, 4) and data.batch[0].shape == (24, 4)
    assert data.train is None
    assert candidate_data(pruning, train=True).train[0].shape == (48, 4)
    streamed = with_splits(train=in_batches(TASK.train, 20))
    data = candidate_data(small_pruning(task=streamed), train=True)
    np.testing.assert_array_equal(data.train[0], X)
    np.testing.assert_array_equal(data.calibration[0], X[:16])


def test_inputs_are_repeated_or_cut_to_a_number_of_examples():
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(repeated((x,), 4)[0], [[0, 1], [2, 3], [4, 5], [0, 1]])
    np.testing.assert_array_equal(repeated(({"x": x},), 1)[0]["x"], [[0, 1]])
    shape = jax.ShapeDtypeStruct((3, 2), jnp.int32)
    found = repeated((shape, np.float32(2)), 5)
    assert (found[0].shape, found[0].dtype, float(found[1])) == ((5, 2), jnp.int32, 2.0)


def test_keys_of_stages_differ():
    keys = [
        jax.random.key_data(stage_key(seed, name))
        for seed in (0, 1)
        for name in ("dense", "search", "deploy", "scores")
    ]
    assert len({tuple(np.asarray(key)) for key in keys}) == len(keys)
