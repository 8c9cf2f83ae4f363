"""The units of highest priority, exactly, ties by index, without a sort.

XLA sorts on a CPU one comparison at a time, some 60 ns an element; a threshold that is found bit
by bit costs a few vectorised passes. Priorities are compared as unsigned integers in the order of
the floats, so what is found is exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

HIGHEST = np.uint32(0xFFFFFFFF)


def order_keys(priorities: jax.Array) -> jax.Array:
    """Unsigned integers in the order of f32 priorities: -inf above 0, NaN with -inf, -0 as 0."""
    priorities = jnp.where(jnp.isnan(priorities), -jnp.inf, priorities.astype(jnp.float32))
    bits = jax.lax.bitcast_convert_type(priorities, jnp.uint32)
    sign = np.uint32(1 << 31)
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def least_true(test: Callable[[jax.Array], jax.Array], bits: int, shape: tuple = ()) -> jax.Array:
    """The least integer u32[shape] for which a test that stays true holds; all ones if none does.

    Args:
        test: ``u32[shape] -> bool[shape]``, false below some integer and true from there on.
        bits: the integer is below ``2**bits``.
        shape: of the integers that are looked for side by side.
    """

    def narrow(step: jax.Array, found: jax.Array) -> jax.Array:
        trial = found + (jnp.uint32(1) << (jnp.uint32(bits - 1) - jnp.asarray(step, jnp.uint32)))
        return jnp.where(test(trial - 1), found, trial)

    return jax.lax.fori_loop(0, bits, narrow, jnp.zeros(shape, jnp.uint32))


def largest(priorities: jax.Array, count: ArrayLike) -> jax.Array:
    """Exactly the ``count`` largest of every row, the first among equals.

    Args:
        priorities: f32[..., C]; NaN counts as -inf.
        count: i32[...] from 0 to C, or one that broadcasts to it.

    Returns:
        bool[..., C].

    Example:
        >>> import jax.numpy as jnp
        >>> largest(jnp.array([2.0, 3.0, 2.0, 1.0]), 2).tolist()
        [True, True, False, False]
    """
    keys = order_keys(priorities)
    count = jnp.broadcast_to(jnp.asarray(count, jnp.int32), keys.shape[:-1])

    def fits(limit: jax.Array) -> jax.Array:
        return jnp.sum(keys > limit[..., None], -1, dtype=jnp.int32) <= count

    limit = least_true(fits, 32, count.shape)[..., None]
    above, ties = keys > limit, keys == limit
    left = count[..., None] - above.sum(-1, keepdims=True, dtype=jnp.int32)
    return above | (ties & (jnp.cumsum(ties, -1) <= left))


def fill_while(
    priorities: jax.Array,
    live: jax.Array,
    protected: jax.Array,
    fits: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Take entries by falling priority, the first among equals, for as long as a test holds.

    Args:
        priorities: f32[...].
        live: bool[...], the entries there are.
        protected: bool[...], those that are taken whatever the test says.
        fits: ``bool[...] -> bool[]``, true of few entries and false of too many.

    Returns:
        bool[...]: one entry more would not fit.
    """
    keys = jnp.where(live, order_keys(priorities), 0)
    free = live & ~protected
    limit = least_true(lambda limit: fits(protected | (free & (keys > limit))), 32)
    above = protected | (free & (keys > limit))
    ties = free & (keys == limit)
    place = (jnp.cumsum(ties.reshape(-1)).reshape(ties.shape) - 1).astype(jnp.uint32)
    bits = max(1, int(np.ceil(np.log2(ties.size + 1))))
    # The least number of ties that is one too many, or as many as there could be.
    number = least_true(lambda last: ~fits(above | (ties & (place <= last))), bits)
    return above | (ties & (place < number))
