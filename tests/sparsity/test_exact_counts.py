import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.sparsity.exact_counts import floor_near, floor_product

PRODUCT = jax.jit(floor_product)


@given(st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_a_python_number_means_its_decimal(count, percent):
    exact = fractions.Fraction(percent, 100) * count
    found = int(floor_product(jnp.asarray(count, jnp.int32), percent / 100))
    # 32 binary places hold what the fractional part leaves below one.
    assert found == math.floor(exact) or (found == math.ceil(exact) and 1 - exact % 1 < 0.51)
    if count < 40_000_000:
        assert found == math.floor(exact)


@given(st.integers(0, 3_000_000), st.integers(0, 10))
def test_a_traced_float32_means_its_decimal(count, tenths):
    found = int(PRODUCT(jnp.asarray(count), jnp.asarray(tenths / 10, jnp.float32)))
    assert found == tenths * count // 10


def test_float32_arithmetic_would_be_wrong():
    """The off-by-one of the released code, counted over all pairs as in the reference file."""
    d = np.arange(1, 2001)
    for m in (1, 6, 333):
        share = jnp.asarray(np.clip(1 - m / d, 0, 1), jnp.float32)
        found = PRODUCT(jnp.asarray(d, jnp.int32), share)
        np.testing.assert_array_equal(found, np.maximum(d - m, 0))


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_nothing_and_everything(ratio):
    for count in (0, 1, 2**31 - 1):
        expected = int(ratio) * count
        assert int(floor_product(jnp.asarray(count, jnp.int32), ratio)) == expected
        assert int(PRODUCT(jnp.asarray(count), jnp.asarray(ratio))) == expected


def test_with_64_bits():
    with jax.enable_x64(True):
        count = jnp.asarray(10**12 + 7, jnp.int64)
        assert int(floor_product(count, 0.5)) == (10**12 + 7) // 2
        assert int(floor_product(jnp.asarray(10, jnp.int32), jnp.asarray(0.9))) == 9


def test_floor_near_forgives_rounding_only():
    values = jnp.array([2.9999998, 2.99, 3.0, 0.0])
    assert floor_near(values).tolist() == [3.0, 2.0, 3.0, 0.0]
