import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.kept import is_kept, rank


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_a_unit_is_kept_from_one_half(module):
    gates = module.asarray([1.0, 0.5, np.nextafter(np.float32(0.5), 0), 0.3, 0.0, np.nan])
    found = is_kept(gates.astype(np.float32))
    assert isinstance(found, np.ndarray if module is np else jax.Array)
    assert found.tolist() == [True, True, False, False, False, False]
    assert is_kept(module.asarray([True, False])).tolist() == [True, False]


VALUES = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])


@given(st.lists(VALUES, min_size=1, max_size=12))
def test_ranks_are_those_of_sorted_pairs(values):
    # Python's own sort of (NaN last, falling value, index) is the oracle.
    order = sorted(
        range(len(values)), key=lambda i: (np.isnan(values[i]), -np.nan_to_num(values[i]), i)
    )
    if np.isinf(values).any():
        order = sorted(
            range(len(values)),
            key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else -values[i], i),
        )
    expected = np.empty(len(values), int)
    expected[order] = np.arange(len(values))
    row = np.asarray(values, np.float32)
    np.testing.assert_array_equal(rank(row), expected)
    np.testing.assert_array_equal(rank(jnp.asarray(row)), expected)


def test_whole_numbers_and_booleans_rank_too():
    least = np.iinfo(np.int32).min
    for values in (np.array([[0, least, 7], [2, 2, 1]], np.int32),):
        np.testing.assert_array_equal(rank(values), [[1, 2, 0], [0, 1, 2]])
        np.testing.assert_array_equal(jax.jit(rank)(values), [[1, 2, 0], [0, 1, 2]])
    assert rank(np.array([False, True, True])).tolist() == [2, 0, 1]
    assert rank(np.array([3, 200, 3], np.uint8)).tolist() == [1, 0, 2]
