"""Sums, extremes and means over units: what is pruned takes no part, and N is the number kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_gates
from numpy_evaluation import evaluate

from rlprune_jax import compact, gated, ones_gates, respecialise, trace_graph

GENERATOR = np.random.default_rng(0)


def draw(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


VARIABLES = {"a": draw(6, 12), "b": draw(12, 5), "c": draw(5, 3)}
X = draw(3, 4, 6)


def network(read):
    """Make units, read them whole, and go on."""

    def apply(v, x):
        hidden = jnp.tanh(x @ v["a"])
        return jnp.tanh((hidden + read(hidden)) @ v["b"]) @ v["c"]

    return apply


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-3)


def rms(h):
    return h * jax.lax.rsqrt((h**2).sum(-1, keepdims=True) / 12 + 1e-6)


READS = {
    "sum": lambda h: h.sum(-1, keepdims=True),
    "mean": lambda h: h.mean(-1, keepdims=True),
    "layer_norm": layer_norm,
    "rms": rms,
    "times_reciprocal": lambda h: h.sum(-1, keepdims=True) * (1 / 12),
    "root_by_rsqrt": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True) * 12**0.5,
    "root_of_sum": lambda h: jnp.sqrt((h**2).sum(-1, keepdims=True)) * 12**-0.5,
    "bounded": lambda h: (
        h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-6) * 12**0.5
    ),
    "over_positions_too": lambda h: h.mean((1, 2), keepdims=True),
    "in_two_steps": lambda h: (h.sum(1, keepdims=True).sum(-1, keepdims=True)) / 48,
    "in_two_steps_the_other_way": lambda h: h.sum(-1, keepdims=True).sum(1, keepdims=True) / 48,
    "softmax": lambda h: jax.nn.softmax(3 * h, axis=-1),
    "log_softmax": lambda h: jax.nn.log_softmax(h, axis=-1),
    "maximum": lambda h: h.max(-1, keepdims=True),
    "minimum": lambda h: h.min(-1, keepdims=True),
    "product": lambda h: (1 + h).prod(-1, keepdims=True),
    "all": lambda h: (h > -0.7).all(-1, keepdims=True).astype(jnp.float32),
    "any": lambda h: (h > 0.7).any(-1, keepdims=True).astype(jnp.float32),
    "counted": lambda h: (h > 0).sum(-1, keepdims=True).astype(jnp.float32),
    "groups": lambda h: jax.nn.standardize(h.reshape(3, 4, 4, 3)).reshape(3, 4, 12),
    "one_group": lambda h: jax.nn.standardize(h.reshape(3, 4, 1, 12)).reshape(3, 4, 12),
}


@pytest.mark.parametrize("name", READS)
def test_masked_equals_slim_and_all_gates_of_one_the_dense_network(name):
    apply = network(READS[name])
    graph = trace_graph(apply, VARIABLES, X)
    assert graph.names == ("a", "b")
    assert graph.sizes == (4 if name == "groups" else 12, 5)
    assert not graph.remarks
    dense = evaluate(apply, VARIABLES, X)
    full = evaluate(lambda v, x: gated(apply, graph)(v, ones_gates(graph), x), VARIABLES, X)
    np.testing.assert_allclose(full, dense, rtol=0, atol=1e-12)
    for seed in range(3):
        gates = random_gates(graph, seed)
        masked = evaluate(lambda v, x: gated(apply, graph)(v, gates, x), VARIABLES, X)  # noqa: B023
        slim = evaluate(respecialise(apply, graph, gates), compact(graph, VARIABLES, gates), X)
        np.testing.assert_allclose(masked, slim, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "layer_norm", "rms", "root_by_rsqrt", "in_two_steps"])
def test_the_number_of_terms_is_the_number_kept(name):
    """The slim network is what the same code computes on the slim arrays."""

    def apply(v, x, width=12):
        read = READS[name] if width == 12 else OF_WIDTH[name](width)
        return network(read)(v, x)

    graph = trace_graph(apply, VARIABLES, X)
    gates = {"a": jnp.arange(12) < 7, "b": jnp.ones(5)}
    gates = {key: jnp.asarray(value, jnp.float32) for key, value in gates.items()}
    slim = compact(graph, VARIABLES, gates)
    found = evaluate(respecialise(apply, graph, gates), slim, X)
    np.testing.assert_allclose(found, evaluate(lambda v, x: apply(v, x, 7), slim, X), atol=1e-6)


OF_WIDTH = {
    "mean": lambda n: READS["mean"],
    "layer_norm": lambda n: layer_norm,
    "rms": lambda n: lambda h: h * jax.lax.rsqrt((h**2).sum(-1, keepdims=True) / n + 1e-6),
    "root_by_rsqrt": lambda n: lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True) * n**0.5,
    "in_two_steps": lambda n: lambda h: h.sum(1, keepdims=True).sum(-1, keepdims=True) / (4 * n),
}


def test_another_number_stays_and_is_told():
    apply = network(lambda h: h.sum(-1, keepdims=True) / 11)
    graph = trace_graph(apply, VARIABLES, X)
    (remark,) = graph.remarks
    assert remark.startswith("a sum over 12 units is divided by 11 at test_reductions.py:")
    assert remark in str(graph) and remark in str(graph.report())
    gates = random_gates(graph, 0)
    masked = evaluate(lambda v, x: gated(apply, graph)(v, gates, x), VARIABLES, X)
    slim = evaluate(respecialise(apply, graph, gates), compact(graph, VARIABLES, gates), X)
    np.testing.assert_allclose(masked, slim, rtol=0, atol=1e-6)


def test_a_constant_that_counts_nothing_is_left_alone():
    # Twelve divides what is no sum over the twelve units.
    apply = network(lambda h: h / 12)
    graph = trace_graph(apply, VARIABLES, X)
    gates = random_gates(graph, 0)
    slim = compact(graph, VARIABLES, gates)
    found = evaluate(respecialise(apply, graph, gates), slim, X)
    np.testing.assert_allclose(found, evaluate(apply, slim, X), atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "maximum", "layer_norm", "product"])
def test_a_group_that_is_pruned_whole_gives_no_nan(name):
    apply = network(READS[name])
    graph = trace_graph(apply, VARIABLES, X)
    gates = {**ones_gates(graph), "a": jnp.zeros(graph.sizes[0])}
    value, slope = jax.value_and_grad(lambda g: gated(apply, graph)(VARIABLES, g, X).sum())(gates)
    assert np.isfinite(value)
    assert all(np.isfinite(each).all() for each in slope.values())


def test_what_is_pruned_may_overflow_without_harm():
    def steep(h):
        return jax.nn.logsumexp(h * 200 * (1 + jnp.arange(12.0)), axis=-1, keepdims=True) / 1e3

    apply = network(steep)
    graph = trace_graph(apply, VARIABLES, X)
    gates = {**ones_gates(graph), "a": jnp.asarray(np.arange(12) < 2, jnp.float32)}
    masked = gated(apply, graph)(VARIABLES, gates, X)
    slim = respecialise(apply, graph, gates)(compact(graph, VARIABLES, gates), X)
    np.testing.assert_allclose(masked, slim, atol=1e-5)


def test_bfloat16_counts_what_float32_counts():
    apply = network(layer_norm)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), VARIABLES)
    x = jnp.asarray(X, jnp.bfloat16)
    graph = trace_graph(apply, variables, x)
    gates = random_gates(graph, 1)
    masked = gated(apply, graph)(variables, gates, x)
    assert masked.dtype == jnp.bfloat16
    slim = respecialise(apply, graph, gates)(compact(graph, variables, gates), x)
    np.testing.assert_allclose(
        np.asarray(masked, np.float32), np.asarray(slim, np.float32), atol=0.06
    )
