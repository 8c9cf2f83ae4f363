"""A slim network restored from its files; whatever does not belong together is refused."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import random_gates, small_cnn

from rlprune_jax import compact, trace_graph
from rlprune_jax.export.export import ExportError, make_plan, save_weights, write_plan
from rlprune_jax.export.restore import PLAN, WEIGHTS, restore_slim
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
    x = SMALL.data.images
    shapes = jax.eval_shape(SMALL.functions.init, jax.random.key(0), x)
    graph = trace_graph(SMALL.functions.apply, shapes, x)
    restored = restore_slim(tmp_path, SMALL.functions.apply, graph)
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
        restore_slim(tmp_path, SMALL.functions.apply, SMALL.graph)
    # Signed again it is consistent, but the weights were cut to other widths.
    group["kept"] = group["kept"][:-1]
    group["width"] -= 1
    content = {name: value for name, value in plan.items() if name != "sha256"}
    plan["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / PLAN).write_text(json.dumps(plan))
    with pytest.raises(ExportError, match=r"does not fit its plan|keep at least one|leaves group"):
        restore_slim(tmp_path, SMALL.functions.apply, SMALL.graph)


def test_weights_of_another_network_are_refused(tmp_path):
    store(tmp_path / "a", 0)
    _, slim = store(tmp_path / "b", 0, lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))
    shutil.copy(tmp_path / "b" / WEIGHTS, tmp_path / "a" / WEIGHTS)
    with pytest.raises(ExportError, match="their sha256 differs"):
        restore_slim(tmp_path / "a", SMALL.functions.apply, SMALL.graph)
    save_weights(tmp_path / "a" / WEIGHTS, jax.tree.map(lambda x: x.astype(jnp.bfloat16), slim))
    with pytest.raises(ExportError, match="is bfloat16, the network has float32"):
        restore_slim(tmp_path / "a", SMALL.functions.apply, SMALL.graph)
    save_weights(tmp_path / "a" / WEIGHTS, {"params": slim["params"]})
    with pytest.raises(ExportError, match="does not fit its plan"):
        restore_slim(tmp_path / "a", SMALL.functions.apply, SMALL.graph)


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
    with pytest.raises(ExportError, match="holds no slim network"):
        restore_slim(tmp_path, SMALL.functions.apply, SMALL.graph)


def test_a_plan_without_the_hash_of_its_weights_restores_nothing(tmp_path):
    gates, _ = store(tmp_path, 0)
    write_plan(tmp_path / PLAN, make_plan(gates, SMALL.variables))
    with pytest.raises(ExportError, match="their sha256 differs"):
        restore_slim(tmp_path, SMALL.functions.apply, SMALL.graph)
