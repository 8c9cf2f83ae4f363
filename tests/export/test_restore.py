"""A slim network restored from its files; whatever does not belong together is refused."""

import hashlib
import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import random_gates, small_cnn

from rlprune_jax import compact, respecialise, trace_graph
from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.plan import PLAN, make_plan, write_plan
from rlprune_jax.export.restore import restore_slim
from rlprune_jax.export.weights import WEIGHTS, save_weights
from rlprune_jax.models import create_model, model_functions

SMALL = small_cnn()


def store(folder, seed, change=lambda variables: variables):
    gates = jax.tree.map(lambda each: each[0], random_gates(SMALL.graph, 1, jax.random.key(seed)))
    slim = change(compact(SMALL.graph, SMALL.variables, gates))
    folder.mkdir(exist_ok=True)
    save_weights(folder / WEIGHTS, slim)
    write_plan(folder / PLAN, make_plan(gates, SMALL.variables, slim))
    return gates, slim


def test_what_was_stored_is_restored_without_the_dense_weights(tmp_path):
    gates, slim = store(tmp_path, 0)
    x = SMALL.data.batch[0]
    shapes = SMALL.network.definition.shapes
    graph = trace_graph(SMALL.network.apply, shapes, x)
    restored = restore_slim(tmp_path, SMALL.network.apply, graph)
    jax.tree.map(np.testing.assert_array_equal, restored.variables, slim)
    jax.tree.map(np.testing.assert_array_equal, restored.gates, gates)
    assert restored.apply(restored.variables, x).shape == (12, 4)


def test_a_plan_that_was_changed_is_refused(tmp_path):
    store(tmp_path, 0)
    plan = json.loads((tmp_path / PLAN).read_text())
    group = next(group for group in plan["groups"].values() if group["width"] < group["size"])
    absent = next(unit for unit in range(group["size"]) if unit not in group["kept"])
    group["kept"] = sorted([*group["kept"][1:], absent])
    (tmp_path / PLAN).write_text(json.dumps(plan))
    with pytest.raises(ExportError, match="was changed after it was written"):
        restore_slim(tmp_path, SMALL.network.apply, SMALL.graph)
    # Signed again it is consistent, but the weights were cut to other widths.
    group["kept"] = group["kept"][:-1]
    group["width"] -= 1
    content = {name: value for name, value in plan.items() if name != "sha256"}
    plan["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / PLAN).write_text(json.dumps(plan))
    with pytest.raises(ExportError, match=r"does not fit its plan|keep at least one|leaves group"):
        restore_slim(tmp_path, SMALL.network.apply, SMALL.graph)


def test_weights_of_another_network_are_refused(tmp_path):
    store(tmp_path / "a", 0)
    _, slim = store(tmp_path / "b", 0, lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))
    shutil.copy(tmp_path / "b" / WEIGHTS, tmp_path / "a" / WEIGHTS)
    with pytest.raises(ExportError, match="their sha256 differs"):
        restore_slim(tmp_path / "a", SMALL.network.apply, SMALL.graph)
    save_weights(tmp_path / "a" / WEIGHTS, jax.tree.map(lambda x: x.astype(jnp.bfloat16), slim))
    with pytest.raises(ExportError, match="is bfloat16, the network has float32"):
        restore_slim(tmp_path / "a", SMALL.network.apply, SMALL.graph)
    save_weights(tmp_path / "a" / WEIGHTS, {"params": slim["params"]})
    with pytest.raises(ExportError, match="does not fit its plan"):
        restore_slim(tmp_path / "a", SMALL.network.apply, SMALL.graph)


def test_the_plan_of_another_network_is_refused(tmp_path):
    store(tmp_path, 0)
    functions = model_functions(create_model("mlp", 4, widths=(5,)))
    x = jnp.ones((2, 8, 8, 1))
    graph = trace_graph(functions.apply, functions.init(jax.random.key(0), x), x)
    with pytest.raises(ExportError, match="is of another network"):
        restore_slim(tmp_path, functions.apply, graph)


@pytest.mark.parametrize("missing", [WEIGHTS, PLAN])
def test_nothing_is_restored_in_part(tmp_path, missing):
    store(tmp_path, 0)
    (tmp_path / missing).unlink()
    with pytest.raises(ExportError, match=f"{missing} cannot be read"):
        restore_slim(tmp_path, SMALL.network.apply, SMALL.graph)


def test_a_plan_without_the_hash_of_its_weights_restores_nothing(tmp_path):
    gates, _ = store(tmp_path, 0)
    write_plan(tmp_path / PLAN, make_plan(gates, SMALL.variables))
    with pytest.raises(ExportError, match="their sha256 differs"):
        restore_slim(tmp_path, SMALL.network.apply, SMALL.graph)


class Network(nnx.Module):
    """A network whose variables are no dicts and hold random keys and counts."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.first(x))))


def nnx_network():
    definition, variables = nnx.split(Network(nnx.Rngs(0)))

    def apply(variables, x):
        network = nnx.merge(definition, variables)
        network.eval()
        return network(x)

    return apply, variables


def equinox_network():
    network = eqx.nn.MLP(4, 2, 5, 2, key=jax.random.key(0))
    variables, static = eqx.partition(network, eqx.is_inexact_array)

    def apply(variables, x):
        return jax.vmap(eqx.combine(variables, static))(x)

    return apply, variables


def tuple_network():
    def apply(variables, x):
        (first, bias), head = variables
        return jax.nn.relu(x @ first + bias) @ head

    return apply, ((jnp.ones((4, 5)), jnp.arange(5.0)), jnp.ones((5, 2)))


@pytest.mark.parametrize("make", [nnx_network, equinox_network, tuple_network])
def test_networks_of_other_frameworks_are_restored_in_their_containers(tmp_path, make):
    apply, variables = make()
    x = jax.random.normal(jax.random.key(1), (3, 4))
    graph = trace_graph(apply, variables, x)
    gates = {
        name: (jnp.arange(size) % 2).astype(jnp.float32)
        for name, size in zip(graph.names, graph.sizes, strict=True)
    }
    slim = compact(graph, variables, gates)
    save_weights(tmp_path / WEIGHTS, slim)
    write_plan(tmp_path / PLAN, make_plan(gates, variables, slim))
    shapes = jax.eval_shape(lambda: variables)
    restored = restore_slim(tmp_path, apply, graph, shapes)
    assert jax.tree.structure(restored.variables) == jax.tree.structure(slim)
    np.testing.assert_array_equal(
        restored.apply(restored.variables, x), respecialise(apply, graph, gates)(slim, x)
    )
    if make is tuple_network:  # lists do for tuples
        restored = restore_slim(tmp_path, apply, graph)
        assert restored.apply(restored.variables, x).shape == (3, 2)
        return
    with pytest.raises(ExportError, match=r"pass the dense variables or their shapes"):
        restore_slim(tmp_path, apply, graph)
    with pytest.raises(ExportError, match=r"does not fit like: it lacks 'other'"):
        restore_slim(tmp_path, apply, graph, {"other": jnp.ones(1)})


def test_variables_that_are_python_numbers_are_restored(tmp_path):
    def apply(variables, x):
        return jax.nn.relu(x @ variables["a"]) @ variables["b"] * variables["scale"]

    variables = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 2)), "scale": 2.5}
    x = jnp.ones((3, 4))
    graph = trace_graph(apply, variables, x)
    gates = {"a": jnp.array([1.0, 0, 0, 1, 0])}
    slim = compact(graph, variables, gates)
    save_weights(tmp_path / WEIGHTS, slim)
    write_plan(tmp_path / PLAN, make_plan(gates, variables, slim))
    restored = restore_slim(tmp_path, apply, graph)
    np.testing.assert_allclose(restored.apply(restored.variables, x), 4 * 2 * 2.5)
