"""Cutting arrays of every dtype, on one device and sharded over eight."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from rlprune_jax import compact, trace_graph
from rlprune_jax.graph.cutting import _cut_shards, cut, slim_sharding, spread

DTYPES = [
    jnp.float32,
    jnp.bfloat16,
    jnp.float16,
    jnp.float8_e4m3fn,
    jnp.float8_e5m2,
    jnp.int4,
    bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_cut(dtype):
    value = jnp.asarray(np.arange(24).reshape(4, 6) % 7, dtype)
    alive = (np.array([True, False, True, True]), np.arange(6) != 2)
    slim = cut(value, alive)
    assert slim.dtype == value.dtype
    wanted = np.asarray(value, np.float32)[np.ix_(*alive)]
    np.testing.assert_array_equal(np.asarray(slim, np.float32), wanted)
    traced = jax.jit(lambda value: cut(value, alive))(value)
    np.testing.assert_array_equal(np.asarray(traced, np.float32), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn])
def test_compact_keeps_low_precision(dtype):
    def apply(variables, x):
        a, b = (variables[name].astype(jnp.float32) for name in "ab")
        return jax.nn.relu(x @ a) @ b

    variables = {
        "a": jnp.asarray(np.arange(15).reshape(3, 5), dtype),
        "b": jnp.asarray(np.arange(10).reshape(5, 2), dtype),
    }
    graph = trace_graph(apply, variables, jnp.ones((1, 3)))
    moments = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) + 1, variables)
    slim, state = compact(
        graph, variables, {"a": jnp.array([0.0, 1, 0, 1, 1])}, opt_state={"mu": moments}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(slim)} == {jnp.dtype(dtype)}
    wanted = np.asarray(variables["a"])[:, [1, 3, 4]]
    assert wanted.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
    assert np.asarray(slim["a"]).tobytes() == wanted.tobytes()
    assert state["mu"]["b"].dtype == jnp.float32
    np.testing.assert_array_equal(state["mu"]["b"], moments["b"][jnp.array([1, 3, 4])])


def test_what_is_not_cut_stays_the_same_array():
    value = jnp.ones((2, 3))
    assert cut(value, (np.ones(2, bool), np.ones(3, bool))) is value


def test_a_mesh_of_one_device_is_kept():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "d")
    sharding = NamedSharding(mesh, PartitionSpec(None, "d"))
    slim = cut(jax.device_put(jnp.eye(3), sharding), (np.ones(3, bool), np.arange(3) > 0))
    assert slim.sharding == sharding
    np.testing.assert_array_equal(slim, np.eye(3)[:, 1:])


def test_spread_then_cut_gives_the_slim_array_again():
    alive = (np.array([False, True, True, False, True]),)
    slim = jnp.arange(3.0)
    np.testing.assert_array_equal(cut(spread(slim, alive), alive), slim)


MESH = AbstractMesh((2, 3, 4), ("x", "y", "z"))
NAMES = ["x", "y", "z"]


@given(st.permutations(NAMES), st.integers(0, 3), st.integers(1, 30), st.integers(1, 30))
def test_the_nearest_sharding_divides_and_is_the_finest(names, split, first, second):
    spec = PartitionSpec(tuple(names[:split]) or None, tuple(names[split:]) or None)
    dense = NamedSharding(MESH, spec)
    slim = slim_sharding(dense, (first, second))
    for size, given_names, kept in zip((first, second), spec, slim.spec, strict=True):
        given_names, kept = given_names or (), kept or ()
        count = np.prod([MESH.shape[name] for name in kept], dtype=int)
        assert size % count == 0
        assert [name for name in given_names if name in kept] == list(kept)
        # By enumeration of all choices of axes.
        choices = [
            np.prod([MESH.shape[n] for i, n in enumerate(given_names) if bits >> i & 1], dtype=int)
            for bits in range(2 ** len(given_names))
        ]
        assert count == max(each for each in choices if size % each == 0)
    assert slim.mesh is dense.mesh
    assert (slim is dense) == (slim.spec == dense.spec)


def test_shards_of_other_processes_are_refused():
    """A value of which only the first half is at hand, as on one of two hosts."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "d")
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    half = SimpleNamespace(index=(slice(0, 2),), data=jnp.zeros(2))
    value = SimpleNamespace(
        shape=(4,),
        dtype=np.dtype("float32"),
        addressable_shards=[half],
    )
    assert _cut_shards(value, sharding, [np.array([0, 1])]).shape == (2,)
    with pytest.raises(ValueError, match=r"shape \(4,\) lies on devices of several processes.*jit"):
        _cut_shards(value, sharding, [np.array([0, 3])])


EIGHT = """
import jax, numpy as np, optax
import jax.numpy as jnp
from jax._src.array import ArrayImpl
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from rlprune_jax import compact, gated, respecialise, trace_graph
from rlprune_jax.graph.cutting import cut

assert len(jax.devices()) == 8
WIDTH = 512
SPECS = {
    "a": P(None, "model"),              # divided along the units
    "b": P("model", "data"),            # along both
    "c": P(("data", "model"), None),    # by both mesh axes
    "d": P("data", None),               # the units whole, copies along model
    "bias": P(),                        # a copy on every device
}

def apply(variables, x):
    for name in "abc":
        x = jax.nn.relu(x @ variables[name].astype(jnp.float32))
    return (x + variables["bias"]) @ variables["d"]

def dense(mesh):
    generator = np.random.default_rng(0)
    host = {name: generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in "abcd"}
    host["bias"] = generator.standard_normal(WIDTH).astype(np.float32)
    host["b"] = host["b"].astype(jnp.bfloat16)
    host["c"] = host["c"].astype(jnp.float8_e4m3fn)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    return host, {name: jax.device_put(host[name], shardings[name]) for name in host}

def gates_of(graph, count):
    order = np.random.default_rng(1).permutation(WIDTH)
    return {name: np.asarray(order < count, np.float32) for name in graph.names}

gathered = ArrayImpl._value

def refuse(array):
    assert len(array.sharding.device_set) == 1 or array.is_fully_replicated, "gathered on the host"
    return gathered.fget(array)

put = jax.device_put

def record(array, where):
    assert len(where.device_set) == 1
    sent.append(array.nbytes)
    return put(array, where)

def bytes_of_devices():
    # An array and its shards taken apart have the same buffers.
    held = {
        (shard.device, shard.data.unsafe_buffer_pointer()): shard.data.nbytes
        for array in jax.live_arrays()
        for shard in array.addressable_shards
    }
    return {
        each: sum(size for (device, _), size in held.items() if device == each)
        for each in jax.devices()
    }

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    host, variables = dense(mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    graph = trace_graph(apply, shapes, jax.ShapeDtypeStruct((2, WIDTH), jnp.float32))
    state = jax.tree.map(
        lambda leaf: leaf + 1 if leaf.ndim else leaf, optax.adam(1e-3).init(variables)
    )
    assert state[0].mu["b"].sharding.is_equivalent_to(variables["b"].sharding, 2)
    for count in (256, 252, 255):
        gates = gates_of(graph, count)
        slim = slim_state = None
        before = bytes_of_devices()
        sent = []
        ArrayImpl._value, jax.device_put = property(refuse), record
        with jax.transfer_guard_device_to_device("disallow"):
            slim, slim_state = compact(graph, variables, gates, opt_state=state)
        ArrayImpl._value, jax.device_put = gathered, put
        full = WIDTH * WIDTH * 4
        # Nothing is left on a device but its shards of what is slim.
        after = bytes_of_devices()
        cut_leaves = [leaf for leaf in jax.tree.leaves((slim, slim_state)) if leaf.ndim]
        shards = sum(leaf.addressable_shards[0].data.nbytes for leaf in cut_leaves)
        assert max(after[each] - before[each] for each in after) <= shards
        assert count % 8 or max(sent) <= full / 4, max(sent)
        kept = {name: np.flatnonzero(gates[name]) for name in graph.names}
        wanted = {
            "a": host["a"][:, kept["a"]],
            "b": host["b"][np.ix_(kept["a"], kept["b"])],
            "c": host["c"][np.ix_(kept["b"], kept["c"])],
            "d": host["d"][kept["c"]],
            "bias": host["bias"][kept["c"]],
        }
        for name, array in wanted.items():
            for offset, leaf in enumerate([slim[name], slim_state[0].mu[name]]):
                assert leaf.dtype == array.dtype
                got = np.asarray(leaf).astype(np.float32)
                # Moments start from 0, plus the 1 from above.
                np.testing.assert_array_equal(got, 1 + 0 * got if offset else array.astype("f4"))
                if count == 256:
                    source = state[0].mu[name] if offset else variables[name]
                    assert leaf.sharding == source.sharding, name
                assert leaf.sharding.mesh == mesh and leaf.committed
                largest = max(shard.data.size for shard in leaf.addressable_shards)
                assert largest == np.prod(leaf.sharding.shard_shape(leaf.shape))
        specs = {name: slim[name].sharding.spec for name in slim}
        assert specs == {
            256: SPECS,
            252: SPECS | {"c": P("model", None)},
            255: SPECS | {"a": P(None, None), "b": P(None, None), "c": P(None, None),
                          "d": P(None, None)},
        }[count], specs
        assert slim_state[0].count is state[0].count
    if kind == AxisType.Auto:
        x = jnp.ones((2, WIDTH))
        jitted = jax.jit(lambda variables: compact(graph, variables, gates))(variables)
        for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(slim)):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        thin = jax.jit(respecialise(apply, graph, gates))(slim, x)
        masked = jax.jit(gated(apply, graph))(variables, gates, x)
        np.testing.assert_allclose(thin, masked, rtol=1e-4, atol=1e-2)

# What is committed to one device stays there, in whatever memory.
there = jax.device_put(jnp.arange(6.0), jax.devices()[3])
slim = cut(there, (np.arange(6) > 2,))
assert slim.devices() == {jax.devices()[3]} and slim.committed and slim.tolist() == [3, 4, 5]
assert not cut(jnp.arange(6.0), (np.arange(6) > 2,)).committed
# Histories have axes of their own in front, which may be divided too.
history = jax.device_put(np.arange(48.0).reshape(8, 6), NamedSharding(mesh, P("data")))
slim = cut(history, (np.ones(1, bool), np.arange(6) % 2 == 0))
assert slim.sharding.spec == P("data")
np.testing.assert_array_equal(slim, np.arange(48).reshape(8, 6)[:, ::2])
pinned = NamedSharding(mesh, P("data"), memory_kind="pinned_host")
slim = cut(jax.device_put(np.arange(8.0), pinned), (np.arange(8) > 3,))
assert slim.sharding == pinned and slim.tolist() == [4, 5, 6, 7]
"""


def test_sharded_arrays_are_cut_shard_by_shard():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
