"""Networks, tasks and weights of the user's."""

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import rlprune_jax as rp
from rlprune_jax import Network, Task
from rlprune_jax.export import save_weights
from rlprune_jax.runs import Checkpointer
from rlprune_jax.training.loops import init_train_state
from rlprune_jax.workflow.building import (
    Wanted,
    build_network,
    build_task,
    wanted_of,
    with_weights,
)
from rlprune_jax.workflow.sources import DataOptions, NetworkOptions

MODULE = """
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rlprune_jax import Network, regression

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(5)(x)))

class Nnx(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(5, 2, rngs=nnx.Rngs(1))
    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))

def linen_alone(): return Linen()
def linen(example, seed): return Linen(), Linen().init(jax.random.key(seed), example)
def nnx_module(): return Nnx()
def equinox(num_classes):
    return eqx.nn.MLP(3, num_classes, 5, 1, key=jax.random.key(0))
def network(example):
    v = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    return Network(lambda v, x: (x @ v["a"]) @ v["b"], v, example)
def nothing(): return 3
def greedy(temperature): pass
def broken(): raise KeyError("weights")

def arrays(seed):
    rng = np.random.default_rng(seed)
    split = (rng.normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2)
    return split, split, split
def task():
    x = np.ones((8, 3), np.float32)
    return regression((x, x[:, :2]), (x, x[:, :2]), (x, x[:, :2]))
def score(outputs, batch): return -jnp.abs(outputs - batch[1]).max()
"""

EXAMPLE = (jnp.ones((2, 3)),)


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_of_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def build(name, **options):
    wanted = Wanted(example=EXAMPLE, num_classes=2)
    return build_network(NetworkOptions(model=f"own_of_test:{name}", **options), wanted)


@pytest.mark.parametrize("name", ["linen", "nnx_module", "equinox", "network"])
def test_a_network_of_any_framework_counts_as_trained(name):
    network, is_trained, _ = build(name)
    assert is_trained and network.graph.sizes == (5,)
    assert network(EXAMPLE[0]).shape == (2, 2)


def test_a_linen_module_alone_is_initialised_and_to_be_trained():
    network, is_trained, _ = build("linen_alone")
    assert not is_trained and network.graph.sizes == (5,)


def test_what_is_ignored_is_frozen():
    with pytest.raises(ValueError, match=r"5 units: ignored by '\^b\$'"):
        assert build("network", ignore=("^b$",))[0].graph
    with pytest.raises(ValueError, match="matches none of the paths"):
        assert build("network", ignore=("zzz",))[0].graph


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned an object of type int; it must return"),
        ("greedy", "has the argument 'temperature', for which there is nothing here; it may name"),
        ("broken", "model='own_of_test:broken' raised KeyError: 'weights'"),
        ("absent", "model 'own_of_test:absent' cannot be imported: AttributeError"),
    ],
)
def test_a_function_that_makes_no_network_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        build(name)


def test_data_of_the_users_are_arrays_or_a_task():
    found = build_task(DataOptions(dataset="own_of_test:arrays"), seed=0)
    assert isinstance(found, Task) and found.objective.metric_name == "accuracy"
    found = build_task(DataOptions(dataset="own_of_test:task", metric="own_of_test:score"), seed=0)
    assert found.objective.metric_name == "score"
    with pytest.raises(ValueError, match="returned an object of type int; it must return"):
        build_task(DataOptions(dataset="own_of_test:nothing"), seed=0)
    with pytest.raises(ValueError, match=r"data_dir='\.' would do nothing"):
        build_task(DataOptions(dataset="own_of_test:task", data_dir="."), seed=0)


def test_the_zoo_classifies_and_says_so():
    wanted = Wanted(example=EXAMPLE, num_classes=None)
    with pytest.raises(ValueError, match="model='mlp' tells classes apart"):
        build_network(NetworkOptions(model="mlp"), wanted)


def test_language_models_of_the_zoo_take_the_vocabulary_and_length_of_the_data():
    task = build_task(DataOptions(dataset="text"), seed=0)
    wanted = wanted_of(task, seed=0)._replace(shapes_only=True)
    assert wanted.num_classes == 128 and wanted.example[0].dtype == jnp.int32
    shapes = build_network(NetworkOptions(model="gpt", width=0.25), wanted).network.variables
    assert shapes["params"]["embed"]["embedding"].shape == (128, 32)
    assert shapes["params"]["positions"].shape == (64, 32)
    # Of tokens of the user's, the vocabulary ends with the last one there is.
    own = rp.next_token(*(jnp.full((3, 101), last) for last in (5, 2, 7)))
    wanted = wanted_of(own, seed=0)._replace(shapes_only=True)
    shapes = build_network(NetworkOptions(model="gpt", width=0.25), wanted).network.variables
    assert shapes["params"]["embed"]["embedding"].shape == (8, 32)
    assert shapes["params"]["positions"].shape == (100, 32)
    with pytest.raises(ValueError, match=r"'cnn' reads images and the task's inputs are tokens"):
        build_network(NetworkOptions(model="cnn"), wanted)
    with pytest.raises(ValueError, match="model='llama': tokens are float32"):
        build_network(NetworkOptions(model="llama"), Wanted(example=EXAMPLE, num_classes=3))


def network_with(value):
    variables = {"params": {"a": jnp.full((3, 5), value), "b": jnp.full((5, 2), value)}}
    return Network(lambda v, x: (x @ v["params"]["a"]) @ v["params"]["b"], variables, EXAMPLE)


def save(place, kind, variables):
    if kind == "safetensors":
        save_weights(place, variables)
    elif kind == "parameters alone":
        save_weights(place, variables["params"])
    elif kind == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(place, variables)
    elif kind == "orbax manager":
        with ocp.CheckpointManager(place) as manager:
            manager.save(3, args=ocp.args.StandardSave(variables))
    else:
        with Checkpointer(place) as checkpointer:
            checkpointer.save(3, init_train_state(variables, optax.adam(1e-3)))


KINDS = ("safetensors", "parameters alone", "orbax", "orbax manager", "a stage's checkpoint")


@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_weights_come_back(tmp_path, kind):
    place = tmp_path / "weights"
    save(place, kind, network_with(2.0).variables)
    loaded = with_weights(network_with(1.0), str(place))
    np.testing.assert_array_equal(loaded.variables["params"]["b"], np.full((5, 2), 2.0))


def test_weights_that_do_not_fit_name_the_first_path(tmp_path):
    place = str(tmp_path / "weights")
    for params, message in (
        ({"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, r"'params/a' has shape \(3, 4\), in the"),
        ({"a": jnp.ones((3, 5))}, "it lacks 'params/b'; it holds params/a"),
        ({"c": jnp.ones(1)}, "it lacks 'params/a'; it holds params/c"),
        ({"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2)), "c": jnp.ones(1)}, "it holds 'params/c'"),
        ({"a": jnp.ones((3, 5), int), "b": jnp.ones((5, 2))}, "'params/a' is int"),
        ({"a": jnp.full((3, 5), jnp.nan), "b": jnp.ones((5, 2))}, "not finite at 'params/a'"),
    ):
        save_weights(place, {"params": params})
        with pytest.raises(ValueError, match=message):
            with_weights(network_with(1.0), place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="is no checkpoint that Orbax can read"):
        with_weights(network_with(1.0), str(tmp_path / "empty"))
