"""Masked equals slim for networks that nobody thought of."""

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import (
    assert_close,
    compile_quickly,
    images,
    random_gates,
    random_variables,
)
from random_networks import RandomNetwork, architectures

from rlprune_jax import compact, count_params, gated, respecialise, trace_graph

HEADS = ["mean", "max", "flatten", "deep"]


@pytest.mark.slow
@settings(max_examples=60)
@given(architectures(), st.sampled_from(HEADS), st.integers(0, 99))
# Found by hand: units in both halves of a swap, a zero-padded shortcut, branches of one group.
@example((("swap", None), ("activation", "relu"), ("conv", (3, 3, 2))), "flatten", 0)
@example((("residual", (("conv", (4, 3, 2)), ("widen", 1))), ("norm", "group")), "deep", 1)
@example((("concat", (("depthwise", 2), ("excite", 2))), ("shuffle", None)), "mean", 2)
def test_masked_equals_slim(steps, head, seed):
    module, x = RandomNetwork(steps, head), images(size=4)
    variables = random_variables(module, x)
    key = jax.random.key(5)

    def apply(variables, x):
        return module.apply(variables, x)

    def train(variables, x):
        rngs = {"dropout": key}
        return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    try:
        graph = trace_graph(apply, variables, x)
    except ValueError as error:
        # A layer norm with nothing after it may freeze all that there is.
        assert "every axis is frozen" in str(error)
        return
    gates = random_gates(graph, seed)
    slim = compact(graph, variables, gates)
    assert sum(map(np.size, jax.tree.leaves(slim["params"]))) == count_params(graph, gates)

    def run(variables, slim):
        masked = [gated(function, graph)(variables, gates, x) for function in (apply, train)]
        thin = [respecialise(function, graph, gates)(slim, x) for function in (apply, train)]
        return masked, thin

    (masked, masked_train), (thin, thin_train) = compile_quickly(run, variables, slim)(
        variables, slim
    )
    assert_close(masked, thin)
    assert_close(masked_train[0], thin_train[0])
    if masked_train[1]:
        updates = compact(graph, {**variables, **masked_train[1]}, gates)
        assert_close(updates["batch_stats"], thin_train[1]["batch_stats"])
