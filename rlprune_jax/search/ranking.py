"""Select the units of highest priority without a sort.

Exactly, ties by index.

XLA sorts on a CPU one comparison at a time, some 60 ns an element; a threshold that is found bit
by bit costs a few vectorised passes. Priorities are compared as unsigned integers in the order of
the floats, so what is found is exact.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Enough(Protocol):
    """Say of integers whether they are large enough."""

    def __call__(self, trial: jax.Array, /) -> jax.Array:
        """Return bool[shape] of u32[shape]."""


class Fits(Protocol):
    """Say whether a set of entries is small enough."""

    def __call__(self, taken: jax.Array, /) -> jax.Array:
        """Return bool[] of bool[...]."""


def order_keys(priorities: jax.Array) -> jax.Array:
    """Return unsigned integers in the order of priorities.

    f32[...] becomes u32[...], -inf above 0, NaN with -inf, -0 as 0.
    """
    priorities = jnp.where(jnp.isnan(priorities), -jnp.inf, priorities.astype(jnp.float32))
    bits = jax.lax.bitcast_convert_type(priorities, jnp.uint32)
    sign = np.uint32(1 << 31)
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def least_true(test: Enough, bits: int, shape: tuple = ()) -> jax.Array:
    """Find the least integer for which a test holds.

    u32[shape], all ones where none does.

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
    """Select the ``count`` largest of every row.

    The first among equals. Use it instead of a sort, which is slow on a CPU.

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
    fits: Fits,
) -> jax.Array:
    """Take entries by falling priority while a test holds.

    The first among equals.

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
