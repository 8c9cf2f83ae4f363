"""Winograd's form of a 3x3 convolution of stride 1.

F(2x2, 3x3) takes 16 products for every 2x2 outputs, where 36 are usual.
Lavin and Gray (2015), https://arxiv.org/abs/1509.09308. All constants are 0, 1/2 and 1, and the
float32 error was measured equal to that of the plain sum over the kernel's pixels: 1e-5 of the
output's spread.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rlprune_jax.models.convolution._geometry import Geometry
from rlprune_jax.models.convolution._pixels import interleave, pad

# Winograd's F(2x2, 3x3) along one axis: which of the four input pixels of a tile, which of its two
# outputs, and with what sign, make up each of the four products.
_TILE_INPUTS = ({0: 1, 2: -1}, {1: 1, 2: 1}, {1: -1, 2: 1}, {1: 1, 3: -1})
_TILE_OUTPUTS = ({0: 1, 1: 1, 2: 1}, {1: 1, 2: -1, 3: -1})
_TILE_COTANGENTS = ({0: 1}, {0: 1, 1: 1}, {0: 1, 1: -1}, {1: -1})
_KERNEL_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def convolution(
    lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    """Convolve lhs f[B,H,W,C] with rhs f[3,3,C,O] to f[B,H',W',O]."""
    height, width = geometry.output_size
    padded = _pad_to_tiles(lhs, geometry)
    pixels = [
        [padded[:, h : h + height + height % 2 - 1 : 2, w : w + width + width % 2 - 1 : 2]
         for w in range(4)]
        for h in range(4)
    ]  # fmt: skip
    transform = jnp.asarray(_KERNEL_TRANSFORM, rhs.dtype)
    kernels = jnp.einsum("ui,vj,ijco->uvco", transform, transform, rhs)
    products = [
        [
            lax.dot_general(
                _combine(_TILE_INPUTS[u], _TILE_INPUTS[v], pixels),
                kernels[u, v],
                (((3,), (0,)), ((), ())),
                precision=precision,
            )
            for v in range(4)
        ]
        for u in range(4)
    ]
    outputs = [
        [_combine(_TILE_OUTPUTS[h], _TILE_OUTPUTS[w], products) for w in range(2)] for h in range(2)
    ]
    return interleave(outputs)[:, :height, :width]


def kernel_gradient(
    lhs: jax.Array, cotangent: jax.Array, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    """Transpose of `convolution` in its kernel.

    Here the 16 products are one batched matmul, which is as fast and compiles twice as fast.
    """
    height, width = geometry.output_size
    even = pad(cotangent, ((0, height % 2), (0, width % 2)))
    corners = _transform(_TILE_COTANGENTS, even, (height + 1) // 2, (width + 1) // 2)
    pixels = _transform(_TILE_INPUTS, _pad_to_tiles(lhs, geometry), *corners.shape[3:5])
    products = lax.dot_general(
        pixels.reshape(16, -1, lhs.shape[-1]),
        corners.reshape(16, -1, cotangent.shape[-1]),
        (((1,), (1,)), ((0,), (0,))),
        precision=precision,
    ).reshape(4, 4, lhs.shape[-1], cotangent.shape[-1])
    transform = jnp.asarray(_KERNEL_TRANSFORM, lhs.dtype)
    return jnp.einsum("ui,vj,vuco->ijco", transform, transform, products)


def _transform(
    table: Sequence[dict[int, int]], array: jax.Array, high: int, wide: int
) -> jax.Array:
    """Transform all tiles of f[B,H,W,C], rows and then columns, to f[4,4,B,high,wide,C]."""
    rows = [array[:, h : h + 2 * high - 1 : 2] for h in range(array.shape[1] - 2 * high + 2)]
    half = jnp.stack([_combine(terms, {0: 1}, [[row] for row in rows]) for terms in table])
    columns = [half[..., w : w + 2 * wide - 1 : 2, :] for w in range(array.shape[2] - 2 * wide + 2)]
    return jnp.stack([_combine({0: 1}, terms, [columns]) for terms in table])


def _pad_to_tiles(lhs: jax.Array, geometry: Geometry) -> jax.Array:
    """Pad the image to whole tiles: two rows and columns more than twice the number of tiles."""
    (top, _), (left, _) = geometry.padding
    bottom, right = (
        2 * -(-outputs // 2) + 2 - inputs - low
        for outputs, inputs, low in zip(
            geometry.output_size, geometry.input_size, (top, left), strict=True
        )
    )
    return pad(lhs, ((top, bottom), (left, right)))


def _combine(
    rows: dict[int, int], columns: dict[int, int], grid: Sequence[Sequence[jax.Array]]
) -> jax.Array:
    """Sum grid[h][w] * rows[h] * columns[w] by additions and subtractions alone."""
    total: jax.Array | None = None
    for h, row_sign in rows.items():
        for w, column_sign in columns.items():
            positive = row_sign * column_sign > 0
            if total is None:
                total = grid[h][w] if positive else -grid[h][w]
            else:
                total = total + grid[h][w] if positive else total - grid[h][w]
    assert total is not None  # every row of the tables has a term
    return total
