"""Take a fraction of a number of weights exactly.

float32 has 24 bits, too few for the product of a fraction and a count of millions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_ONE = 2.0**32


def floor_product(count: jax.Array, ratio: ArrayLike) -> jax.Array:
    """Return ``floor(count * ratio)``, ``ratio`` read as a decimal number.

    Use it wherever a fraction of the weights is to go, since the nearest float is not the number
    that was meant. 0.9 of 10 is 9, though the nearest float32 to 0.9 is below it. A Python number
    is taken to 32 binary places, rounded up; a float32 as the greatest number that rounds to it, so
    that a product within 6e-8 of ``count`` below an integer counts as that integer.

    Args:
        count: integers, not negative.
        ratio: from 0 to 1, a Python number, or an array or tracer that broadcasts to ``count``.

    Returns:
        Integers of the type of ``count``, from 0 to ``count``.

    Example:
        >>> import jax.numpy as jnp
        >>> ten = jnp.array(10)
        >>> int(floor_product(ten, 0.9)), int(floor_product(ten, jnp.array(0.9)))
        (9, 9)
    """
    if jnp.iinfo(count.dtype).bits > 32:
        # There are 64-bit types, so there are 64-bit floats.
        product = count.astype(jnp.float64) * jnp.asarray(ratio, jnp.float64)
        return jnp.clip(floor_near(product).astype(count.dtype), 0, count)
    whole: ArrayLike
    fixed: ArrayLike
    if isinstance(ratio, int | float):
        known = math.ceil(min(max(ratio, 0.0), 1.0) * _ONE)
        whole, fixed = known >= _ONE, np.uint32(min(known, int(_ONE) - 1))
    elif jnp.result_type(ratio) == jnp.float64:
        scaled = jnp.ceil(jnp.clip(ratio, 0.0, 1.0) * _ONE)
        whole, fixed = scaled >= _ONE, jnp.minimum(scaled, _ONE - 1).astype(jnp.uint32)
    else:
        ratio = jnp.asarray(ratio, jnp.float32)
        fixed = (jnp.clip(ratio, 0.0, 1 - 2**-24) * _ONE).astype(jnp.uint32)
        # Half a unit in the last place of the 24 bits; nothing of nothing is nothing.
        fixed = jnp.where(ratio > 0, fixed + (fixed >> 24) + 1, np.uint32(0))
        whole = ratio >= 1
    product = _high_word(count.astype(jnp.uint32), fixed).astype(count.dtype)
    return jnp.where(whole, count, product)


def floor_near(values: jax.Array) -> jax.Array:
    """Round floats down, forgiving what rounding alone took off.

    A number that lies below an integer by no more than 8 units in its last place counts as it.

    Example:
        >>> import jax.numpy as jnp
        >>> floor_near(jnp.array([2.9999998, 2.9])).tolist()
        [3.0, 2.0]
    """
    noise = 8 * jnp.finfo(values.dtype).eps
    return jnp.floor(values + jnp.abs(values) * noise)


def _high_word(a: ArrayLike, b: ArrayLike) -> jax.Array:
    """Return the upper 32 of the 64 bits of a product of uint32."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    low, mask = np.uint32(16), np.uint32(0xFFFF)
    a_high, a_low, b_high, b_low = a >> low, a & mask, b >> low, b & mask
    middle = a_high * b_low + ((a_low * b_low) >> low)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> low) + (other >> low)
