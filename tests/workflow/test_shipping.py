"""A slim network on disk is the slim network, for raw inputs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.interpreters import mlir
from small import QUICK, mlp_apply, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.training.augmentation import Standardise
from rlprune_jax.workflow import fitting
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.delivery import Delivered, deliver
from rlprune_jax.workflow.searches import search
from rlprune_jax.workflow.shipping import ship, weight_bytes

SMALL = small_mlp()
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
FILES = {"weights.safetensors", "plan.json", "model.stablehlo", "README.txt", "SHA256SUMS"}


@pytest.fixture(scope="module")
def raw_delivered():
    """A delivery of a task whose inputs are bytes, standardised before the network."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (32, 4), np.uint8)
    prepare = Standardise(mean=(0.5, 0.4, 0.3, 0.2), std=(0.1, 0.2, 0.3, 0.4))
    y = np.asarray(SMALL.network(prepare(x)).argmax(-1), np.int32)
    task = rp.classification(
        *[(x, y)] * 3,
        prepare=prepare,
        description={"class_names": ("red", "green", "blue"), "dataset": "colours"},
    )
    pruning = rp.make_pruning(SMALL.network, task, "params=0.5", PruneConfig(**QUICK))
    return deliver(pruning, search(pruning, "uniform"))


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch, raw_delivered):
    monkeypatch.chdir(tmp_path)
    shipped = ship(raw_delivered, batches=(1,))
    assert list(tmp_path.iterdir()) == []
    assert shipped.metric == pytest.approx(raw_delivered.metric, abs=1e-6)
    assert shipped.max_abs_diff < 1e-5
    assert set(shipped.slim_latency) == set(shipped.dense_latency) == {1}
    assert 0 < shipped.slim_bytes < shipped.dense_bytes


def test_the_files_hold_the_slim_network_and_take_raw_inputs(tmp_path, raw_delivered):
    shipped = ship(raw_delivered, tmp_path / "slim", (1,))
    assert {path.name for path in (tmp_path / "slim").iterdir()} == FILES
    assert (tmp_path / "slim" / "weights.safetensors").stat().st_size == shipped.slim_bytes

    fresh = rp.Network(mlp_apply, jax.tree.map(np.zeros_like, SMALL.variables), np.ones((1, 4)))
    loaded = fresh.load_slim(tmp_path / "slim")
    raw = np.random.default_rng(1).integers(0, 256, (5, 4), np.uint8)
    prepared = raw_delivered.pruning.task.prepare(raw)
    np.testing.assert_array_equal(loaded(prepared), shipped.network(prepared))

    exported = jax.export.deserialize((tmp_path / "slim" / "model.stablehlo").read_bytes())
    assert exported.in_avals[0].dtype == np.uint8
    np.testing.assert_allclose(exported.call(raw), shipped.network(prepared), rtol=1e-5, atol=1e-5)


def test_the_plan_says_how_inputs_are_prepared_and_what_outputs_mean(tmp_path, raw_delivered):
    ship(raw_delivered, tmp_path, (1,))
    text = (tmp_path / "plan.json").read_text()
    plan = json.loads(text)

    def found(key, tree=plan):
        children = tree.values() if isinstance(tree, dict) else tree
        if isinstance(tree, dict) and key in tree:
            return tree[key]
        nested = [found(key, each) for each in children if isinstance(each, dict | list)]
        return next((each for each in nested if each is not None), None)

    assert found("mean") == [0.5, 0.4, 0.3, 0.2]
    assert found("std") == [0.1, 0.2, 0.3, 0.4]
    assert found("class_names") == ["red", "green", "blue"]
    assert "uint8" in text and "colours" in text


@pytest.fixture
def rounding_device(monkeypatch):
    """A backend that rounds the operands of contractions to 10 bits, as tensor cores do.

    Unless full float32 is asked for, and where there are multiples of 4 channels, as cuDNN does:
    dense and slim programs are rounded differently. It stands in where a program is lowered, so
    that nothing of ours knows of it.
    """
    rules = mlir._platform_specific_lowerings["cpu"]
    for primitive in (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p):
        entry = rules.get(primitive) or mlir._lowerings[primitive]
        plain = getattr(entry, "rule", entry)

        def rounded(first, second, primitive=primitive, **params):
            if second.shape[-2] % 4 == 0:
                first, second = (jax.lax.reduce_precision(each, 8, 10) for each in (first, second))
            return primitive.bind(first, second, **{**params, "precision": HIGHEST})

        def rule(context, *operands, plain=plain, rounded=rounded, **params):
            is_full = params["precision"] == HIGHEST
            lower = plain if is_full else mlir.lower_fun(rounded, multiple_results=False)
            return lower(context, *operands, **params)

        monkeypatch.setitem(rules, primitive, entry)  # what is put back afterwards
        mlir.register_lowering(primitive, rule, platform="cpu")
    monkeypatch.setattr(fitting, "rounds_contractions", lambda: True)


def deep_apply(variables, x):
    """Two hidden layers of 12 units and a head whose outputs are large."""
    hidden = jax.nn.relu(x @ variables["a"])
    return jax.nn.relu(hidden @ variables["b"]) @ variables["c"]


def deep_delivered():
    """A delivery of a network that nothing has compiled, 7 units of 12 kept in each layer."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (4, 12), "b": (12, 12), "c": (12, 3)}
    drawn = zip(keys, shapes.items(), strict=False)
    variables = {name: jax.random.normal(key, shape) for key, (name, shape) in drawn}
    x = np.asarray(jax.random.normal(keys[3], (24, 4)))
    network = rp.Network(deep_apply, variables, x[:2])
    task = rp.classification(*[(x, np.arange(24, dtype=np.int32) % 3)] * 3)
    config = PruneConfig(**QUICK, score="random")
    pruning = rp.make_pruning(network, task, "params=0.9", config)
    gates = {name: (np.arange(12) < 7).astype(np.float32) for name in network.graph.names}
    return Delivered(pruning, "agent", gates, variables, metric=0.0, loss=0.0, ratings=[])


def test_rounded_contractions_are_no_difference_and_a_wrong_cut_is(
    tmp_path, monkeypatch, rounding_device
):
    delivered = deep_delivered()
    found = ship(delivered, tmp_path / "right", (1,)).equivalence
    assert found.holds and found.max_abs_diff < 1e-6 * found.largest
    assert found.default_max_abs_diff > 1e-4 * found.largest
    slim = delivered.network
    # One unit is read in place of another.
    head = np.roll(slim.variables["c"], 1, axis=0)
    spoilt = slim.replace({**slim.variables, "c": head})
    monkeypatch.setattr(Delivered, "network", spoilt)
    with pytest.warns(UserWarning, match=r"differ from its masked twin's by .*report"):
        shipped = ship(delivered, tmp_path / "wrong", (1,))
    assert not shipped.equivalence.holds
    assert {path.name for path in (tmp_path / "wrong").iterdir()} == FILES
    plan = json.loads((tmp_path / "wrong" / "plan.json").read_text())
    assert plan["details"]["differs_from_masked_by"] == pytest.approx(shipped.max_abs_diff)
    assert (tmp_path / "wrong" / "README.txt").read_text().startswith("WARNING: the slim network")
    assert not (tmp_path / "right" / "README.txt").read_text().startswith("WARNING")


def test_a_place_that_cannot_be_written_is_named(tmp_path, raw_delivered):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file"):
        ship(raw_delivered, tmp_path / "file", (1,))


def test_weight_bytes_are_those_of_a_file(tmp_path):
    from rlprune_jax.export import save_weights

    save_weights(tmp_path / "weights", SMALL.variables)
    assert weight_bytes(SMALL.variables) == Path(tmp_path / "weights").stat().st_size


def test_a_delivery_can_be_shipped_with_training_of_ones_own_in_between(tmp_path):
    pruning = small_pruning("params=0.5")
    delivered = deliver(pruning, search(pruning, "uniform"))
    slim = delivered.network
    moved = slim.replace(jax.tree.map(lambda leaf: leaf * 1.5, slim.variables))
    assert moved.definition is slim.definition
    assert ship(delivered, tmp_path, (1,)).network.definition is slim.definition
