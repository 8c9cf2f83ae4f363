"""Repaired networks against least squares in float64, layer by layer."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from networks import (
    DenseNetwork,
    ResidualNetwork,
    SeparableNetwork,
    images,
    random_gates,
    random_like,
    random_variables,
)

from rlprune_jax import compact, gated, ones_gates, respecialise, trace_graph
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.units import (
    RepairMethod,
    dense_reference,
    fold_means,
    merge_units,
    repair,
    repair_reach,
    repair_towards,
)


def mlp(variables, x):
    x = jnp.tanh(x @ variables["a"] + variables["bias"])
    x = jnp.tanh(x @ variables["b"] - variables["mean"])
    return x @ variables["c"]


SHAPES = {"a": (4, 8), "bias": (8,), "b": (8, 7), "mean": (7,), "c": (7, 3)}


@pytest.fixture(scope="module")
def small():
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    variables = random_like(shapes)
    x = jax.random.normal(jax.random.key(3), (60, 4))
    graph = trace_graph(mlp, variables, x)
    return graph, variables, x, random_gates(graph, 4)


def least_squares(features, target, weights, ridge, with_bias):
    """Weights and bias in float64, damped towards ``weights``."""
    centre = features.mean(0) * with_bias
    residual = target - features @ weights
    damping = ridge * np.square(features - centre).sum(0)
    damping = damping.sum() / max((np.square(features).sum(0) > 0).sum(), 1)
    size = features.shape[1]
    system = np.vstack([features - centre, np.sqrt(damping) * np.eye(size)])
    wanted = residual - residual.mean(0) * with_bias
    right = np.vstack([wanted, np.zeros((size, wanted.shape[1]))])
    change = np.linalg.lstsq(system, right, rcond=None)[0]
    return weights + change, (residual - features @ change).mean(0) * with_bias


def test_layers_are_refitted_one_after_the_other(small):
    graph, variables, x, gates = small
    repaired = repair(mlp, graph, variables, gates, (x,), ridge=0.01)
    v = {name: np.asarray(value, np.float64) for name, value in variables.items()}
    a, b = (np.asarray(gates[name], np.float64) for name in "ab")
    assert 0 < a.sum() < len(a) and 0 < b.sum() < len(b)
    first = np.tanh(np.asarray(x, np.float64) @ v["a"] + v["bias"])
    dense = first @ v["b"]
    weights, bias = least_squares(first * a, dense, v["b"], 0.01, True)
    np.testing.assert_allclose(repaired["b"], weights, atol=1e-4)
    np.testing.assert_allclose(repaired["mean"], v["mean"] - bias, atol=1e-4)
    second = np.tanh((first * a) @ weights + bias - v["mean"])
    target = np.tanh(dense - v["mean"]) @ v["c"]
    weights, _ = least_squares(second * b, target, v["c"], 0.01, False)
    np.testing.assert_allclose(repaired["c"], weights, atol=2e-4)
    # Before the first gate nothing changes; nor do weights that read what is gone.
    for name in ("a", "bias"):
        np.testing.assert_array_equal(repaired[name], variables[name])
    np.testing.assert_array_equal(repaired["b"][a == 0], variables["b"][a == 0])
    np.testing.assert_array_equal(repaired["c"][b == 0], variables["c"][b == 0])


def test_folding_means_moves_biases_alone(small):
    graph, variables, x, gates = small
    folded = fold_means(mlp, graph, variables, gates, (x,))
    first = jnp.tanh(x @ variables["a"] + variables["bias"])
    gone = (first * (1 - gates["a"])) @ variables["b"]
    np.testing.assert_allclose(folded["mean"], variables["mean"] - gone.mean(0), atol=1e-5)
    for name in "abc":
        np.testing.assert_array_equal(folded[name], variables[name])


def test_with_all_gates_one_nothing_changes(small):
    graph, variables, x, _ = small
    for repaired in (
        repair(mlp, graph, variables, ones_gates(graph), (x,)),
        fold_means(mlp, graph, variables, ones_gates(graph), (x,)),
    ):
        for name in SHAPES:
            np.testing.assert_allclose(repaired[name], variables[name], atol=1e-5)


def test_many_gates_are_repaired_in_one_call(small):
    graph, variables, x, _ = small
    drawn = [random_gates(graph, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *gates: jnp.stack(gates), *drawn)
    one = jax.jit(lambda gates: repair(mlp, graph, variables, gates, (x,)))
    together = jax.jit(jax.vmap(one))(stacked)
    for number, gates in enumerate(drawn):
        jax.tree.map(
            lambda all_of, each, n=number: np.testing.assert_allclose(all_of[n], each, atol=1e-4),
            together,
            one(gates),
        )


def networks():
    return [
        create_model("cnn", 3, widths=(4, 5, 6)),
        ResidualNetwork(),
        DenseNetwork(),
        SeparableNetwork(),
    ]


@pytest.mark.parametrize("module", networks(), ids=lambda module: type(module).__name__)
def test_networks_come_closer_to_the_dense_one(module):
    functions = model_functions(module)
    x = images(24)
    variables = random_variables(module, x)
    graph = trace_graph(functions.apply, variables, x)
    gates = random_gates(graph, 1)

    @jax.jit
    def errors(variables):
        masked = gated(functions.apply, graph)
        repaired = repair(functions.apply, graph, variables, gates, (x,))
        folded = fold_means(functions.apply, graph, variables, gates, (x,))
        merged = merge_units(functions.apply, graph, variables, gates, (x,))
        dense = functions.apply(variables, x)
        found = [
            jnp.square(masked(each, gates, x) - dense).mean()
            for each in (variables, folded, merged, repaired)
        ]
        return found, repaired

    (plain, folded, merged, least), repaired = errors(variables)
    assert least < 0.6 * plain and least < folded
    assert least < 1.01 * merged and merged < 0.9 * plain
    assert jax.tree.map(np.shape, repaired) == jax.tree.map(np.shape, variables)
    slim = compact(graph, repaired, gates)
    thin = jax.jit(respecialise(functions.apply, graph, gates))(slim, x)
    masked = jax.jit(gated(functions.apply, graph))(repaired, gates, x)
    np.testing.assert_allclose(thin, masked, atol=1e-3)


def test_one_run_of_the_dense_network_serves_all_masks(small):
    graph, variables, x, _ = small
    for kind, function in (("ridge", repair), ("merge", merge_units), ("fold", fold_means)):
        method = RepairMethod(kind)
        reference = dense_reference(method, mlp, graph, variables, (x,))
        for seed in (1, 2):
            gates = random_gates(graph, seed)
            found = repair_towards(method, mlp, graph, variables, gates, reference)
            wanted = function(mlp, graph, variables, gates, (x,))
            jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_few_rows_do_nearly_as_well_as_all():
    module, x = create_model("cnn", 3, widths=(4, 5, 6)), images(24)
    functions, variables = model_functions(module), random_variables(module, x)
    graph = trace_graph(functions.apply, variables, x)
    gates, masked = random_gates(graph, 1), gated(functions.apply, graph)

    dense = functions.apply(variables, x)

    def error(variables):
        return float(jnp.square(masked(variables, gates, x) - dense).mean())

    by_all, by_few = (
        error(repair(functions.apply, graph, variables, gates, (x,), rows=rows))
        for rows in (None, 300)
    )
    assert by_all != by_few
    assert by_few < 1.5 * by_all and by_all < 0.7 * error(variables)


def test_a_network_without_weights_to_refit_stays_and_is_told():
    """What reads the units is made of the weights; the other sum stands in a loop."""

    def apply(variables, x):
        hidden = jnp.tanh(x @ variables["a"])
        first = hidden @ jnp.tanh(variables["b"])

        def body(carry, _):
            return carry + hidden @ variables["c"], None

        return first + jax.lax.scan(body, jnp.zeros((len(x), 2)), None, length=2)[0]

    shapes = {"a": (3, 5), "b": (5, 2), "c": (5, 2)}
    variables = random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    x = jax.random.normal(jax.random.key(0), (20, 3))
    graph = trace_graph(apply, variables, x)
    reach = repair_reach(apply, graph, variables, (x,))
    assert reach.refitted == 0
    assert reach.skipped["its weights are computed by 'tanh'"] == 1
    assert reach.skipped["its weights are read in a loop or a function's body"] == 1
    gates = {"a": jnp.array([1.0, 0, 1, 0, 1])}
    for function in (repair, merge_units, fold_means):
        repaired = function(apply, graph, variables, gates, (x,))
        jax.tree.map(np.testing.assert_array_equal, repaired, variables)


@pytest.mark.parametrize("function", [repair, merge_units])
def test_dead_units_and_activations_that_are_not_finite_leave_finite_weights(small, function):
    graph, variables, x, gates = small
    dead = {**variables, "a": variables["a"].at[:, :4].set(0), "bias": variables["bias"] * 0}
    hurt = x.at[3, 1].set(jnp.nan)
    for given, inputs in ((dead, x), (variables, hurt), (variables, x.at[0].set(1e30))):
        repaired = function(mlp, graph, given, gates, (inputs,))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(repaired))
    gone = jax.tree.map(jnp.zeros_like, gates)
    none_left = function(mlp, graph, variables, gone, (x,))
    np.testing.assert_array_equal(none_left["c"], variables["c"])


def test_a_tied_weight_stays_and_the_others_are_refitted():
    def apply(variables, x):
        hidden = jnp.tanh(jnp.tanh(x @ variables["tied"]) @ variables["free"])
        return hidden @ variables["tied"].T

    shapes = {"tied": (4, 6), "free": (6, 6)}
    variables = random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    x = jax.random.normal(jax.random.key(0), (50, 4))
    graph = trace_graph(apply, variables, x)
    repaired = repair(apply, graph, variables, random_gates(graph, 0), (x,))
    np.testing.assert_array_equal(repaired["tied"], variables["tied"])
    assert np.abs(repaired["free"] - variables["free"]).max() > 1e-3


def test_the_kind_of_the_variables_stays(small):
    graph, variables, x, gates = small
    for dtype in (jnp.bfloat16, jnp.float16):
        low = freeze({name: leaf.astype(dtype) for name, leaf in variables.items()})
        for function in (repair, merge_units):
            repaired = function(mlp, graph, low, gates, (x.astype(dtype),))
            assert type(repaired) is type(low)
            assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype(dtype)}
            exact = function(mlp, graph, variables, gates, (x,))
            assert np.abs(np.asarray(repaired["b"], np.float32) - exact["b"]).max() < 0.1


def test_inputs_that_are_all_zero_change_nothing_but_stay_finite():
    def apply(variables, x):
        return jnp.tanh(x @ variables["a"]) @ variables["b"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    x = jnp.zeros((4, 3))
    graph = trace_graph(apply, variables, x)
    repaired = repair(apply, graph, variables, {"a": jnp.array([1.0, 0, 0, 1, 0])}, (x,), ridge=0)
    jax.tree.map(np.testing.assert_array_equal, repaired, variables)


@pytest.mark.parametrize("function", [repair, merge_units, fold_means])
def test_no_examples_are_refused(small, function):
    graph, variables, x, gates = small
    with pytest.raises(ValueError, match=r"inputs=\[\(0, 4\)\] must be arrays that hold examples"):
        function(mlp, graph, variables, gates, (x[:0],))
    with pytest.raises(ValueError, match=r"inputs=\[\] must be arrays that hold examples"):
        function(mlp, graph, variables, gates, ())
    with pytest.raises(ValueError, match=r"inputs=.* must be the tuple .*; pass \(x,\)"):
        function(mlp, graph, variables, gates, x)


def test_bad_gates_and_ridges_are_refused(small):
    graph, variables, x, gates = small
    for ridge in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="ridge="):
            repair(mlp, graph, variables, gates, (x,), ridge=ridge)
    with pytest.raises(ValueError, match="rows=0 must be at least 1"):
        repair(mlp, graph, variables, gates, (x,), rows=0)
    with pytest.raises(ValueError, match="kind='lasso' must be one of"):
        RepairMethod("lasso")
    with pytest.raises(ValueError, match=r"missing: \['b'\]"):
        repair(mlp, graph, variables, {"a": gates["a"]}, (x,))


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_repair import SHAPES, mlp, random_gates, random_like
from rlprune_jax import trace_graph
from rlprune_jax.units import merge_units, repair
import jax.numpy as jnp

assert jax.device_count() == 2
mesh = Mesh(np.array(jax.devices()), ("examples",))
variables = random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in SHAPES.items()})
x = jax.random.normal(jax.random.key(3), (60, 4))
graph = trace_graph(mlp, variables, x)
gates = random_gates(graph, 4)
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("examples")))
everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
for function in (repair, merge_units):
    call = jax.jit(lambda v, x, f=function: f(mlp, graph, v, gates, (x,)))
    found, wanted = call(everywhere, spread), call(variables, x)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
"""


def test_examples_may_lie_on_two_devices():
    here = Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "graph"), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
