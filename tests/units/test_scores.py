"""Saliency of units against their definitions, computed a second way."""

import jax
import jax.numpy as jnp
import numpy as np
from small import small_cnn

from rlprune_jax import gated, ones_gates, trace_graph
from rlprune_jax.units.scores import group_scores, magnitude_scores, random_scores, taylor_scores


def test_magnitude_is_the_norm_of_each_filter_over_its_groups_mean():
    small = small_cnn()
    scores = magnitude_scores(small.graph, small.variables)
    for group in small.graph.groups:
        kernel = np.asarray(small.variables["params"][group.name]["kernel"], np.float64)
        norms = np.sqrt((kernel**2).sum((0, 1, 2)))
        np.testing.assert_allclose(scores[group.name], norms / norms.mean(), rtol=1e-5)


def test_taylor_is_the_mean_squared_derivative_by_finite_differences():
    small = small_cnn()
    images, labels = (leaf.reshape(3, 4, *leaf.shape[1:]) for leaf in small.data.batch)

    def loss(gates, batch):
        return small.task.loss(gated(apply, small.graph)(small.variables, gates, batch[0]), batch)

    apply = small.network.apply
    scores = jax.jit(lambda batches: taylor_scores(small.graph, loss, batches))((images, labels))
    name = small.graph.names[2]
    step = 1e-3

    def losses(unit):
        """Losses of three minibatches with the gate at 1, 1 - step and 1 - 2 step, float64."""
        rows = []
        for batch in range(3):
            row = []
            for value in (1.0, 1.0 - step, 1.0 - 2 * step):
                gates = ones_gates(small.graph)
                gates[name] = gates[name].at[unit].set(value)
                logits = np.array(masked(wide, gates, images[batch].astype(jnp.float64)))
                logits -= logits.max(1, keepdims=True)
                logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                row.append(-logs[np.arange(4), labels[batch]].mean())
            rows.append(row)
        return np.array(rows)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), small.variables)
        masked = jax.jit(gated(apply, small.graph))
        for unit in range(3):
            at, below, lowest = losses(unit).T
            slopes = (3 * at - 4 * below + lowest) / (2 * step)
            np.testing.assert_allclose(scores[name][unit], np.mean(slopes**2), rtol=0.03)


def test_taylor_takes_any_loss_and_any_batch():
    """By hand: the loss is 2 g0 x0 + 3 g1 x1 of one example, so its slopes are 2 x0 and 3 x1."""

    def apply(variables, x):
        return (x @ variables["a"]) @ variables["b"]

    variables = {"a": jnp.eye(2), "b": jnp.array([[2.0], [3.0]])}
    graph = trace_graph(apply, variables, jnp.ones((1, 2)))
    masked = gated(apply, graph)
    batches = {"x": jnp.array([[[1.0, 1.0]], [[3.0, 0.0]]]), "weight": jnp.array([[1.0], [1.0]])}
    scores = taylor_scores(
        graph, lambda gates, b: (masked(variables, gates, b["x"]) * b["weight"]).mean(), batches
    )
    np.testing.assert_allclose(scores["a"], [(2**2 + 6**2) / 2, 3**2 / 2])


def test_random_scores_depend_on_the_key_alone():
    small = small_cnn()
    first = random_scores(small.graph, jax.random.key(0))
    again = random_scores(small.graph, jax.random.key(0))
    other = random_scores(small.graph, jax.random.key(1))
    name = small.graph.names[0]
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_group_scores_reduce_each_group():
    small = small_cnn()
    scores = {
        name: jnp.arange(1.0, size + 1)
        for name, size in zip(small.graph.names, small.graph.sizes, strict=True)
    }
    np.testing.assert_allclose(group_scores(small.graph, scores), [10, 21, 36, 36])
