"""Exported weights, plans and networks."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_gates, small_cnn

from rlprune_jax import compact, respecialise, trace_graph
from rlprune_jax.export.export import (
    ExportError,
    export_stablehlo,
    load_stablehlo,
    load_weights,
    make_plan,
    plan_gates,
    read_plan,
    save_weights,
    write_plan,
)
from rlprune_jax.files import UnwritableError
from rlprune_jax.pytree import tree_hash


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def variables():
    return Network().init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))


def test_weights_round_trip(tmp_path, variables):
    tree = {**variables, "extra": {"half": jnp.bfloat16(0.5), "mask": jnp.ones((2, 0), bool)}}
    tree["extra"]["transposed"] = np.arange(6.0).reshape(2, 3).T
    save_weights(tmp_path / "weights.safetensors", tree)
    restored = load_weights(tmp_path / "weights.safetensors")
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert tree_hash(restored) == tree_hash(tree)


def test_weights_are_named_by_path(tmp_path, variables):
    import safetensors

    save_weights(tmp_path / "weights.safetensors", variables)
    with safetensors.safe_open(tmp_path / "weights.safetensors", "numpy") as file:
        assert "params/Conv_0/kernel" in set(file.keys())
        np.testing.assert_array_equal(
            file.get_tensor("params/Conv_0/kernel"), variables["params"]["Conv_0"]["kernel"]
        )


@pytest.mark.parametrize("tree", [[jnp.ones(2)], {"a": (jnp.ones(2),)}, {"a": {0: jnp.ones(1)}}])
def test_weights_of_other_containers_are_refused(tmp_path, tree):
    with pytest.raises(TypeError, match="nested dicts"):
        save_weights(tmp_path / "weights.safetensors", tree)
    assert not any(tmp_path.iterdir())


def test_damaged_weights_are_refused(tmp_path, variables):
    path = tmp_path / "weights.safetensors"
    save_weights(path, variables)
    for content in (b"", b"rubbish", path.read_bytes()[:-4]):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"weights\.safetensors is no"):
            load_weights(path)


GATES = {"conv1": jnp.array([1.0, 0.0, 0.0, 1.0]), "dense": jnp.ones(2), "none": jnp.zeros(3)}


def test_plan_round_trip(tmp_path, variables):
    plan = make_plan(GATES, variables, model="cnn", budgets=[{"name": "params", "limit": 0.1}])
    assert plan["groups"]["conv1"] == {"size": 4, "width": 2, "kept": [0, 3]}
    assert plan["dense_sha256"] == tree_hash(variables)
    write_plan(tmp_path / "plan.json", plan)
    restored = read_plan(tmp_path / "plan.json")
    assert restored == plan
    for name, gate in plan_gates(restored).items():
        np.testing.assert_array_equal(gate, GATES[name])
        assert gate.dtype == jnp.float32


def test_plan_of_no_groups(tmp_path, variables):
    write_plan(tmp_path / "plan.json", make_plan({}, variables))
    assert read_plan(tmp_path / "plan.json")["groups"] == {}


@pytest.mark.parametrize("gate", [[0.5, 1.0], [jnp.nan, 1.0], [[1.0, 0.0]]])
def test_gates_that_are_no_gates_are_refused(variables, gate):
    with pytest.raises(ValueError, match=r"'conv1'.*zeros and ones"):
        make_plan({"conv1": jnp.array(gate)}, variables)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.update(format="other"), "no format"),
        (lambda p: p.update(version=3), "version 3"),
        (lambda p: p.pop("dense_sha256"), "dense_sha256"),
        (lambda p: p.update(more=1), "more"),
        (lambda p: p.update(groups=[]), "groups"),
        (lambda p: p["groups"]["conv1"].pop("size"), "'conv1'.*size"),
        (lambda p: p["groups"]["conv1"].update(width=3), "width 3 but keeps 2"),
        (lambda p: p["groups"]["conv1"].update(kept=[3, 0]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 0]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 4]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[-1, 3]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0.0, 3.0]), "integers"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 2]), "was changed"),
        (lambda p: p.update(dense_sha256="0" * 64), "was changed"),
        (lambda p: p["details"].update(model="vgg11"), "was changed"),
    ],
)
def test_a_tampered_plan_is_refused(tmp_path, variables, change, message):
    path = tmp_path / "plan.json"
    write_plan(path, make_plan(GATES, variables, model="cnn"))
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(ExportError, match=rf"plan\.json.*{message}"):
        read_plan(path)
    with pytest.raises(ExportError, match=message):
        write_plan(tmp_path / "other.json", plan)


def test_a_torn_plan_is_refused(tmp_path, variables):
    path = tmp_path / "plan.json"
    write_plan(path, make_plan(GATES, variables))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ExportError, match="is not JSON"):
        read_plan(path)
    path.write_text("[1]")
    with pytest.raises(ExportError, match="no pruning plan"):
        read_plan(path)


def test_network_runs_for_any_batch(variables):
    content = export_stablehlo(Network().apply, variables, (6, 6, 1))
    network = load_stablehlo(content)
    for batch in (1, 5):
        x = jax.random.normal(jax.random.key(batch), (batch, 6, 6, 1))
        np.testing.assert_allclose(network(x), Network().apply(variables, x), atol=1e-5)
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert len(exported.in_avals) == 1  # the weights are inside


PROGRAM = """
import sys
import numpy as np, jax, jax.export
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[2], network.call(np.load(sys.argv[3])))
assert not {"flax", "rlprune_jax"} & set(sys.modules)
"""


def test_network_runs_where_only_jax_is_known(tmp_path, variables):
    (tmp_path / "model.stablehlo").write_bytes(
        export_stablehlo(Network().apply, variables, (6, 6, 1))
    )
    x = np.random.default_rng(0).normal(size=(7, 6, 6, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    names = ("model.stablehlo", "y.npy", "x.npy")
    files = [str(tmp_path / name) for name in names]
    subprocess.run([sys.executable, "-c", PROGRAM, *files], check=True, cwd=tmp_path)
    expected = Network().apply(variables, x)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


def test_a_slim_network_of_the_zoo_runs_where_only_jax_is_known(tmp_path):
    """Its convolution is an operation of ours, so the artifact must hold what it is made of."""
    small = small_cnn()
    gates = jax.tree.map(lambda each: each[0], random_gates(small.graph, 1, jax.random.key(0)))
    slim = compact(small.graph, small.variables, gates)
    slim_apply = respecialise(small.functions.apply, small.graph, gates)
    (tmp_path / "model.stablehlo").write_bytes(export_stablehlo(slim_apply, slim, (8, 8, 1)))
    x = np.asarray(small.data.images[:5])
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / name) for name in ("model.stablehlo", "y.npy", "x.npy")]
    # Isolated: neither this folder nor an editable installation of ours is on the path.
    found = importlib.util.find_spec("jax").origin
    program = f"import sys; sys.path.insert(0, {str(Path(found).parents[1])!r})" + PROGRAM
    subprocess.run([sys.executable, "-I", "-c", program, *files], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), slim_apply(slim, x), atol=1e-5)


def test_strided_indexing_that_traces_otherwise_for_an_unknown_batch_is_exported():
    def apply(variables, x):
        return (jax.nn.relu(x @ variables["a"])[:, ::2, ::2] @ variables["b"]).mean((1, 2))

    variables = {"a": jnp.arange(24.0).reshape(4, 6) - 11, "b": jnp.ones((6, 3))}
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 4))
    gates = {"a": jnp.array([1.0, 0, 1, 1, 0, 1])}
    graph = trace_graph(apply, variables, x)
    slim, slim_apply = compact(graph, variables, gates), respecialise(apply, graph, gates)
    network = load_stablehlo(export_stablehlo(slim_apply, slim, x.shape[1:]))
    for batch in (x, x[:1]):
        np.testing.assert_allclose(network(batch), slim_apply(slim, batch), rtol=1e-5)


def test_a_network_bound_to_one_batch_size_is_refused(variables):
    def apply(variables, x):
        return Network().apply(variables, x + jnp.ones((4, 6, 6, 1)))

    with pytest.raises(ExportError, match=re.escape("(batch, (6, 6, 1))")):
        export_stablehlo(apply, variables, (6, 6, 1))


def test_a_damaged_network_is_refused(tmp_path, variables):
    content = export_stablehlo(Network().apply, variables, (6, 6, 1))
    path = tmp_path / "model.stablehlo"
    for damaged in (b"", b"rubbish", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"model\.stablehlo is no exported network"):
            load_stablehlo(path)
    path.write_bytes(content)
    assert load_stablehlo(path)(jnp.zeros((2, 6, 6, 1))).shape == (2, 3)


def test_unwritable_place(tmp_path, variables):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="cannot write"):
        save_weights(tmp_path / "file" / "weights.safetensors", variables)
    with pytest.raises(UnwritableError, match="cannot write"):
        write_plan(tmp_path / "file" / "plan.json", make_plan({}, variables))
