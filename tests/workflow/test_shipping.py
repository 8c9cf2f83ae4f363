"""A slim network on disk is the slim network, for raw inputs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small import QUICK, mlp_apply, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.training.augmentation import Standardise
from rlprune_jax.workflow import shipping
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.delivery import deliver
from rlprune_jax.workflow.searches import search
from rlprune_jax.workflow.shipping import ship, weight_bytes

SMALL = small_mlp()
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


def test_what_differs_from_its_masked_twin_is_not_written(tmp_path, monkeypatch, raw_delivered):
    from rlprune_jax.workflow.fitting import Equivalence

    monkeypatch.setattr(shipping, "equivalence", lambda *_: Equivalence(0.5, 1.0))
    with pytest.raises(RuntimeError, match=r"differ from its masked twin's by 0.5.*report"):
        ship(raw_delivered, tmp_path / "slim", (1,))
    assert not (tmp_path / "slim").exists()


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
