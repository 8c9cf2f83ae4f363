"""Convolution and its two gradients for CPUs, as the matmuls that are fastest for the shape.

XLA's own CPU convolution is good at one thing: the forward pass at stride 1 on maps of more than a
few pixels. Its gradients run 45 to 115 times slower inside a loop, 2x2 maps 40 times slower, and
grouped ones slower than the dense product. So every form here is made of slices, matrix products
and sums; the rule that picks among them (`form_of`) is static, by shape, when the program is
lowered. Times in milliseconds in `experiments/bench_conv.py` and specs/performance.md.

- "taps": one matmul per kernel position, over only the pixels that position really reads (at 4x4,
  100 of 144; at 2x2, 16 of 36). Serves every kernel, stride, padding, dilation and group.
- "winograd": F(2x2, 3x3) of Lavin and Gray (2015, https://arxiv.org/abs/1509.09308), 16
  products for every 2x2 outputs where 36 are usual. All its constants are 0, 1/2 and 1, and its
  float32 error is measured equal to that of the sum over taps (1e-5 of the output's spread).
- "patches": all pixels under the kernel side by side, one matmul; for few input channels, whose
  own matmuls would be too thin, and for kernels that tile the image (patch embedding).
- "xla": the rest, forward only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

_FEW_PATCH_COLUMNS = 96  # at most this deep, patches cost less than thin matmuls
_SMALL_MAP = 16  # output pixels up to which XLA's convolution is the slower
_MOST_TAPS = 128  # unrolling more makes programs that take minutes to compile
_WINOGRAD_WORK = 0.75  # of the products that the taps need; above it the transforms eat the gain
_WINOGRAD_CHANNELS = 16  # thinner, the transforms eat the gain
_WINOGRAD_TILES = 32  # fewer, transforming the kernel eats the gain


class Geometry(NamedTuple):
    """What is fixed about a convolution besides its channels and batch; all (height, width)."""

    input_size: Pair
    kernel_size: Pair
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int

    @property
    def output_size(self) -> Pair:
        """Height and width of the output."""
        height, width = (
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                self.input_size,
                self.kernel_size,
                self.strides,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return height, width


class Tap(NamedTuple):
    """One kernel position: the input pixels it reads, and the output pixels they are added to."""

    row: int
    column: int
    reads: tuple[slice, slice]
    writes: tuple[slice, slice]


def convolution(
    lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any = None
) -> jax.Array:
    """Convolve lhs f[B,H,W,C] with rhs f[h,w,C/groups,O] to f[B,H',W',O].

    Raises: nothing; the primitives validate.
    """
    form = form_of(geometry, lhs.shape, rhs.shape)
    if form == "patches":
        columns = _patches(lhs, geometry)
        return _product(columns, rhs.reshape(columns.shape[-1], -1), 1, precision)
    if form == "winograd":
        return _winograd(lhs, rhs, geometry, precision)
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
    for tap in _taps(geometry):
        part = _product(
            lhs[:, *tap.reads], rhs[tap.row, tap.column], geometry.groups, precision
        )
        total = total + _place(part, tap.writes, (height, width))
    return jnp.broadcast_to(total, (lhs.shape[0], height, width, rhs.shape[-1]))


def input_gradient(
    cotangent: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any = None
) -> jax.Array:
    """Pull a cotangent f[B,H',W',O] back through the kernel f[h,w,C/groups,O] to f[B,H,W,C].

    At stride 1 it is the convolution with the flipped kernel, lowered as any other. At other
    strides each residue of the pixel's position modulo the stride gets its own taps, and the
    residues are interleaved once: no product with a zero.

    Raises: nothing; the primitives validate.
    """
    flipped = _flip(rhs, geometry.groups)
    if geometry.strides == (1, 1):
        return convolution(cotangent, flipped, _flipped_geometry(geometry), precision)
    stride_h, stride_w = geometry.strides
    height, width = geometry.input_size
    phase_size = (-(-height // stride_h), -(-width // stride_w))
    phases: dict[Pair, list[jax.Array]] = {}
    last_row, last_column = geometry.kernel_size[0] - 1, geometry.kernel_size[1] - 1
    for tap in _taps(geometry):
        weights = flipped[last_row - tap.row, last_column - tap.column]
        part = _product(cotangent[:, *tap.writes], weights, geometry.groups, precision)
        rows, columns = tap.reads
        start_h, start_w = rows.start // stride_h, columns.start // stride_w
        target = (
            slice(start_h, start_h + part.shape[1]),
            slice(start_w, start_w + part.shape[2]),
        )
        phase = (rows.start % stride_h, columns.start % stride_w)
        phases.setdefault(phase, []).append(_place(part, target, phase_size))
    channels = rhs.shape[2] * geometry.groups
    empty = jnp.zeros((cotangent.shape[0], *phase_size, channels), cotangent.dtype)
    grid = [
        [sum(phases[h, w][1:], phases[h, w][0]) if (h, w) in phases else empty
         for w in range(stride_w)]
        for h in range(stride_h)
    ]  # fmt: skip
    return _interleave(grid)[:, :height, :width]


def kernel_gradient(
    lhs: jax.Array, cotangent: jax.Array, geometry: Geometry, precision: Any = None
) -> jax.Array:
    """Correlate the input f[B,H,W,C] with a cotangent f[B,H',W',O] to f[h,w,C/groups,O].

    Raises: nothing; the primitives validate.
    """
    channels = lhs.shape[-1] // geometry.groups
    shape = (*geometry.kernel_size, channels, cotangent.shape[-1])
    form = form_of(geometry, lhs.shape, shape)
    if form == "patches":
        return _correlation(_patches(lhs, geometry), cotangent, 1, precision).reshape(shape)
    if form == "winograd":
        return _winograd_kernel_gradient(lhs, cotangent, geometry, precision)
    parts = {
        (tap.row, tap.column): _correlation(
            lhs[:, *tap.reads], cotangent[:, *tap.writes], geometry.groups, precision
        )
        for tap in _taps(geometry)
    }
    untouched = jnp.zeros(shape[2:], lhs.dtype)
    positions = [(h, w) for h in range(shape[0]) for w in range(shape[1])]
    return jnp.stack([parts.get(p, untouched) for p in positions]).reshape(shape)


def form_of(geometry: Geometry, lhs_shape: Sequence[Any], rhs_shape: Sequence[Any]) -> str:
    """Name the form for a shape: "taps", "winograd", "patches" or "xla".

    Raises: nothing.
    """
    height, width = geometry.output_size
    taps = math.prod(geometry.kernel_size)
    inside, outside = rhs_shape[2], rhs_shape[3]
    depthwise = inside == 1
    if taps == 1 or (depthwise and geometry.groups > 1 and taps <= _MOST_TAPS):
        return "taps"
    if geometry.groups == 1 and (taps * inside <= _FEW_PATCH_COLUMNS or _tiles(geometry)):
        return "patches"
    if (
        geometry.kernel_size == (3, 3)
        and geometry.strides == geometry.dilation == (1, 1)
        and geometry.groups == 1
        and min(inside, outside) >= _WINOGRAD_CHANNELS
    ):
        tiles = -(-height // 2) * -(-width // 2)
        products = sum(
            (tap.writes[0].stop - tap.writes[0].start) * (tap.writes[1].stop - tap.writes[1].start)
            for tap in _taps(geometry)
        )
        batch = lhs_shape[0]
        # A symbolic batch size (jax.export) counts as a large one.
        many = not isinstance(batch, int) or batch * tiles >= _WINOGRAD_TILES
        if many and 16 * tiles <= _WINOGRAD_WORK * products:
            return "winograd"
    if height * width <= _SMALL_MAP and taps <= _MOST_TAPS:
        return "taps"
    return "xla"


def _taps(geometry: Geometry) -> list[Tap]:
    """Kernel positions that meet the image at all, with the pixels at which they do."""
    spans = []
    for axis in range(2):
        stride, dilation = geometry.strides[axis], geometry.dilation[axis]
        size, outputs = geometry.input_size[axis], geometry.output_size[axis]
        found = []
        for position in range(geometry.kernel_size[axis]):
            offset = position * dilation - geometry.padding[axis][0]
            first = max(0, -(offset // stride))
            last = min(outputs - 1, (size - 1 - offset) // stride)
            if first <= last:
                start = first * stride + offset
                reads = slice(start, start + (last - first) * stride + 1, stride)
                found.append((position, reads, slice(first, last + 1)))
        spans.append(found)
    return [
        Tap(row, column, (row_reads, column_reads), (row_writes, column_writes))
        for row, row_reads, row_writes in spans[0]
        for column, column_reads, column_writes in spans[1]
    ]


def _tiles(geometry: Geometry) -> bool:
    """Whether the kernel's positions tile the image without overlap or padding."""
    return (
        geometry.strides == geometry.kernel_size
        and geometry.dilation == (1, 1)
        and geometry.padding == ((0, 0), (0, 0))
    )


def _patches(lhs: jax.Array, geometry: Geometry) -> jax.Array:
    """Collect the pixels under the kernel: f[B,H,W,C] to f[B,H',W',h*w*C]."""
    batch, _, _, channels = lhs.shape
    kernel_h, kernel_w = geometry.kernel_size
    height, width = geometry.output_size
    if _tiles(geometry):
        cropped = lhs[:, : height * kernel_h, : width * kernel_w]
        split = cropped.reshape(batch, height, kernel_h, width, kernel_w, channels)
        return split.swapaxes(2, 3).reshape(batch, height, width, kernel_h * kernel_w * channels)
    padded = _pad(lhs, geometry.padding)
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


# Winograd's F(2x2, 3x3) along one axis: which of the four input pixels of a tile, which of its two
# outputs, and with what sign, make up each of the four products.
_TILE_INPUTS = ({0: 1, 2: -1}, {1: 1, 2: 1}, {1: -1, 2: 1}, {1: 1, 3: -1})
_TILE_OUTPUTS = ({0: 1, 1: 1, 2: 1}, {1: 1, 2: -1, 3: -1})
_TILE_COTANGENTS = ({0: 1}, {0: 1, 1: 1}, {0: 1, 1: -1}, {1: -1})
_KERNEL_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def _winograd(lhs: jax.Array, rhs: jax.Array, geometry: Geometry, precision: Any) -> jax.Array:
    transform = jnp.asarray(_KERNEL_TRANSFORM, rhs.dtype)
    kernels = jnp.einsum("ui,vj,ijco->uvco", transform, transform, rhs)
    pixels = _tile_inputs(lhs, geometry)
    products = [
        [_product(pixels(u, v), kernels[u, v], 1, precision) for v in range(4)] for u in range(4)
    ]
    outputs = [
        [_combine(_TILE_OUTPUTS[h], _TILE_OUTPUTS[w], products) for w in range(2)]
        for h in range(2)
    ]
    height, width = geometry.output_size
    return _interleave(outputs)[:, :height, :width]


def _winograd_kernel_gradient(
    lhs: jax.Array, cotangent: jax.Array, geometry: Geometry, precision: Any
) -> jax.Array:
    """Transpose of `_winograd` in its kernel, product by product."""
    height, width = geometry.output_size
    even = _pad(cotangent, ((0, height % 2), (0, width % 2)))
    corners = [[even[:, h::2, w::2] for w in range(2)] for h in range(2)]
    pixels = _tile_inputs(lhs, geometry)
    parts = [
        _correlation(
            pixels(u, v),
            _combine(_TILE_COTANGENTS[u], _TILE_COTANGENTS[v], corners),
            1,
            precision,
        )
        for u in range(4)
        for v in range(4)
    ]
    stacked = jnp.stack(parts).reshape(4, 4, lhs.shape[-1], cotangent.shape[-1])
    transform = jnp.asarray(_KERNEL_TRANSFORM, lhs.dtype)
    return jnp.einsum("ui,vj,uvco->ijco", transform, transform, stacked)


def _tile_inputs(lhs: jax.Array, geometry: Geometry) -> Callable[[int, int], jax.Array]:
    """Return the transformed pixels of all tiles, f[B,tiles high,tiles wide,C], by product."""
    tiles_h, tiles_w = (-(-size // 2) for size in geometry.output_size)
    (top, _), (left, _) = geometry.padding
    height, width = geometry.input_size
    # The last tile may reach beyond the padding, for an output that is cropped again.
    bottom, right = 2 * tiles_h + 2 - height - top, 2 * tiles_w + 2 - width - left
    padded = _pad(lhs, ((top, bottom), (left, right)))
    pixels = [
        [padded[:, h : h + 2 * tiles_h - 1 : 2, w : w + 2 * tiles_w - 1 : 2] for w in range(4)]
        for h in range(4)
    ]
    return lambda u, v: _combine(_TILE_INPUTS[u], _TILE_INPUTS[v], pixels)


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


def _interleave(grid: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Weave grid[h][w] f[B,H,W,C] into f[B, H*rows, W*columns, C], pixel (y, x) of [h][w] at
    (y*rows + h, x*columns + w).
    """  # noqa: D205
    batch, height, width, channels = grid[0][0].shape
    rows = [jnp.stack(row, axis=3) for row in grid]
    woven = jnp.stack(rows, axis=2)
    return woven.reshape(batch, height * len(grid), width * len(grid[0]), channels)


def _product(left: jax.Array, right: jax.Array, groups: int, precision: Any) -> jax.Array:
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


def _correlation(left: jax.Array, right: jax.Array, groups: int, precision: Any) -> jax.Array:
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
    return split.transpose(0, 1, 4, 3, 2).reshape(
        height, width, outside // groups, groups * inside
    )


def _flipped_geometry(geometry: Geometry) -> Geometry:
    """Geometry of the stride-1 convolution that maps cotangents to inputs."""
    padding = []
    for axis in range(2):
        reach = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
        low = reach - geometry.padding[axis][0]
        high = geometry.input_size[axis] - geometry.output_size[axis] - low + reach
        padding.append((low, high))
    return geometry._replace(
        input_size=geometry.output_size, padding=(padding[0], padding[1])
    )


def _pad(array: jax.Array, padding: Padding) -> jax.Array:
    """Pad (or, where negative, crop) the two spatial axes of f[B,H,W,C] with zeros."""
    zero = jnp.zeros((), array.dtype)
    (top, bottom), (left, right) = padding
    return lax.pad(array, zero, ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def _place(part: jax.Array, writes: tuple[slice, slice], size: Pair) -> jax.Array:
    """Put a part into zeros of the given spatial size."""
    rows, columns = writes
    return _pad(
        part, ((rows.start, size[0] - rows.stop), (columns.start, size[1] - columns.stop))
    )
