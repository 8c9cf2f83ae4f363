"""N candidates in one call equal N networks evaluated one by one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import Small, random_gates, small_mlp

import rlprune_jax as rp
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.units import RepairMethod, merge_units, repair
from rlprune_jax.workflow import candidates
from rlprune_jax.workflow.candidates import (
    CandidateData,
    Evaluator,
    Halving,
    chunk_for_memory,
    evaluate_candidate,
    evaluate_candidates,
    reference_of,
    short_finetune,
    usual_chunk,
)
from rlprune_jax.workflow.recipes import FinetuneRecipe

KEY = jax.random.key(0)
CALL = jax.jit(evaluate_candidates, static_argnums=0)


def evaluator(small, **options):
    return Evaluator(small.network.definition, small.task.objective, **options)


def evaluated(small, gates, data=None, **options):
    given = small.data if data is None else data
    return CALL(evaluator(small, **options), small.variables, gates, given, KEY)


def apply_train(variables, x, key=None):
    """One hidden layer of 6 units under batch norm, with the statistics of the batch."""
    hidden = x @ variables["params"]["a"]
    mean, variance = hidden.mean(0), hidden.var(0)
    return head(variables, hidden, mean, variance), {
        "batch_stats": {
            name: 0.9 * variables["batch_stats"][name] + 0.1 * new
            for name, new in (("mean", mean), ("variance", variance))
        }
    }


def head(variables, hidden, mean, variance):
    hidden = (hidden - mean) * jax.lax.rsqrt(variance + 1e-5) * variables["params"]["scale"]
    return jax.nn.relu(hidden) @ variables["params"]["b"]


def apply(variables, x):
    statistics = variables["batch_stats"]
    hidden = x @ variables["params"]["a"]
    return head(variables, hidden, statistics["mean"], statistics["variance"])


@functools.cache
def small_normed():
    """A network with batch norm whose running statistics are far from those of its data."""
    keys = jax.random.split(jax.random.key(10), 4)
    params = {
        "a": jax.random.normal(keys[0], (4, 6)),
        "scale": jnp.linspace(0.5, 2.0, 6),
        "b": jax.random.normal(keys[1], (6, 3)),
    }
    statistics = {"mean": jnp.ones(6), "variance": jnp.full(6, 9.0)}
    variables = {"params": params, "batch_stats": statistics}
    x = jax.random.normal(keys[2], (40, 4)) + 1
    batch = (x[:12], jax.random.randint(keys[3], (12,), 0, 3))
    network = rp.Network(apply, variables, x[:2], apply_train=apply_train)
    task = rp.classification(batch, batch, batch)
    return Small(network, task, CandidateData((x[12:],), batch))


def nth(gates, index):
    return jax.tree.map(lambda each: each[index], gates)


def cross_entropy(logits, labels):
    """The mean loss in NumPy, float64."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logs[np.arange(len(labels)), np.asarray(labels)].mean()


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_equal_candidates_one_by_one(chunk):
    small = small_mlp()
    gates = random_gates(small.graph, 5, jax.random.key(1))
    together = evaluated(small, gates, chunk=chunk)
    alone = jax.jit(evaluate_candidate, static_argnums=0)
    for index in range(5):
        one = alone(evaluator(small), small.variables, nth(gates, index), small.data)
        np.testing.assert_allclose(together.loss[index], one.loss, rtol=1e-5)
        assert together.metric[index] == one.metric


def test_an_evaluation_equals_the_slim_network_recalibrated():
    small = small_normed()
    gates = random_gates(small.graph, 1, jax.random.key(2))
    found = evaluated(small, gates)
    slim = small.network.slim(nth(gates, 0))
    slim = slim.replace(recalibrate(slim.apply_train, slim.variables, *small.data.calibration))
    x, labels = small.data.batch
    logits = slim(x)
    np.testing.assert_allclose(found.loss[0], cross_entropy(logits, labels), rtol=1e-4)
    assert found.metric[0] == pytest.approx(np.mean(np.argmax(np.asarray(logits), -1) == labels))


def test_recalibration_puts_the_statistics_of_the_data_and_can_be_switched_off():
    small = small_normed()
    gates = random_gates(small.graph, 3, jax.random.key(3))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), small.variables["params"])
    gate = np.asarray(nth(gates, 1)[small.graph.names[0]], np.float64)
    x, labels = small.data.batch
    hidden, seen = (np.asarray(each) @ params["a"] for each in (x, *small.data.calibration))
    for switched, mean, variance in ((True, seen.mean(0), seen.var(0)), (False, 1.0, 9.0)):
        normed = (hidden - mean) / np.sqrt(variance + 1e-5) * params["scale"]
        expected = cross_entropy((np.maximum(normed, 0) * gate) @ params["b"], labels)
        found = evaluated(small, gates, recalibration=switched)
        np.testing.assert_allclose(found.loss[1], expected, rtol=1e-4)


def test_dense_gates_change_nothing():
    small = small_mlp()
    found = evaluated(small, jax.tree.map(lambda each: each[None], small.ones))
    x, y = small.data.batch
    np.testing.assert_allclose(found.loss[0], cross_entropy(small.network(x), y), rtol=1e-6)
    assert found.metric[0] == 1


def test_candidates_of_a_task_of_the_users_own():
    """Two inputs in a dictionary, a loss and a metric in closed form."""

    def apply(variables, x, scale):
        return jax.nn.relu(x @ variables["a"]) @ variables["b"] * scale

    keys = jax.random.split(jax.random.key(4), 4)
    variables = {"a": jax.random.normal(keys[0], (3, 5)), "b": jax.random.normal(keys[1], (5, 2))}
    batch = {
        "left": jax.random.normal(keys[2], (7, 3)),
        "scale": jnp.linspace(1, 2, 7)[:, None],
        "wanted": jax.random.normal(keys[3], (7, 2)),
    }
    network = rp.Network(apply, variables, (batch["left"], batch["scale"]))
    task = rp.Task(
        lambda outputs, batch: jnp.abs(outputs - batch["wanted"]).mean(),
        lambda outputs, batch: outputs.max() - batch["scale"].max(),
        *[batch] * 3,
        inputs=lambda batch: (batch["left"], batch["scale"]),
    )
    gates = random_gates(network.graph, 4, jax.random.key(5))
    found = CALL(
        Evaluator(network.definition, task.objective),
        variables,
        gates,
        CandidateData((), batch),
        KEY,
    )
    for index in range(4):
        gate = np.asarray(gates[network.graph.names[0]][index], np.float64)
        hidden = np.maximum(np.asarray(batch["left"], np.float64) @ np.asarray(variables["a"]), 0)
        outputs = (hidden * gate) @ np.asarray(variables["b"]) * np.asarray(batch["scale"])
        np.testing.assert_allclose(
            found.loss[index], np.abs(outputs - batch["wanted"]).mean(), rtol=1e-5
        )
        np.testing.assert_allclose(found.metric[index], outputs.max() - 2, rtol=1e-5)


def test_finetuned_candidates_are_trained_by_their_own_gates_and_key():
    small = small_mlp()
    gates = random_gates(small.graph, 2, jax.random.key(6))
    data = small.data._replace(train=small.task.train)
    options = {"finetune_steps": 3, "recipe": FinetuneRecipe(rate=0.03, batch_size=8, rule="sgd")}
    tuned = evaluated(small, gates, data, **options)
    assert not np.allclose(tuned.loss, evaluated(small, gates).loss)
    keys = jax.random.split(KEY, 2)
    train = jax.jit(short_finetune, static_argnums=0)
    for index in range(2):
        own = nth(gates, index)
        how = evaluator(small, **options)
        variables = train(how, small.variables, own, data.train, keys[index])
        alone = evaluate_candidate(evaluator(small), variables, own, small.data)
        np.testing.assert_allclose(tuned.loss[index], alone.loss, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ridge", "merge"])
def test_repaired_candidates_are_those_repaired_one_by_one(kind):
    small, method = small_normed(), RepairMethod(kind)
    gates = random_gates(small.graph, 3, jax.random.key(11))
    inputs = small.data.calibration
    reference = reference_of(small.network.definition, method, small.variables, inputs)
    data = small.data._replace(reference=reference)
    x, labels = small.data.batch
    plain = evaluated(small, gates)
    for chunk in (1, 3):
        found = evaluated(small, gates, data, chunk=chunk, repair=method)
        assert np.abs(found.loss - plain.loss).min() > 1e-3
        for index in range(3):
            own = nth(gates, index)
            function = {"ridge": repair, "merge": merge_units}[kind]
            fixed = function(small.network.apply, small.graph, small.variables, own, inputs)
            # Not recalibrated: the dense network's statistics are those of the repaired one.
            logits = small.network.replace(fixed).slim(own)(x)
            np.testing.assert_allclose(found.loss[index], cross_entropy(logits, labels), rtol=1e-3)


def test_a_repair_needs_the_dense_network_and_examples():
    small, method = small_mlp(), RepairMethod("ridge")
    gates = random_gates(small.graph, 2, jax.random.key(12))
    with pytest.raises(ValueError, match="reference=None must be what reference_of gives"):
        evaluated(small, gates, repair=method)
    with pytest.raises(ValueError, match="arrays that hold examples"):
        reference_of(small.network.definition, method, small.variables, (jnp.ones((0, 4)),))


def test_a_second_call_traces_nothing():
    small = small_mlp()
    chex.clear_trace_counter()
    call = jax.jit(chex.assert_max_traces(evaluate_candidates, n=1), static_argnums=0)
    for seed in (7, 8):
        # As another task of the same functions makes it.
        task = rp.classification(*[small.data.batch] * 3)
        how = Evaluator(small.network.definition, task.objective)
        gates = random_gates(small.graph, 3, jax.random.key(seed))
        call(how, small.variables, gates, small.data, jax.random.key(seed))


def test_no_candidates_and_empty_chunks_are_refused():
    small = small_mlp()
    gates = random_gates(small.graph, 2, jax.random.key(9))
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        evaluator(small, chunk=0)
    with pytest.raises(ValueError, match="no candidates"):
        evaluated(small, jax.tree.map(lambda each: each[:0], gates))


def test_an_accelerator_evaluates_so_many_examples_at_once(monkeypatch):
    small = small_mlp()
    how = evaluator(small)
    monkeypatch.setattr(candidates, "chunk_for_memory", lambda *_: 1000)
    assert usual_chunk(how, small.variables, small.data) == 1000
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert usual_chunk(how, small.variables, small.data) == 8000 // 24
    # Candidates that are recalibrated see the calibration images too.
    more = small.data._replace(calibration=(jnp.ones((4000, 4)),))
    normed = small_normed()
    how = evaluator(normed)
    assert usual_chunk(how, normed.variables, more) == 2
    more = more._replace(calibration=(jnp.ones((9000, 4)),))
    assert usual_chunk(how, normed.variables, more) == 1


def test_chunks_are_halved_when_memory_runs_out():
    small, halving, tried = small_mlp(), Halving(), []
    gates = random_gates(small.graph, 12, jax.random.key(1))

    def evaluate(limited):
        tried.append(limited.chunk)
        if (limited.chunk or 12) > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to")
        return CALL(limited, small.variables, gates, small.data, KEY)

    with pytest.warns(UserWarning) as warned:
        found = halving(evaluate, evaluator(small), lambda: 12)
    said = [str(each.message) for each in warned]
    assert "memory ran out with 12 candidates at once; 6 go together" in said[0]
    assert "chunk=3" in said[1]
    np.testing.assert_allclose(found.loss, evaluated(small, gates, chunk=3).loss, rtol=1e-6)
    halving(evaluate, evaluator(small), lambda: 12)
    assert tried == [None, 6, 3, 3]
    halving.chunk = 1
    with pytest.raises(RuntimeError, match="one candidate at a time; lower reward_images"):
        halving(lambda _: evaluate(evaluator(small, chunk=12)), evaluator(small), lambda: 12)


def test_another_error_than_memory_passes():
    def broken(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        Halving()(broken, evaluator(small_mlp()), lambda: 12)


def test_the_chunk_follows_the_memory():
    small = small_mlp()
    inputs = (small.data.batch[0],)
    largest = 24 * 8 * 4  # the first hidden layer: 24 examples, 8 units, float32
    apply = small.network.apply
    assert chunk_for_memory(apply, small.variables, inputs, 6 * largest) == 2
    assert chunk_for_memory(apply, small.variables, inputs, 1) == 1
