"""Rearrangements of pixels that several forms of the convolution use."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rlprune_jax.models.convolution._geometry import Padding, Pair


def pad(array: jax.Array, padding: Padding) -> jax.Array:
    """Pad the spatial axes of f[B,H,W,C] with zeros.

    A negative padding crops.
    """
    zero = jnp.zeros((), array.dtype)
    (top, bottom), (left, right) = padding
    return lax.pad(array, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def place(part: jax.Array, writes: tuple[slice, slice], size: Pair) -> jax.Array:
    """Put a part into zeros of the given spatial size."""
    rows, columns = writes
    return pad(part, ((rows.start, size[0] - rows.stop), (columns.start, size[1] - columns.stop)))


def interleave(grid: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Weave a grid of images into one, pixel by pixel.

    ``grid[h][w]`` f[B,H,W,C] become f[B, H*rows, W*columns, C], with pixel (y, x) of ``[h][w]`` at
    (y*rows + h, x*columns + w).
    """
    batch, height, width, channels = grid[0][0].shape
    rows = [jnp.stack(row, axis=3) for row in grid]
    woven = jnp.stack(rows, axis=2)
    return woven.reshape(batch, height * len(grid), width * len(grid[0]), channels)
