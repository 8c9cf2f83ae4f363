"""Weights on disk: any pytree, bit for bit, and nothing taken for what it is not."""

import dataclasses
import json
from typing import NamedTuple

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.weights import load_weights, save_weights
from rlprune_jax.files import UnwritableError
from rlprune_jax.pytree import flatten_with_paths, tree_hash


class Dropped(nnx.Module):
    """A network whose state holds parameters, statistics, random keys and counts."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


class Moments(NamedTuple):
    mean: jax.Array
    count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    moments: Moments


@jax.tree_util.register_pytree_node_class
class Anonymous:
    """A container that registers no names for what it holds."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def kernel():
    return jnp.arange(6.0).reshape(2, 3)


ELEMENT_TYPES = ("bool", "uint8", "int8", "int16", "uint32", "float16", "bfloat16", "complex64")
ELEMENT_TYPES += ("float8_e4m3fn", "float8_e5m2")

TREES = {
    "nested dicts": lambda: {"params": {"Conv_0": {"kernel": kernel()}}},
    "integer keys": lambda: {"layers": {0: {"kernel": kernel()}, 10: jnp.ones(2)}},
    "FrozenDict": lambda: flax.core.freeze({"params": {"kernel": kernel()}}),
    "NNX state": lambda: nnx.split(Dropped(nnx.Rngs(0)))[1],
    "NNX pure dict": lambda: nnx.to_pure_dict(nnx.split(Dropped(nnx.Rngs(0)))[1]),
    "Equinox": lambda: eqx.filter(
        eqx.nn.Sequential(
            [
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0)),
                eqx.nn.Lambda(jax.nn.relu),
            ]
        ),
        eqx.is_array,
    ),
    "dataclass": lambda: Layer(kernel(), Moments(jnp.ones(3), jnp.int32(7))),
    "sequences": lambda: [kernel(), (jnp.ones(2), {"a": [jnp.zeros(1)]})],
    "None leaves": lambda: {"a": (None, kernel(), None), "b": None, "c": {}},
    "optimizer state": lambda: optax.adam(1e-3).init({"kernel": kernel()}),
    "no names": lambda: Anonymous(kernel(), {"a": jnp.ones(1)}),
    "random keys": lambda: {
        "one": jax.random.key(3),
        "many": jax.random.split(jax.random.key(1, impl="rbg"), 4),
        "legacy": jax.random.PRNGKey(1),
    },
    "Haiku": lambda: {"mlp/~/linear_0": {"w": kernel()}, "mlp/~/linear_1": {"w": jnp.ones(2)}},
    "slashes": lambda: {"a/b": {"c": kernel()}, "a": {"b": {"d": jnp.ones(1)}}, "/": jnp.ones(3)},
    "odd names": lambda: {"": jnp.ones(1), "ключ": jnp.ones(2), 'a"\n': jnp.ones(3)},
    "one leaf": kernel,
    "no leaf": dict,
    "scalars": lambda: {"f": jnp.float32(2), "n": np.int64(3), "python": 1.5, "flag": True},
    "no elements": lambda: {"a": jnp.ones((0, 3)), "b": jnp.ones((2, 0), bool)},
    "element types": lambda: {name: jnp.ones(3, name) for name in ELEMENT_TYPES},
    "64 bits": lambda: {"f": np.array([1e-300]), "i": np.array([2**60]), "t": np.ones((2, 3)).T},
    "not finite": lambda: {"a": jnp.array([jnp.nan, -0.0, jnp.inf])},
}


@pytest.mark.parametrize("name", TREES)
def test_any_tree_comes_back_in_its_own_containers(tmp_path, name):
    tree = TREES[name]()
    save_weights(tmp_path / "weights", tree)
    restored = load_weights(tmp_path / "weights", like=tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert tree_hash(restored) == tree_hash(tree)


@pytest.mark.parametrize("name", TREES)
def test_any_tree_comes_back_as_dicts_and_lists(tmp_path, name):
    tree = TREES[name]()
    save_weights(tmp_path / "weights", tree)
    restored = load_weights(tmp_path / "weights")
    assert tree_hash(restored) == tree_hash(tree)
    assert flatten_with_paths(restored).keys() == flatten_with_paths(tree).keys()
    if name in ("nested dicts", "integer keys", "NNX pure dict", "Haiku", "slashes", "odd names"):
        assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_what_containers_become_without_a_template(tmp_path):
    tree = {"pair": (Moments(jnp.ones(1), jnp.ones(2)), None, {3: jnp.ones(3)}, None)}
    save_weights(tmp_path / "weights", tree)
    first, none, third = load_weights(tmp_path / "weights")["pair"]
    assert set(first) == {"mean", "count"}
    assert none is None
    assert set(third) == {3}


trees = st.recursive(
    st.builds(
        np.full, st.lists(st.integers(0, 3), max_size=2), st.sampled_from([1.5, True, np.int8(3)])
    ),
    lambda children: st.one_of(
        st.dictionaries(st.text("ab/0", max_size=2), children, max_size=3),
        st.dictionaries(st.integers(0, 11), children, max_size=3),
        st.lists(children | st.none(), max_size=3),
        st.lists(children, max_size=2).map(tuple),
    ),
    max_leaves=8,
)


@given(trees)
def test_trees_are_restored_or_refused(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree"
    try:
        flatten_with_paths(tree)
    except ValueError:
        with pytest.raises(ValueError, match="share the path"):
            save_weights(path, tree)
        return
    save_weights(path, tree)
    again = load_weights(path, like=tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert tree_hash(again) == tree_hash(load_weights(path)) == tree_hash(tree)


def test_a_template_may_be_shapes_of_another_width(tmp_path):
    save_weights(tmp_path / "weights", Layer(kernel(), Moments(jnp.ones(3), jnp.int32(7))))
    dense = jax.eval_shape(lambda: Layer(jnp.ones((8, 9)), Moments(jnp.ones(9), jnp.int32(0))))
    restored = load_weights(tmp_path / "weights", like=dense)
    assert isinstance(restored, Layer)
    np.testing.assert_array_equal(restored.kernel, kernel())


def test_an_nnx_network_runs_on_its_restored_state(tmp_path):
    definition, state = nnx.split(Dropped(nnx.Rngs(0)))
    save_weights(tmp_path / "weights", state)
    like = nnx.split(nnx.eval_shape(lambda: Dropped(nnx.Rngs(1))))[1]
    network = nnx.merge(definition, load_weights(tmp_path / "weights", like=like))
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(network.layers[0](x), nnx.merge(definition, state).layers[0](x))
    assert network.dropout(jnp.ones((4, 4))).shape == (4, 4)  # its key is a key again


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": jnp.ones(2), "b": jnp.ones(1), "c": jnp.ones(1)}, "it lacks 'c'"),
        ({"a": jnp.ones(2)}, "'b' is not in like"),
        ({"a": jnp.ones(2), "b": jnp.ones(1, jnp.bfloat16)}, "'b' is float32, in like bfloat16"),
        ({"a": jnp.ones(2), "b": jax.random.key(0)}, "'b' is float32, in like key"),
        ([jnp.ones(2), jnp.ones(1)], "it lacks '0'; it lacks '1'; 'a' is not in like; 'b' is not"),
        ({}, "'a' is not in like; 'b' is not in like"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tmp_path, like, message):
    save_weights(tmp_path / "weights", {"a": jnp.ones(2), "b": jnp.ones(1)})
    with pytest.raises(ExportError, match=f"weights does not fit like: .*{message}"):
        load_weights(tmp_path / "weights", like=like)


def test_keys_of_another_implementation_are_refused(tmp_path):
    save_weights(tmp_path / "weights", {"key": jax.random.key(0)})
    with pytest.raises(ExportError, match=r"'key' is key<fry>, in like key<rbg>"):
        load_weights(tmp_path / "weights", like={"key": jax.random.key(0, impl="rbg")})


def test_weights_are_named_by_path(tmp_path):
    save_weights(tmp_path / "weights", {"params": {"Conv_0": {"kernel": kernel()}}})
    with safetensors.safe_open(tmp_path / "weights", "numpy") as file:
        assert set(file.keys()) == {"params/Conv_0/kernel"}
        np.testing.assert_array_equal(file.get_tensor("params/Conv_0/kernel"), kernel())
        assert json.loads(file.metadata()["keys"]) == {}


@pytest.mark.parametrize("metadata", [None, {"format": "rlprune_jax.weights/1"}, {"format": "pt"}])
def test_files_without_our_metadata_are_nested_by_path(tmp_path, metadata):
    """Files of version 1, and of others."""
    content = safetensors.numpy.save({"a/0/b": np.ones(2)}, metadata)
    (tmp_path / "weights").write_bytes(content)
    assert set(load_weights(tmp_path / "weights")["a"]["0"]) == {"b"}


@pytest.mark.parametrize(
    "arrays, metadata, message",
    [
        (["a"], {"format": "rlprune_jax.weights/9"}, "format is rlprune_jax.weights/9"),
        (["a"], {"format": "rlprune_jax.weights/2", "keys": '{"a": [null]}'}, "unknown key None"),
        (["a"], {"format": "rlprune_jax.weights/2", "keys": '{"a": 3}'}, "no safetensors file"),
        (["a"], {"format": "rlprune_jax.weights/2", "keys": "["}, "no safetensors file"),
        (["a"], {"format": "rlprune_jax.weights/2", "random": '{"a": "dice"}'}, "no safetensors"),
        (["a", "a/b"], None, "both a leaf and a branch"),
        (["a", "b"], {"format": "rlprune_jax.weights/2", "keys": '{"a": [["b"]]}'}, "mix kinds"),
    ],
)
def test_metadata_that_make_no_tree_are_refused(tmp_path, arrays, metadata, message):
    content = safetensors.numpy.save({name: np.ones(2) for name in arrays}, metadata)
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ExportError, match=f"weights .*{message}"):
        load_weights(tmp_path / "weights")


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"kernel": kernel()})
    for content in (b"", b"rubbish", path.read_bytes()[:-4]):
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"weights\.safetensors is no .* save_weights"):
            load_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"none\.safetensors cannot be read: No such file.*save"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(ExportError, match=r"cannot be read: Is a directory"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "tree, error, message",
    [
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, ValueError, "share the path 'a/b'"),
        ({"a": {"relu": jax.nn.relu}}, TypeError, r"object at 'a/relu'.*equinox\.partition"),
        ({"a": "text"}, TypeError, "str of <U4 at 'a'"),
        ({"a": np.ones(1, np.complex128)}, TypeError, "complex128 at 'a'"),
        ({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, TypeError, "ShapeDtypeStruct"),
        ({"a": {(1, 2): jnp.ones(1)}}, TypeError, "must be text or integers"),
        ({"a": {True: jnp.ones(1)}}, TypeError, "must be text or integers"),
        ({"__metadata__": jnp.ones(1)}, ValueError, "__metadata__"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, tree, error, message):
    with pytest.raises(error, match=message):
        save_weights(tmp_path / "weights", tree)
    assert not any(tmp_path.iterdir())


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="cannot write"):
        save_weights(tmp_path / "file" / "weights.safetensors", {"kernel": kernel()})
