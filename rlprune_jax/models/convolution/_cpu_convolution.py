"""Convolution and its two gradients, in forms that CPUs run fast.

XLA's own CPU convolution is good at one thing: the forward pass on maps of more than a few pixels.
Its gradients run 45 to 115 times slower inside a loop, and 2x2 maps 40 times slower. So everything
else here is slices, matrix products and sums. `form_of` picks by shape, when the program is
lowered; `benchmarks/bench_conv.py` measures the outcome.

- "taps": one matmul per kernel position, over only the pixels that position really reads (at 4x4,
  100 of 144; at 2x2, 16 of 36). Serves every kernel, stride, padding, dilation and group.
- "winograd": F(2x2, 3x3) of Lavin and Gray (2015, https://arxiv.org/abs/1509.09308), 16 products
  for every 2x2 outputs where 36 are usual: half the time of any other form where channels are
  many. All its constants are 0, 1/2 and 1, and its float32 error was measured equal to that of the
  sum over taps (1e-5 of the output's spread).
- "patches": all pixels under the kernel side by side, one matmul. For few input channels, whose
  own matmuls would be too thin; for kernels that tile the image (patch embedding); and, because it
  compiles ten times faster than the two above (0.1 s), wherever there is little work.
- "xla": XLA's convolution, forward only; compiles fast too.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rlprune_jax.models.convolution import _winograd
from rlprune_jax.models.convolution._geometry import (
    Geometry,
    Pair,
    count_products,
    flipped_geometry,
    list_taps,
    tiles_image,
)
from rlprune_jax.models.convolution._pixels import interleave, pad, place

_THIN_PATCH = 96  # up to this depth the forward patches beat XLA's convolution
_THICK_PATCH = 600  # up to this depth the kernel gradient's patches beat its taps
_SMALL_MAP = 16  # output pixels up to which XLA's convolution is the slower
_WORTH_COMPILING = 5e8  # floating-point operations that repay a second of compilation soon
_WINOGRAD_WORK = 0.75  # fraction of the taps' products above which the transforms eat the gain
_WINOGRAD_CHANNELS = 64  # thinner, the transforms of pixels eat the gain
_WINOGRAD_TILES = 128  # fewer, the transform of the kernel eats the gain


def convolution(
    lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: lax.PrecisionLike = None
) -> jax.Array:
    """Convolve lhs f[B,H,W,C] with rhs f[h,w,C/groups,O] to f[B,H',W',O].

    Raises: nothing; the primitives validate.
    """
    form = form_of(geometry, lhs.shape[0], (rhs.shape[2], rhs.shape[3]))
    if form == "patches":
        columns = _patches(lhs, geometry)
        return _product(columns, rhs.reshape(columns.shape[-1], -1), 1, precision)
    if form == "winograd":
        return _winograd.convolution(lhs, rhs, geometry, precision)
    if form == "xla":
        return lax.conv_general_dilated(
            lhs,
            rhs,
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=geometry.groups,
            precision=precision,
        )
    height, width = geometry.output_size
    total = jnp.zeros((), lhs.dtype)
    for tap in list_taps(geometry):
        part = _product(lhs[:, *tap.reads], rhs[tap.row, tap.column], geometry.groups, precision)
        total = total + place(part, tap.writes, (height, width))
    return jnp.broadcast_to(total, (lhs.shape[0], height, width, rhs.shape[-1]))


def input_gradient(
    cotangent: jax.Array, rhs: jax.Array, geometry: Geometry, precision: lax.PrecisionLike = None
) -> jax.Array:
    """Pull a cotangent back through the kernel to the images.

    f[B,H',W',O] goes through f[h,w,C/groups,O] to f[B,H,W,C]. At stride 1 it is the convolution
    with the flipped kernel, lowered as any other. At other strides each residue of the pixel's
    position modulo the stride gets its own taps, and the residues are interleaved once: no product
    with a zero. Where there is little work, zeros are put between the pixels instead, which makes
    it the case of stride 1.

    Raises: nothing; the primitives validate.
    """
    flipped = _flip(rhs, geometry.groups)
    if geometry.strides == (1, 1):
        return convolution(cotangent, flipped, flipped_geometry(geometry), precision)
    channels = (rhs.shape[2], rhs.shape[3])
    if geometry.groups == 1 and not _is_heavy(geometry, cotangent.shape[0], channels):
        return convolution(*_dilate(cotangent, flipped, geometry), precision)
    stride_h, stride_w = geometry.strides
    height, width = geometry.input_size
    phase_size = (-(-height // stride_h), -(-width // stride_w))
    phases: dict[Pair, list[jax.Array]] = {}
    last_row, last_column = geometry.kernel_size[0] - 1, geometry.kernel_size[1] - 1
    for tap in list_taps(geometry):
        weights = flipped[last_row - tap.row, last_column - tap.column]
        part = _product(cotangent[:, *tap.writes], weights, geometry.groups, precision)
        rows, columns = tap.reads
        start_h, start_w = rows.start // stride_h, columns.start // stride_w
        target = (
            slice(start_h, start_h + part.shape[1]),
            slice(start_w, start_w + part.shape[2]),
        )
        phase = (rows.start % stride_h, columns.start % stride_w)
        phases.setdefault(phase, []).append(place(part, target, phase_size))
    empty = jnp.zeros(
        (cotangent.shape[0], *phase_size, channels[0] * geometry.groups), cotangent.dtype
    )
    grid = [
        [sum(phases[h, w][1:], phases[h, w][0]) if (h, w) in phases else empty
         for w in range(stride_w)]
        for h in range(stride_h)
    ]  # fmt: skip
    return interleave(grid)[:, :height, :width]


def kernel_gradient(
    lhs: jax.Array, cotangent: jax.Array, geometry: Geometry, precision: lax.PrecisionLike = None
) -> jax.Array:
    """Correlate the input f[B,H,W,C] with a cotangent f[B,H',W',O] to f[h,w,C/groups,O].

    Raises: nothing; the primitives validate.
    """
    channels = lhs.shape[-1] // geometry.groups
    shape = (*geometry.kernel_size, channels, cotangent.shape[-1])
    form = form_of(geometry, lhs.shape[0], shape[2:], gradient=True)
    if form == "patches":
        return _correlation(_patches(lhs, geometry), cotangent, 1, precision).reshape(shape)
    if form == "winograd":
        return _winograd.kernel_gradient(lhs, cotangent, geometry, precision)
    parts = {
        (tap.row, tap.column): _correlation(
            lhs[:, *tap.reads], cotangent[:, *tap.writes], geometry.groups, precision
        )
        for tap in list_taps(geometry)
    }
    untouched = jnp.zeros(shape[2:], lhs.dtype)
    positions = [(h, w) for h in range(shape[0]) for w in range(shape[1])]
    return jnp.stack([parts.get(p, untouched) for p in positions]).reshape(shape)


def form_of(geometry: Geometry, batch: Any, channels: Pair, gradient: bool = False) -> str:
    """Choose the form of a convolution by its shape.

    Args:
      geometry: sizes and steps.
      batch: number of images; where it is symbolic (jax.export) the work counts as little.
      channels: input channels of one group, and output channels.
      gradient: whether the kernel's gradient is to be found rather than the output.

    Returns:
      "taps", "winograd", "patches" or "xla".
    """
    positions = math.prod(geometry.kernel_size)
    depth = positions * channels[0]
    if positions == 1 or geometry.groups > 1:
        dense = channels[0] > 1 and not gradient
        return "xla" if positions > 1 and dense else "taps"
    if depth <= _THIN_PATCH or tiles_image(geometry):
        return "patches"
    if _is_heavy(geometry, batch, channels):
        tiles = math.prod(-(-size // 2) for size in geometry.output_size)
        if (
            geometry.kernel_size == (3, 3)
            and geometry.strides == geometry.dilation == (1, 1)
            and min(channels) >= _WINOGRAD_CHANNELS
            and batch * tiles >= _WINOGRAD_TILES
            and 16 * tiles <= _WINOGRAD_WORK * count_products(geometry)
        ):
            return "winograd"
        if gradient:
            return "patches" if depth <= _THICK_PATCH else "taps"
        return "taps" if math.prod(geometry.output_size) <= _SMALL_MAP else "xla"
    small = gradient or math.prod(geometry.output_size) <= _SMALL_MAP
    return "patches" if small else "xla"


def _is_heavy(geometry: Geometry, batch: Any, channels: Pair) -> bool:
    """Whether a call has enough work to repay a form that compiles slowly."""
    if not isinstance(batch, int):
        return False
    work = 2 * batch * count_products(geometry) * channels[0] * channels[1]
    return work >= _WORTH_COMPILING


def _patches(lhs: jax.Array, geometry: Geometry) -> jax.Array:
    """Collect the pixels under the kernel: f[B,H,W,C] to f[B,H',W',h*w*C]."""
    batch, _, _, channels = lhs.shape
    kernel_h, kernel_w = geometry.kernel_size
    height, width = geometry.output_size
    if tiles_image(geometry):
        cropped = lhs[:, : height * kernel_h, : width * kernel_w]
        split = cropped.reshape(batch, height, kernel_h, width, kernel_w, channels)
        return split.swapaxes(2, 3).reshape(batch, height, width, kernel_h * kernel_w * channels)
    padded = pad(lhs, geometry.padding)
    return jnp.concatenate(
        [
            padded[
                :,
                row : row + (height - 1) * geometry.strides[0] + 1 : geometry.strides[0],
                column : column + (width - 1) * geometry.strides[1] + 1 : geometry.strides[1],
            ]
            for row in range(0, kernel_h * geometry.dilation[0], geometry.dilation[0])
            for column in range(0, kernel_w * geometry.dilation[1], geometry.dilation[1])
        ],
        axis=-1,
    )


def _product(
    left: jax.Array, right: jax.Array, groups: int, precision: lax.PrecisionLike
) -> jax.Array:
    """Multiply pixels f[B,H,W,C] by one tap's weights f[C/groups,O] to f[B,H,W,O]."""
    inside, outside = right.shape
    if groups == 1:
        return lax.dot_general(left, right, (((3,), (0,)), ((), ())), precision=precision)
    if inside == 1:  # depthwise: no sum at all
        return jnp.repeat(left, outside // groups, axis=-1) * right[0]
    grouped = left.reshape(*left.shape[:3], groups, inside)
    weights = right.reshape(inside, groups, outside // groups)
    result = jnp.einsum("bhwgc,cgo->bhwgo", grouped, weights, precision=precision)
    return result.reshape(*left.shape[:3], outside)


def _correlation(
    left: jax.Array, right: jax.Array, groups: int, precision: lax.PrecisionLike
) -> jax.Array:
    """Sum pixels f[B,H,W,C] times cotangents f[B,H,W,O] over B, H, W to f[C/groups,O]."""
    channels, outside = left.shape[-1], right.shape[-1]
    # Flat operands, or XLA copies the left one transposed instead of reading it transposed.
    left = left.reshape(math.prod(left.shape[:3]), channels)
    right = right.reshape(math.prod(right.shape[:3]), outside)
    if groups == 1:
        return lax.dot_general(left, right, (((0,), (0,)), ((), ())), precision=precision)
    if channels == groups:
        return (jnp.repeat(left, outside // groups, axis=-1) * right).sum(0, keepdims=True)
    left = left.reshape(left.shape[0], groups, channels // groups)
    right = right.reshape(right.shape[0], groups, outside // groups)
    result = jnp.einsum("pgc,pgo->cgo", left, right, precision=precision)
    return result.reshape(channels // groups, outside)


def _flip(rhs: jax.Array, groups: int) -> jax.Array:
    """Turn a kernel f[h,w,C/groups,O] into the one that maps outputs to inputs, f[h,w,O/groups,C].

    Pixels are reversed, and each group's in- and out-channels change places.
    """
    height, width, inside, outside = rhs.shape
    split = rhs[::-1, ::-1].reshape(height, width, inside, groups, outside // groups)
    return split.transpose(0, 1, 4, 3, 2).reshape(height, width, outside // groups, groups * inside)


def _dilate(
    cotangent: jax.Array, flipped: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.Array, Geometry]:
    """Put zeros between the pixels of a cotangent, as if it came from a convolution of stride 1."""
    (stride_h, stride_w), zero = geometry.strides, jnp.zeros((), cotangent.dtype)
    spaced = lax.pad(
        cotangent,
        zero,
        ((0, 0, 0), (0, 0, stride_h - 1), (0, 0, stride_w - 1), (0, 0, 0)),
    )
    unstrided = geometry._replace(strides=(1, 1))
    (top, bottom), (left, right) = unstrided.padding
    # Rows and columns that a stride skipped at the far end are left out of the padding.
    height, width = unstrided.output_size
    padding = (
        (top, bottom - height + spaced.shape[1]),
        (left, right - width + spaced.shape[2]),
    )
    return spaced, flipped, flipped_geometry(unstrided._replace(padding=padding))
