import contextlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.sparsity import make_mask, sap, scopes, selection
from rlprune_jax.sparsity.selection import drop_smallest

# What CPU and other backends find in one pass.
METHODS = (2, 4)


@contextlib.contextmanager
def bits_a_pass(bits):
    before = selection._DIGIT_BITS.copy()
    selection._DIGIT_BITS[jax.default_backend()] = bits
    try:
        yield
    finally:
        selection._DIGIT_BITS.update(before)


def drop(scores, mask, count, bits, **options):
    with bits_a_pass(bits):
        return drop_smallest(scores, mask, count, **options)


def oracle(scores, alive, count):
    """Stable NumPy sort of the flat scores: NaN last, -0 equal to 0, ties by index."""
    scores, alive = np.asarray(scores, np.float64).reshape(-1), np.asarray(alive).reshape(-1)
    scores = np.where(scores == 0, 0.0, scores)
    places = np.flatnonzero(alive)
    order = places[np.argsort(scores[places], kind="stable")]
    kept = alive.copy()
    kept[order[:count]] = False
    return kept


SHAPES = {"a": (3, 2, 4), "b": (5,), "c": (2, 6)}


def tree_of(values, dtype):
    tree, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        tree[name] = jnp.asarray(np.reshape(values[start : start + size], shape), dtype)
        start += size
    return tree


SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
# Few distinct values, so that ties are the rule.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, -2.0, 0.5, 3e38, -np.inf, np.inf, np.nan, 1e-20])


@given(
    st.lists(VALUES, min_size=SIZE, max_size=SIZE),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    st.floats(0, 1),
    st.sampled_from(METHODS),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_global_is_the_stable_sort(values, alive, share, method, dtype):
    scores, mask = tree_of(values, dtype), tree_of(alive, bool)
    if not any(alive):
        mask["b"] = mask["b"].at[0].set(True)
    flat = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in mask.values()])
    count = int(share * flat.sum())
    flat_scores = np.concatenate(
        [np.asarray(leaf, np.float32).reshape(-1) for leaf in scores.values()]
    )
    dropped = _drop(scores, mask, count, "global", method)
    found = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in dropped.values()])
    np.testing.assert_array_equal(found, oracle(flat_scores, flat, count))


def _drop(scores, mask, count, scope, method):
    return JITTED[scope, method](scores, mask, count)


JITTED = {
    (scope, method): jax.jit(
        lambda scores, mask, count, scope=scope, method=method: drop(
            scores, mask, count, method, scope=scope
        )
    )
    for scope in ("global", "layer", "neuron")
    for method in METHODS
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_layer_and_neuron_are_sorts_of_their_own(method, seed):
    rng = np.random.default_rng(seed)
    scores = tree_of(rng.integers(-3, 4, SIZE).astype(float), "float32")
    mask = tree_of(rng.random(SIZE) < 0.8, bool)
    live = {name: int(leaf.sum()) for name, leaf in mask.items()}
    counts = {name: int(rng.integers(0, n + 1)) for name, n in live.items()}
    found = _drop(scores, mask, counts, "layer", method)
    for name, leaf in found.items():
        expected = oracle(scores[name], mask[name], counts[name])
        np.testing.assert_array_equal(np.asarray(leaf).reshape(-1), expected)

    counts = {
        name: jnp.asarray(rng.integers(0, np.asarray(leaf).sum(tuple(range(leaf.ndim - 1))) + 1))
        for name, leaf in mask.items()
    }
    found = _drop(scores, mask, counts, "neuron", method)
    for name, leaf in found.items():
        for unit in range(leaf.shape[-1]):
            expected = oracle(scores[name][..., unit], mask[name][..., unit], counts[name][unit])
            np.testing.assert_array_equal(np.asarray(leaf[..., unit]).reshape(-1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_many_weights_of_a_real_distribution(method):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50_000).astype(np.float32)
    mask = rng.random(50_000) < 0.7
    for count in (0, 1, 777, int(mask.sum()) - 1, int(mask.sum())):
        found = _drop(jnp.abs(values), jnp.asarray(mask), count, "global", method)
        np.testing.assert_array_equal(found, oracle(np.abs(values), mask, count))


def test_subnormal_scores_and_adjacent_floats_are_told_apart():
    values = np.array([3, 1, 2, 0], np.uint32).view(np.float32)
    adjacent = np.nextafter(np.float32(1), np.float32(2), dtype=np.float32)
    for scores, first in ((values, 3), (np.array([adjacent, 1.0], np.float32), 1)):
        for method in METHODS:
            kept = drop(jnp.asarray(scores), jnp.ones(len(scores), bool), 1, method)
            assert np.flatnonzero(~np.asarray(kept)).tolist() == [first]


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_traced_and_vmapped_without_tracing_again(method):
    scores = jnp.asarray([4.0, 1.0, 3.0, 2.0])
    mask = jnp.ones(4, bool)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def many(counts):
        return jax.vmap(lambda k: drop(scores, mask, k, method))(counts)

    kept = many(jnp.arange(6) - 1)
    # Traced counts are clipped to what is there: -1 drops none, 5 and more all.
    assert kept.sum(1).tolist() == [4, 4, 3, 2, 1, 0]
    many(jnp.arange(6))


def test_float16_and_mixed_types_compare_by_value():
    scores = {"a": jnp.asarray([1.0, 3.0], jnp.float16), "b": jnp.asarray([2.0, 0.5], jnp.bfloat16)}
    mask = {"a": jnp.ones(2, bool), "b": jnp.ones(2, bool)}
    kept = drop_smallest(scores, mask, 2)
    assert kept["a"].tolist() == [False, True] and kept["b"].tolist() == [True, False]


def test_float64_is_compared_in_full():
    with jax.enable_x64(True):
        scores = jnp.asarray([1.0 + 1e-12, 1.0], jnp.float64)
        for method in METHODS:
            kept = drop(scores, jnp.ones(2, bool), 1, method)
            assert kept.tolist() == [True, False]


def test_ties_may_be_spared():
    scores = jnp.asarray([1.0, 1.0, 1.0, 2.0, 0.5])
    mask = jnp.ones(5, bool)
    for method in METHODS:
        for count, left in ((0, 5), (1, 4), (2, 4), (3, 4), (4, 1)):
            kept = drop(scores, mask, count, method, ties="keep")
            assert int(kept.sum()) == left


def test_units_may_lie_on_any_axis():
    scores = jnp.asarray([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]])
    mask = jnp.ones((2, 3), bool)
    kept = drop_smallest(
        {"w": scores}, {"w": mask}, {"w": jnp.array([1, 2])}, scope="neuron", unit_axis=0
    )["w"]
    assert kept.tolist() == [[False, True, True], [True, False, False]]


def test_bad_input():
    scores, mask = (
        {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
        {
            "w": jnp.ones((2, 2), bool),
            "b": jnp.array(True),
        },
    )
    with pytest.raises(ValueError, match="count=5 must be from 0 to the 4 live weights"):
        drop_smallest(scores, mask, 5)
    with pytest.raises(ValueError, match="count=-1 must be"):
        drop_smallest(scores, mask, -1)
    with pytest.raises(ValueError, match="count=3 at 'w' must be from 0 to the 2 live"):
        drop_smallest(scores, mask, {"w": jnp.array([1, 3])}, scope="neuron")
    with pytest.raises(ValueError, match="dict with the paths"):
        drop_smallest(scores, mask, 1, scope="layer")
    with pytest.raises(ValueError, match="scope='row' is unknown"):
        drop_smallest(scores, mask, 1, scope="row")
    with pytest.raises(TypeError, match="count is float32"):
        drop_smallest(scores, mask, 1.0)
    with pytest.raises(TypeError, match="scores at 'w' are int32"):
        drop_smallest({**scores, "w": jnp.ones((2, 2), jnp.int32)}, mask, 1)
    with pytest.raises(ValueError, match="no prunable leaf"):
        drop_smallest(scores, {"w": jnp.array(True), "b": jnp.array(True)}, 1)
    with pytest.raises(ValueError, match="not congruent to params: it lacks the leaf 'w'"):
        drop_smallest(scores, {"b": jnp.array(True)}, 1)
    with pytest.raises(ValueError, match="ties='some' is unknown"):
        drop_smallest(scores, mask, 1, ties="some")
    with pytest.raises(ValueError, match=r"count=\{'w': 1\} must be an integer for scope='global'"):
        drop_smallest(scores, mask, {"w": 1})


def test_small_leaves_together_and_large_ones_alone_are_the_stable_sort(monkeypatch):
    monkeypatch.setattr(scopes, "BUNDLED", {jax.default_backend(): 12})
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, SIZE + 7).astype(np.float32)
    # A large leaf between small ones, so that ties have to pass through it in order.
    scores = {"0": jnp.asarray(values[:7]), **tree_of(values[7:], "float32")}
    scores = {"0": scores["0"], "1": scores["b"], "2": scores["a"], "3": scores["c"]}
    alive = {name: jnp.asarray(rng.random(leaf.shape) < 0.8) for name, leaf in scores.items()}
    assert list(scopes.bundle(scores, "global").paths.values()) == [("0", "1"), ("2",), ("3",)]
    order = [np.concatenate([np.ravel(leaf) for leaf in tree.values()]) for tree in (scores, alive)]
    for count in (0, 5, int(order[1].sum())):
        found = drop_smallest(scores, alive, count)
        flat = np.concatenate([np.ravel(leaf) for leaf in found.values()])
        np.testing.assert_array_equal(flat, oracle(*order, count))
        found = drop_smallest(scores, alive, count, magnitudes=True)
        flat = np.concatenate([np.ravel(leaf) for leaf in found.values()])
        np.testing.assert_array_equal(flat, oracle(np.abs(order[0]), order[1], count))
    leaves = {name: jnp.ones(2) for name in "abc"}
    assert len(scopes.bundle(leaves, "layer").paths) == 3
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert len(scopes.bundle(leaves, "global").paths) == 3


def test_more_leaves_make_no_more_reductions():
    def reductions(leaves):
        params = {f"w{number}": jnp.ones((3, 4)) for number in range(leaves)}
        mask, pruner = make_mask(params), sap(p=0.5, q=1.0)
        program = jax.jit(pruner.update).lower(params, mask, pruner.init(params, mask))
        text = program.as_text()
        return text.count("stablehlo.reduce"), text.count("stablehlo.while")

    assert reductions(2) == reductions(9)


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from rlprune_jax.sparsity.selection import drop_smallest
mesh = jax.make_mesh((2,), ("weights",), axis_types=(jax.sharding.AxisType.Auto,))
place = lambda spec: jax.NamedSharding(mesh, jax.P(*spec))
rng = np.random.default_rng(0)
tree = {"a": rng.standard_normal((64, 32)), "b": rng.integers(0, 3, (16, 64))}
scores = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in tree.items()}
mask = {name: jnp.ones(leaf.shape, bool) for name, leaf in tree.items()}
shardings = {"a": place(("weights", None)), "b": place((None, "weights"))}
counts = {
    "global": 700,
    "layer": {"a": 500, "b": 333},
    "neuron": {"a": jnp.full(32, 9), "b": jnp.full(64, 5)},
}
for scope, count in counts.items():
    def select(scores, mask):
        return drop_smallest(scores, mask, count, scope=scope)
    expected = select(scores, mask)
    jitted = jax.jit(select, in_shardings=(shardings, shardings), out_shardings=shardings)
    found = jitted(jax.device_put(scores, shardings), jax.device_put(mask, shardings))
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    program = jitted.lower(scores, mask).compile().as_text()
    # What is exchanged: counts of one scope or of one row of units, nothing as large as a leaf.
    for line in program.splitlines():
        if any(f" {kind}(" in line for kind in ("all-gather", "all-to-all", "all-reduce")):
            sizes = re.findall(r"[a-z]+[0-9]*\\[([0-9,]*)\\]", line.split(" = ")[1].split("(%")[0])
            largest = max(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)
            assert largest <= 192, line
    assert "all-reduce" in program or "all-gather" in program
"""


@pytest.mark.slow
def test_sharded_leaves_exchange_counts_only():
    import os

    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
