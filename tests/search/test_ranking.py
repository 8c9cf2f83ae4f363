"""Units by priority without a sort, against NumPy's stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune_jax.search.ranking import fill_while, largest, least_true, order_keys

LARGEST = jax.jit(largest)
FILL = jax.jit(
    lambda priorities, live, protected, weights, limit: fill_while(
        priorities, live, protected, lambda kept: jnp.sum(kept * weights) <= limit
    )
)
SPECIAL = [-np.inf, -1.5, -0.0, 0.0, 1e-40, 2.0, np.inf, np.nan]


def ranked(priorities):
    """Indices by falling priority, NaN as -inf, the first among equals first."""
    clean = np.where(np.isnan(priorities), -np.inf, priorities)
    return np.argsort(-clean, kind="stable")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values=st.lists(st.sampled_from(SPECIAL), min_size=9, max_size=9), count=st.integers(0, 9))
def test_exactly_the_largest_are_taken_with_ties_by_index(values, count):
    priorities = np.asarray(values, np.float32)
    priorities[np.abs(priorities) == np.float32(1e-40)] = 0.0  # XLA may flush subnormal numbers
    expected = np.zeros(9, bool)
    expected[ranked(priorities)[:count]] = True
    np.testing.assert_array_equal(LARGEST(priorities, count), expected)


def test_rows_have_counts_of_their_own():
    priorities = jax.random.normal(jax.random.key(0), (3, 5, 40))
    counts = jnp.array([0, 7, 40, 1, 39])
    taken = largest(priorities, counts)
    np.testing.assert_array_equal(taken.sum(-1), jnp.broadcast_to(counts, (3, 5)))
    alone = jax.vmap(jax.vmap(largest), (0, None))(priorities, counts)
    np.testing.assert_array_equal(taken, alone)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 3, 1000]), limit=st.floats(0, 12))
def test_filling_stops_at_the_first_that_does_not_fit(seed, levels, limit):
    draw = np.random.default_rng(seed)
    priorities = draw.integers(0, levels, 12).astype(np.float32)
    live = draw.random(12) < 0.8
    protected = live & (draw.random(12) < 0.2)
    weights = draw.integers(1, 4, 12).astype(np.float32) / 2
    expected = protected.copy()
    for index in ranked(priorities):
        if live[index] and not protected[index]:
            tried = expected.copy()
            tried[index] = True
            if (tried * weights).sum() > limit:
                break
            expected = tried
    np.testing.assert_array_equal(FILL(priorities, live, protected, weights, limit), expected)


@pytest.mark.parametrize(("bits", "first"), [(1, 0), (1, 1), (4, 0), (4, 11), (4, 15), (32, 2**31)])
def test_the_least_integer_that_passes(bits, first):
    assert int(least_true(lambda value: value >= np.uint32(first), bits)) == first


def test_no_integer_passes():
    assert int(least_true(lambda value: value < 0, 32)) == 2**32 - 1


def test_keys_are_in_the_order_of_the_floats():
    values = jnp.array([-jnp.inf, -3.0, -1e-3, 0.0, 1e-3, 3.0, jnp.inf])
    keys = np.asarray(order_keys(values)).astype(np.int64)
    assert (np.diff(keys) > 0).all()
    assert int(order_keys(jnp.float32(-0.0))) == int(order_keys(jnp.float32(0.0)))
    assert int(order_keys(jnp.float32(jnp.nan))) == keys[0] > 0
