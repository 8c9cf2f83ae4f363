"""Which entries of a row are kept, by a threshold or by their ranks."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)
"""An array of JAX or of NumPy; what is returned is of the same."""

KEPT_FROM = 0.5
"""A unit is kept where its gate is at least this."""


def is_kept(gates: Array) -> Array:
    """Return where gates keep their units.

    This is the one definition: whatever counts, lists, measures or cuts units asks it. A soft gate
    still multiplies what is read (``gated``); it counts as a whole unit or as none. NaN keeps
    nothing.

    Args:
        gates: f32[...], bool[...] or i32[...].

    Returns:
        bool[...].

    Example:
        >>> import jax.numpy as jnp
        >>> is_kept(jnp.array([1.0, 0.5, 0.3, 0.0])).tolist()
        [True, True, False, False]
    """
    return gates >= KEPT_FROM


def rank(values: Array) -> Array:
    """Return the places of values from the greatest down.

    Places are exact: each from 0 to C - 1 comes up once in a row, equal values take theirs by
    index, and NaN comes last. ``rank(values) < k`` are the ``k`` greatest.

    Args:
        values: f32[..., C], i32[..., C] or bool[..., C].

    Returns:
        i32[..., C].

    Example:
        >>> import numpy as np
        >>> rank(np.array([2.0, 3.0, np.nan, 2.0])).tolist()
        [1, 0, 3, 2]
    """
    # Of whole numbers the complement, as the least of them has no negative.
    falling = ~values if values.dtype.kind in "biu" else -values
    if isinstance(falling, np.ndarray):
        order = np.argsort(falling, axis=-1, kind="stable")
        return np.argsort(order, axis=-1).astype(np.int32)
    places = jnp.argsort(jnp.argsort(falling, axis=-1, stable=True), axis=-1)
    return places.astype(jnp.int32)
