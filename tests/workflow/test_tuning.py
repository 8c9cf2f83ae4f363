"""What is finetuned, on what, and by whom."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import in_batches, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.runs import DivergenceError, MemoryRun
from rlprune_jax.workflow.tuning import MaskedFunction, Tuner, check_tuned, training_data

SMALL = small_mlp()


def half(gates):
    return {name: gate.at[: gate.size // 2].set(0.0) for name, gate in gates.items()}


def test_a_users_finetune_gets_the_masked_network_and_the_steps():
    pruning, seen = small_pruning(), []

    def finetune(apply, variables, steps, key):
        seen.append((steps, jax.random.key_data(key).tolist()))
        x, y = pruning.task.train

        def loss(variables):
            return pruning.task.loss(apply(variables, x), (x, y))

        slopes = jax.grad(loss)(variables)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, variables, slopes)

    tuner = Tuner(pruning, "agent", finetune, MemoryRun())
    gates = half(SMALL.ones)
    short, last = tuner.short(0, gates), tuner.last(gates)
    assert [steps for steps, _ in seen] == [2, 4]
    assert seen[0][1] != seen[1][1]
    # Rows of what is pruned have no slope.
    np.testing.assert_array_equal(last["b"][:4], SMALL.variables["b"][:4])
    assert not np.array_equal(short["b"][4:, 3:], SMALL.variables["b"][4:, 3:])


def test_ours_trains_with_the_held_out_data_in_the_last_finetune_only(monkeypatch):
    from rlprune_jax.workflow import tuning

    seen = []
    monkeypatch.setattr(
        tuning, "run_training", lambda training, *_: seen.append(training) or "tuned"
    )
    tuner = Tuner(small_pruning(), "uniform", None, MemoryRun())
    assert tuner.short(1, SMALL.ones) == tuner.last(SMALL.ones) == "tuned"
    assert [each.name for each in seen] == ["rerank1-uniform", "finetune-uniform"]
    assert [each.steps for each in seen] == [2, 4]
    x = np.concatenate([SMALL.task.train[0], SMALL.task.held_out[0]])
    np.testing.assert_array_equal(seen[1].data[0], x)
    np.testing.assert_array_equal(seen[0].data[0], [*SMALL.task.train[0], *x[:24]])


def test_without_steps_what_is_repaired_is_delivered_and_nobody_trains():
    def finetune(*given):
        raise AssertionError("nothing is to be trained")

    pruning = small_pruning(finetune_steps=0, rerank_steps=0)
    assert pruning.config.repair
    gates = half(SMALL.ones)
    for own in (None, finetune):
        tuner = Tuner(pruning, "agent", own, MemoryRun())
        found = tuner.last(gates)
        inputs = (SMALL.task.train[0],)
        wanted = rp.units.repair(SMALL.network.apply, SMALL.graph, SMALL.variables, gates, inputs)
        for name, leaf in wanted.items():
            np.testing.assert_allclose(found[name], leaf, atol=1e-5)
        np.testing.assert_array_equal(tuner.short(0, gates)["c"], found["c"])
    plain = small_pruning(finetune_steps=0, rerank_steps=0, repair=False)
    left = Tuner(plain, "agent", None, MemoryRun()).last(gates)
    jax.tree.map(np.testing.assert_array_equal, left, SMALL.variables)


def test_a_finetune_starts_from_repaired_weights_where_asked(monkeypatch):
    from rlprune_jax.workflow import tuning

    seen = []
    monkeypatch.setattr(
        tuning, "run_training", lambda training, *_: seen.append(training) or "tuned"
    )
    gates = half(SMALL.ones)
    for asked in (False, True):
        tuner = Tuner(small_pruning(repair=asked), "agent", None, MemoryRun())
        tuner.short(0, gates)
        tuner.last(gates)
    first = [np.asarray(each.network.variables["c"]) for each in seen]
    np.testing.assert_array_equal(first[0], SMALL.variables["c"])
    assert np.abs(first[2] - first[0]).max() > 1e-3
    np.testing.assert_array_equal(first[2], first[3])


def test_streams_go_through_both_splits():
    held = SMALL.task.held_out
    task = rp.Task(
        SMALL.task.loss,
        SMALL.task.metric,
        in_batches(SMALL.task.train, 20),
        held,
        SMALL.task.test,
    )
    assert [len(y) for _, y in training_data(task, False, 10)()] == [20, 20, 8]
    found = list(training_data(task, True, 10)())
    assert [len(y) for _, y in found] == [20, 20, 8, 10, 10, 4]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found[3:]]), held[0])


def test_the_masked_function_takes_what_linen_takes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            x = nn.BatchNorm(use_running_average=not training)(nn.Dense(5)(x))
            return nn.Dense(2)(nn.relu(x))

    x = jax.random.normal(jax.random.key(0), (6, 3))
    network = rp.Network.from_linen(Net(), Net().init(jax.random.key(1), x), x)
    gates = half(rp.ones_gates(network.graph))
    apply = MaskedFunction(network.definition, gates)
    outputs, changed = apply(network.variables, x, training=True, mutable=["batch_stats"])
    again, updates = apply.train(network.variables, x, key=jax.random.key(0))
    np.testing.assert_allclose(outputs, again, rtol=1e-6)
    assert set(changed) == set(updates) == {"batch_stats"}
    slim = network.slim(gates)
    np.testing.assert_allclose(apply(network.variables, x), slim(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: None, ValueError, "leaf 'a' has shape None"),
        (
            lambda v: {**v, "b": v["b"][:2]},
            ValueError,
            r"leaf 'b' has shape \(2, 6\), and \(8, 6\)",
        ),
        (lambda v: {**v, "z": v["b"]}, ValueError, "leaf 'z' has shape .* and None before"),
        (lambda v: {**v, "c": v["c"] * jnp.nan}, DivergenceError, "not finite at 'c'; lower"),
    ],
)
def test_what_a_users_finetune_returns_is_checked(change, error, message):
    with pytest.raises(error, match=message):
        check_tuned(SMALL.variables, change(SMALL.variables))
    check_tuned(SMALL.variables, jax.tree.map(lambda leaf: leaf + 1, SMALL.variables))
