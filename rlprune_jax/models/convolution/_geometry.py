"""Which input pixel of a two-dimensional convolution meets which output pixel."""

from typing import NamedTuple

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


class Geometry(NamedTuple):
    """Hold sizes and steps of a convolution in space.

    Pairs are (height, width), in pixels.
    """

    input_size: Pair
    kernel_size: Pair
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int

    @property
    def output_size(self) -> Pair:
        """Return height and width of the output."""
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
    """Hold a kernel position and the pixels it joins."""

    row: int
    column: int
    reads: tuple[slice, slice]
    writes: tuple[slice, slice]


def count_products(geometry: Geometry) -> int:
    """Count the pairs of pixels that the kernel joins."""
    return sum(
        (tap.writes[0].stop - tap.writes[0].start) * (tap.writes[1].stop - tap.writes[1].start)
        for tap in list_taps(geometry)
    )


def list_taps(geometry: Geometry) -> list[Tap]:
    """List the kernel positions that meet the image at all."""
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


def tiles_image(geometry: Geometry) -> bool:
    """Return whether the kernel's positions tile the image without overlap."""
    return (
        geometry.strides == geometry.kernel_size
        and geometry.dilation == (1, 1)
        and geometry.padding == ((0, 0), (0, 0))
    )


def flipped_geometry(geometry: Geometry) -> Geometry:
    """Return the geometry of the convolution from cotangents to inputs.

    For a stride of 1.
    """
    padding = []
    for axis in range(2):
        reach = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1)
        low = reach - geometry.padding[axis][0]
        high = geometry.input_size[axis] - geometry.output_size[axis] - low + reach
        padding.append((low, high))
    return geometry._replace(input_size=geometry.output_size, padding=(padding[0], padding[1]))
