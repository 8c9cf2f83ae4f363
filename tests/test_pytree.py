"""Paths, sizes and hashes of pytrees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from rlprune_jax.pytree import (
    flatten_with_paths,
    host_array,
    leaf_paths,
    tree_bytes,
    tree_hash,
    tree_size,
)


class Moments(NamedTuple):
    mean: jax.Array
    count: jax.Array


@struct.dataclass
class State:
    params: dict
    moments: Moments


def state():
    return State(
        params={"Conv_0": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2)}},
        moments=Moments(mean=jnp.arange(4.0), count=jnp.int32(7)),
    )


def test_paths_name_fields_keys_and_indices():
    assert leaf_paths(state()) == [
        "params/Conv_0/bias",
        "params/Conv_0/kernel",
        "moments/mean",
        "moments/count",
    ]
    assert leaf_paths((1.0, [2.0, {"a": 3.0}])) == ["0", "1/0", "1/1/a"]
    assert leaf_paths(jnp.zeros(3)) == [""]


def test_paths_follow_the_order_of_leaves():
    flat = flatten_with_paths(state())
    for leaf, expected in zip(flat.values(), jax.tree.leaves(state()), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="'a/b'"):
        flatten_with_paths({"a": {"b": 1}, "a/b": 2})


def test_size_and_bytes():
    tree = {"a": jnp.zeros((3, 4), jnp.bfloat16), "b": np.zeros(5, np.int64), "c": 1.5}
    assert tree_size(tree) == 12 + 5 + 1
    assert tree_bytes(tree) == 12 * 2 + 5 * 8 + 8
    assert tree_bytes(jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)) == 4 << 40
    assert tree_bytes(jax.random.key(0)) == 8  # threefry: two 32-bit words


def test_hash_sees_values_dtypes_shapes_and_paths():
    tree = {"a": jnp.arange(6.0), "key": jax.random.key(1)}
    others = [
        {"a": jnp.arange(6.0).at[3].add(1e-6), "key": jax.random.key(1)},
        {"a": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(1)},
        {"a": jnp.arange(6), "key": jax.random.key(1)},
        {"b": jnp.arange(6.0), "key": jax.random.key(1)},
        {"a": jnp.arange(6.0), "key": jax.random.key(2)},
        {"a": jnp.arange(6.0), "key": jax.random.key_data(jax.random.key(1))},
    ]
    hashes = {tree_hash(each) for each in [tree, *others]}
    assert len(hashes) == 1 + len(others)
    assert all(len(value) == 64 for value in hashes)


def test_hash_is_independent_of_container_order_and_device():
    tree = {"b": np.arange(3.0, dtype=np.float32), "a": np.ones(2, bool)}
    same = {"a": jnp.ones(2, bool), "b": jnp.arange(3.0)}
    assert tree_hash(tree) == tree_hash(same)
    # Fixed across processes and versions: export writes it into files.
    assert tree_hash({"a": np.zeros(2, np.float32)}) == (
        "0386298fbef060f57ee2a376dada046efbb1085b63d8be6e2e3ac8427871fe4a"
    )


def test_host_array_of_a_key_is_its_words():
    np.testing.assert_array_equal(host_array(jax.random.key(5)), [0, 5])
