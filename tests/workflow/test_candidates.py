"""N candidates in one call equal N networks judged one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_gates, small_cnn

from rlprune_jax import compact, gated, ones_gates, respecialise
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.workflow.candidates import chunk_for_memory, judge, judge_candidates


def judged(gates, **options):
    small = small_cnn()
    apply, apply_train = small.functions.apply, small.functions.apply_train

    @jax.jit
    def call(variables, gates, data, key):
        return judge_candidates(
            apply, apply_train, small.graph, variables, gates, data, key, **options
        )

    return call(small.variables, gates, small.data, jax.random.key(0))


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_equal_single_judgements(chunk):
    small = small_cnn()
    gates = random_gates(small.graph, 5, jax.random.key(1))
    together = judged(gates, chunk=chunk)
    for index in range(5):
        one = judge(
            small.functions.apply,
            small.functions.apply_train,
            small.graph,
            small.variables,
            jax.tree.map(lambda each, index=index: each[index], gates),
            small.data,
        )
        np.testing.assert_allclose(together.loss[index], one.loss, rtol=1e-5)
        assert together.accuracy[index] == one.accuracy


def test_judgement_equals_the_slim_network_recalibrated():
    small = small_cnn()
    gates = jax.tree.map(lambda each: each[0], random_gates(small.graph, 1, jax.random.key(2)))
    found = judged(jax.tree.map(lambda each: each[None], gates))
    slim = compact(small.graph, small.variables, gates)
    slim = recalibrate(
        respecialise(small.functions.apply_train, small.graph), slim, small.data.calibration
    )
    logits = respecialise(small.functions.apply, small.graph)(slim, small.data.images)
    losses = -jax.nn.log_softmax(logits)[jnp.arange(12), small.data.labels]
    np.testing.assert_allclose(found.loss[0], losses.mean(), rtol=1e-4)


def test_recalibration_matters_and_can_be_switched_off():
    small = small_cnn()
    gates = random_gates(small.graph, 3, jax.random.key(3))
    without = judged(gates, recalibration=False)
    logits = gated(small.functions.apply, small.graph)(
        small.variables, jax.tree.map(lambda each: each[1], gates), small.data.images
    )
    losses = -jax.nn.log_softmax(logits)[jnp.arange(12), small.data.labels]
    np.testing.assert_allclose(without.loss[1], losses.mean(), rtol=1e-5)
    assert not np.allclose(without.loss, judged(gates).loss)


def test_finetuned_candidates_are_trained_by_their_own_gates_and_key():
    small = small_cnn()
    gates = random_gates(small.graph, 2, jax.random.key(4))

    def finetune(variables, gates, key):
        shift = 0.1 * jax.random.normal(key, ()) * gates[small.graph.names[0]].sum()
        return jax.tree.map(lambda leaf: leaf + shift, variables)

    tuned = judged(gates, finetune=finetune)
    keys = jax.random.split(jax.random.key(0), 2)
    for index in range(2):
        each = jax.tree.map(lambda leaf, index=index: leaf[index], gates)
        alone = judge(
            small.functions.apply,
            small.functions.apply_train,
            small.graph,
            finetune(small.variables, each, keys[index]),
            each,
            small.data,
        )
        np.testing.assert_allclose(tuned.loss[index], alone.loss, rtol=1e-4)


def test_second_call_traces_nothing():
    small = small_cnn()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(gates, key):
        return judge_candidates(
            small.functions.apply,
            small.functions.apply_train,
            small.graph,
            small.variables,
            gates,
            small.data,
            key,
        )

    for seed in (5, 6):
        call(random_gates(small.graph, 3, jax.random.key(seed)), jax.random.key(seed))


def test_no_candidates_and_empty_chunks_are_refused():
    small = small_cnn()
    gates = random_gates(small.graph, 2, jax.random.key(7))
    with pytest.raises(ValueError, match="chunk=0"):
        judged(gates, chunk=0)
    with pytest.raises(ValueError, match="no candidates"):
        judged(jax.tree.map(lambda each: each[:0], gates))


def test_chunk_follows_memory():
    small = small_cnn()
    apply = small.functions.apply
    largest = 12 * 8 * 8 * 4 * 4  # the first map: 12 images, 8x8, 4 channels, float32
    assert chunk_for_memory(apply, small.variables, small.data.images, 6 * largest) == 2
    assert chunk_for_memory(apply, small.variables, small.data.images, 1) == 1


def test_dense_gates_change_nothing():
    small = small_cnn()
    ones = jax.tree.map(lambda each: each[None], ones_gates(small.graph))
    found = judged(ones, recalibration=False)
    logits = small.functions.apply(small.variables, small.data.images)
    losses = -jax.nn.log_softmax(logits)[jnp.arange(12), small.data.labels]
    np.testing.assert_allclose(found.loss[0], losses.mean(), rtol=1e-6)
