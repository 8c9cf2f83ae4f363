"""Masked equals slim for networks that nobody thought of."""

import jax
import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from networks import images, random_gates, random_variables
from numpy_evaluation import evaluate, traced_once
from random_networks import RandomNetwork, architectures, has_modes

from rlprune_jax import compact, count_params, gated, respecialise, trace_graph

HEADS = ["mean", "max", "flatten", "deep"]


# Evaluated by NumPy in double precision: XLA takes about two seconds to compile one architecture.
@pytest.mark.slow
@settings(max_examples=100)
@given(architectures(), st.sampled_from(HEADS), st.integers(0, 99))
# Found by a longer search: a norm that reads units whole in train mode alone.
@example((("conv", (2, 1, 1)), ("remat", (("mix", 1), ("norm", "batch")))), "flatten", 0)
# Found by hand: units in both halves of a swap, a zero-padded shortcut, branches of one group.
@example((("swap", None), ("activation", "relu"), ("conv", (3, 3, 2))), "flatten", 0)
@example((("residual", (("conv", (4, 3, 2)), ("widen", 1))), ("norm", "group")), "deep", 1)
@example((("concat", (("depthwise", 2), ("excite", 2))), ("shuffle", None)), "mean", 2)
def test_masked_equals_slim(steps, head, seed):
    module, x = RandomNetwork(steps, head), images(size=4)
    variables = random_variables(module, x)
    key = jax.random.key(5)

    def train(variables, x):
        rngs = {"dropout": key}
        return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    functions = [traced_once(module.apply, variables, x)]
    if has_modes(steps):
        functions.append(traced_once(train, variables, x))
    try:
        graph = trace_graph(functions[0], variables, x, apply_train=functions[-1])
    except ValueError as error:
        # What stands after a loop or a sort may be all that there is.
        assert "every axis is frozen" in str(error)
        event("frozen")
        return
    check(graph, functions, variables, x, seed)


def check(graph, functions, variables, x, seed):
    gates = random_gates(graph, seed)
    slim = compact(graph, variables, gates)
    assert sum(map(np.size, jax.tree.leaves(slim["params"]))) == count_params(graph, gates)
    for function in functions:
        masked = evaluate(lambda v, x: gated(function, graph)(v, gates, x), variables, x)  # noqa: B023
        thin = evaluate(respecialise(function, graph, gates), slim, x)
        if isinstance(masked, tuple):
            updates = compact(graph, {**variables, **masked[1]}, gates)
            masked = (masked[0], {name: updates[name] for name in masked[1]})
        assert jax.tree.structure(masked) == jax.tree.structure(thin)
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(thin), strict=True):
            assert np.isfinite(a).all()
            # ``compact`` rounds updated statistics to float32; all else is in double precision.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * (1 + np.abs(a).max(initial=0)))
