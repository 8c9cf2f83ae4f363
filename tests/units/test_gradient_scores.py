"""Derivatives by gates against finite differences, single-example loops and exact loss changes."""

import jax
import jax.numpy as jnp
import numpy as np
from small import small_cnn

from rlprune_jax import gated, ones_gates, trace_graph
from rlprune_jax.units.gradient_scores import fisher_scores, taylor_scores


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


def cnn_loss(gates, batch):
    small = small_cnn()
    logits = small.network.definition.masked(small.variables, gates, batch[0])
    return small.task.loss(logits, batch)


def test_fisher_is_the_mean_square_of_single_example_derivatives():
    small = small_cnn()
    images, labels = small.data.batch
    gates = {name: gate.at[0].set(0.0) for name, gate in small.ones.items()}
    batches = (images.reshape(2, 6, *images.shape[1:]), labels.reshape(2, 6))
    found = jax.jit(lambda batches: fisher_scores(small.graph, cnn_loss, batches, gates))(batches)
    slope = jax.jit(jax.grad(cnn_loss))
    total = {group.name: np.zeros(group.size) for group in small.graph.groups}
    for number in range(12):
        one = slope(gates, (images[number : number + 1], labels[number : number + 1]))
        for name in total:
            total[name] += np.asarray(one[name], np.float64) ** 2 / 12
    for name in total:
        assert found[name][0] == 0  # pruned, whatever its derivative
        np.testing.assert_allclose(found[name][1:], total[name][1:], rtol=2e-4, atol=1e-10)
    assert any(values[0] > 0 for values in total.values())


def linear(variables, x):
    return (x @ variables["a"]) @ variables["b"]


def toy(seed=0):
    """A linear network, its residuals 1 and -1 once for each input: the mean slopes are 0."""
    random = np.random.default_rng(seed)
    variables = {"a": jnp.eye(5), "b": jnp.asarray(random.normal(size=(5, 1)), jnp.float32)}
    once = random.normal(size=(40, 5)).astype(np.float32)
    x = np.concatenate([once, once])
    wrong = np.concatenate([np.ones(40), -np.ones(40)])[:, None]
    target = np.asarray(linear(variables, x)) - wrong
    return trace_graph(linear, variables, x[:1]), variables, (x, target.astype(np.float32))


def half_square(graph, variables):
    masked = gated(linear, graph)

    def loss(gates, batch):
        return 0.5 * jnp.square(masked(variables, gates, batch[0]) - batch[1]).mean()

    return loss


def test_fisher_is_twice_the_exact_change_of_the_loss_at_an_optimum():
    """Of unit residuals: a unit gives c, and the loss changes by E[c^2] / 2 without it."""
    graph, variables, data = toy()
    loss = half_square(graph, variables)
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], data)
    whole = loss(ones_gates(graph), data)
    changes = [float(loss({"a": jnp.ones(5).at[unit].set(0.0)}, data) - whole) for unit in range(5)]
    found = np.asarray(fisher_scores(graph, loss, batches)["a"])
    np.testing.assert_allclose(found, 2 * np.array(changes), rtol=1e-3)
    # The mean over the minibatch cancels, so that the square of a mean sees nothing.
    assert taylor_scores(graph, loss, batches)["a"].max() < 1e-9


def test_taylor_is_the_exact_change_of_a_linear_loss_squared():
    graph, variables, (x, _) = toy()
    masked = gated(linear, graph)

    def loss(gates, batch):
        return masked(variables, gates, batch).mean()

    whole = loss(ones_gates(graph), x)
    changes = [float(loss({"a": jnp.ones(5).at[unit].set(0.0)}, x) - whole) for unit in range(5)]
    found = taylor_scores(graph, loss, jnp.asarray(x)[None])["a"]
    np.testing.assert_allclose(found, np.square(changes), rtol=1e-3)


def test_coupled_slots_are_summed_before_they_are_squared():
    """By hand: the unit adds x through both layers that read it, 1 - 1 and 1 + 1 of two outputs."""

    def apply(variables, x):
        hidden = x @ variables["a"]
        return hidden @ variables["b"] + hidden @ variables["c"]

    twice = jnp.ones((2, 1))
    x = jnp.ones((1, 2))
    graph = trace_graph(apply, {"a": jnp.eye(2), "b": twice, "c": twice}, x)
    masked = gated(apply, graph)
    for second, expected in ((-1.0, 0.0), (1.0, 4.0)):
        variables = {"a": jnp.eye(2), "b": twice, "c": second * twice}
        found = fisher_scores(
            graph, lambda gates, x, v=variables: masked(v, gates, x).sum(), x[None]
        )
        assert found["a"].tolist() == [expected, expected]
