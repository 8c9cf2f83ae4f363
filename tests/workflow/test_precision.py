"""Contractions are rounded to bfloat16 and nothing else is, in loops and gradients too."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small import QUICK, random_gates, small_mlp

import rlprune_jax as rp
from rlprune_jax.workflow import precision as module
from rlprune_jax.workflow.candidates import CandidateData, Evaluator, evaluate_candidates
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.learning import train_dense
from rlprune_jax.workflow.notes import notes
from rlprune_jax.workflow.precision import check_precision, in_precision
from rlprune_jax.workflow.recipes import DenseRecipe

KEYS = jax.random.split(jax.random.key(0), 3)
X, W = (jax.random.normal(key, (5, 5)) for key in KEYS[:2])


def half(x):
    """Round to bfloat16 and back, in NumPy."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def loop(x, w):
    """Three products in a scan, each followed by a sum that has to stay exact."""

    def body(x, _):
        return jnp.tanh(x @ w) + 1e-4 * x, None

    return jax.lax.scan(body, x, None, length=3)[0]


def loop_by_hand(x, w):
    x = np.asarray(x, np.float32)
    for _ in range(3):
        x = np.tanh(half(half(x) @ half(w))) + np.float32(1e-4) * x
    return x


def branch(x, w):
    return jax.lax.cond(x[0, 0] > 9, lambda x: x, jax.checkpoint(lambda x: jnp.sin(x @ w)), x)


def test_operands_and_outputs_of_contractions_are_rounded():
    found = in_precision(lambda x, w: jnp.exp(x @ w) + x, "bfloat16")(X, W)
    np.testing.assert_allclose(found, np.exp(half(half(X) @ half(W))) + X, rtol=1e-6)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    "function, by_hand",
    [(loop, loop_by_hand), (branch, lambda x, w: np.sin(half(half(x) @ half(w))))],
)
def test_bodies_of_loops_and_choices_are_rounded_too(function, by_hand):
    found = jax.jit(in_precision(function, "bfloat16"))(X, W)
    # A last bit of bfloat16 where the sum was rounded another way before.
    np.testing.assert_allclose(found, by_hand(X, W), atol=2e-2)
    assert np.abs(found - function(X, W)).max() > 1e-4
    gradient = jax.grad(lambda w: in_precision(function, "bfloat16")(X, w).sum())(W)
    exact = jax.grad(lambda w: function(X, w).sum())(W)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_full_float32_is_kept_where_it_is_asked_for():
    product = in_precision(lambda x: x @ x, "bfloat16")
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(product(X), X @ X)
    own = in_precision(lambda x: jnp.matmul(x, x, precision="highest"), "bfloat16")
    np.testing.assert_array_equal(own(X), X @ X)


def test_float32_is_the_function_itself():
    assert in_precision(loop, "float32") is loop


def hidden(params, x, statistics):
    """One convolution and a batch norm."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=numbers)
    mean, variance = statistics(x)
    x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5))
    return x.mean((1, 2)) @ params["w"], {"batch_stats": {"mean": mean, "variance": variance}}


def apply(variables, x):
    stored = variables["batch_stats"]
    return hidden(variables["params"], x, lambda _: (stored["mean"], stored["variance"]))[0]


def apply_train(variables, x, key=None):
    def measured(x):
        return x.mean((0, 1, 2)), x.var((0, 1, 2))

    return hidden(variables["params"], x, measured)


@functools.cache
def normed():
    """A network of a convolution under batch norm, and its task."""
    keys = jax.random.split(jax.random.key(2), 3)
    params = {
        "k": jax.random.normal(keys[0], (3, 3, 2, 4)),
        "w": jax.random.normal(keys[1], (4, 3)),
    }
    statistics = {"mean": jnp.zeros(4), "variance": jnp.ones(4)}
    x = jax.random.normal(keys[2], (12, 4, 4, 2))
    variables = {"params": params, "batch_stats": statistics}
    batch = (x, jnp.arange(12) % 3)
    network = rp.Network(apply, variables, x[:2], apply_train=apply_train)
    return network, rp.classification(batch, batch, batch)


def test_a_network_trains_in_it_and_its_state_stays_float32():
    network, task = normed()
    one, other = (
        train_dense(network, task, DenseRecipe(4, batch_size=6, precision=precision)).variables
        for precision in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(other)} == {jnp.dtype("float32")}
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in leaves:
        assert 1e-6 < float(jnp.abs(a - b).max()) < 0.1


def test_candidates_are_evaluated_in_it():
    network, task = normed()
    gates = random_gates(network.graph, 3, jax.random.key(1))
    data = CandidateData((task.train[0],), task.held_out)
    call = jax.jit(evaluate_candidates, static_argnums=0)

    def losses(precision):
        evaluator = Evaluator(network.definition, task.objective, precision=precision)
        return call(evaluator, network.variables, gates, data, jax.random.key(0)).loss

    one, other = losses("float32"), losses("bfloat16")
    assert 1e-6 < float(jnp.abs(one - other).max()) < 0.1


def test_a_device_without_it_is_refused_before_anything_else(monkeypatch):
    def missing(*_):
        raise NotImplementedError("no such unit")

    check_precision("bfloat16")
    monkeypatch.setattr(module, "contract", missing)
    small = small_mlp()
    with pytest.raises(ValueError, match=r"precision='bfloat16' cannot .*choose .*'float32'"):
        rp.make_pruning(small.network, small.task, "params=0.5", PruneConfig(precision="bfloat16"))
    with pytest.raises(ValueError, match="precision='half' must be one of float32, bfloat16"):
        rp.make_pruning(small.network, small.task, "params=0.5", PruneConfig(precision="half"))


def test_a_cpu_is_said_to_emulate_it():
    small = small_mlp()
    config = PruneConfig(**QUICK, precision="bfloat16")
    assert "emulate" in notes(config, small.task)["precision"]
    assert "precision" not in notes(PruneConfig(**QUICK), small.task)
