"""Nodes through reshapes, which join axes into one or split one into several."""

import math

import numpy as np

from rlprune_jax.graph.nodes import INPUT, Nodes

_AMBIGUOUS = "several prunable axes joined by a reshape"


class Reshapes:
    """Hand id arrays through reshapes.

    It remembers joins whose meaning is not yet known.

    Joining ``(height, width, channel)`` repeats the channel's nodes, as the others are fixed. Where
    more than one axis could be pruned (a kernel flattened before anything has read it), the joined
    axis gets nodes of its own, and ``resolve`` finds out later which axis they follow.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._joins: list[tuple[np.ndarray, tuple[np.ndarray, ...]]] = []

    def reshape(
        self, axes: tuple[np.ndarray, ...], shape: tuple[int, ...]
    ) -> tuple[np.ndarray, ...]:
        """Return the id arrays of a reshaped array."""
        sizes = tuple(len(ids) for ids in axes)
        for ids in axes:
            if len(ids) == 1:
                self._nodes.freeze(ids, "an axis of size one that is reshaped")
        if 0 in sizes:
            for ids in axes:
                self._nodes.freeze(ids, "an empty array")
            return tuple(np.full(size, INPUT, np.int64) for size in shape)
        output = [self._nodes.fresh(1) if size == 1 else None for size in shape]
        for inner, outer in _blocks(sizes, shape):
            flat = self._join(tuple(axes[i] for i in inner))
            for position, ids in zip(
                outer, self._split(flat, tuple(shape[j] for j in outer)), strict=True
            ):
                output[position] = ids
        return tuple(ids for ids in output if ids is not None)

    def _join(self, axes: tuple[np.ndarray, ...]) -> np.ndarray:
        if len(axes) == 1:
            return axes[0]
        sizes = tuple(len(ids) for ids in axes)
        free = [i for i, ids in enumerate(axes) if not self._nodes.frozen(ids).all()]
        if len(free) <= 1:
            return _spread(axes[free[0]] if free else axes[0], free[0] if free else 0, sizes)
        flat = self._nodes.fresh(math.prod(sizes))
        self._joins.append((flat, axes))
        return flat

    def _split(self, flat: np.ndarray, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        if len(sizes) == 1:
            return (flat,)
        for joined, axes in self._joins:
            if tuple(len(ids) for ids in axes) == sizes and np.array_equal(joined, flat):
                return axes
        if self._nodes.frozen(flat).all():
            return tuple(np.full(size, INPUT, np.int64) for size in sizes)
        axis = _followed_axis(self._nodes.find(flat), sizes)
        if axis is None:
            # (heads, width): a head goes as a whole.
            axis = 0
            self._nodes.tie(_spread(flat.reshape(sizes[0], -1)[:, 0], 0, sizes), flat)
        ids = np.moveaxis(flat.reshape(sizes), axis, 0).reshape(sizes[axis], -1)[:, 0]
        return tuple(
            ids if i == axis else np.full(size, INPUT, np.int64) for i, size in enumerate(sizes)
        )

    def resolve(self) -> None:
        """Tie each remembered join to the axis it follows."""
        pending = list(self._joins)
        progress = True
        while progress and pending:
            progress = False
            for join in list(pending):
                if self._resolve_one(*join):
                    pending.remove(join)
                    progress = True
        for flat, axes in pending:
            for ids in (flat, *axes):
                self._nodes.freeze(ids, _AMBIGUOUS)

    def _resolve_one(self, flat: np.ndarray, axes: tuple[np.ndarray, ...]) -> bool:
        nodes = self._nodes
        sizes = tuple(len(ids) for ids in axes)
        free = [i for i, ids in enumerate(axes) if not nodes.frozen(ids).all()]
        if len(free) > 1:
            roots = nodes.find(flat)
            if nodes.frozen(flat).all():
                axis = None
            elif (axis := _followed_axis(roots, sizes)) is None:
                return False
            for i in free:
                if i != axis:
                    nodes.freeze(axes[i], "joined by a reshape with an axis that is pruned")
            free = [] if axis is None else [axis]
        axis = free[0] if free else 0
        nodes.tie(_spread(axes[axis], axis, sizes), flat)
        return True


def _spread(ids: np.ndarray, axis: int, sizes: tuple[int, ...]) -> np.ndarray:
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    return np.broadcast_to(ids.reshape(shape), sizes).reshape(-1)


def _followed_axis(roots: np.ndarray, sizes: tuple[int, ...]) -> int | None:
    """Return the axis along which alone ``roots`` (flat) vary, or None."""
    table = roots.reshape(sizes)
    for axis in reversed(range(len(sizes))):
        first = np.moveaxis(table, axis, 0).reshape(sizes[axis], -1)
        if (first == first[:, :1]).all():
            return axis
    return None


def _blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the smallest runs of axes (sizes over one) with equal products, in order."""
    left = [i for i, size in enumerate(before) if size > 1]
    right = [j for j, size in enumerate(after) if size > 1]
    blocks = []
    while left and right:
        inner, outer = [left.pop(0)], [right.pop(0)]
        product_in, product_out = before[inner[0]], after[outer[0]]
        while product_in != product_out:
            if product_in < product_out:
                inner.append(left.pop(0))
                product_in *= before[inner[-1]]
            else:
                outer.append(right.pop(0))
                product_out *= after[outer[-1]]
        blocks.append((tuple(inner), tuple(outer)))
    return blocks
