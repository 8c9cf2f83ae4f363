"""Nodes through reshapes, which join axes into one or split one into several."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlprune_jax.graph.nodes import INPUT, Census, Nodes


class Tie(NamedTuple):
    """Hold an axis and its factors, not yet tied.

    One of the axes carries the units, each with all that the others index; which one is found out
    when the whole program has been walked.

    Attributes:
        flat: id array of the whole axis.
        axes: id arrays of its factors.
        is_split: whether the axes were made from the flat one, and not the other way round.
        where: names the reshape.
    """

    flat: np.ndarray
    axes: tuple[np.ndarray, ...]
    is_split: bool
    where: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the axes."""
        return tuple(len(ids) for ids in self.axes)

    @property
    def table(self) -> np.ndarray:
        """Return the nodes of the axis by its factors' indices."""
        return self.flat.reshape(self.sizes)


_WEIGHTED = 1e6
"""What a read with weights weighs against those without."""


class Reshapes:
    """Hand id arrays through reshapes.

    Joining ``(height, width, channel)`` repeats the channel's nodes, as the others are fixed. Where
    more than one axis could be pruned, and where an axis is split, the parts get nodes of their own
    and stay undecided until something reads them: ``resolve`` decides at the end. Parts that are
    joined again in another order, and that nobody has read, permute the axis.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._ties: list[Tie] = []
        self.unsettled: list[Tie] = []

    def reshape(
        self,
        axes: tuple[np.ndarray, ...],
        shape: tuple[int, ...],
        where: str = "'reshape'",
        parts: Tie | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Return the id arrays of a reshaped array.

        Args:
            axes: of the array.
            shape: that it gets.
            where: names the reshape in reasons.
            parts: the split whose parts the array has, if it was only moved since.
        """
        sizes = tuple(len(ids) for ids in axes)
        for ids in axes:
            if len(ids) == 1:
                self._nodes.freeze(ids, f"an axis of size one that is reshaped by {where}")
        if 0 in sizes:
            for ids in axes:
                self._nodes.freeze(ids, "an empty array")
            return tuple(np.full(size, INPUT, np.int64) for size in shape)
        output = [self._nodes.fresh(1) if size == 1 else None for size in shape]
        for inner, outer in _blocks(sizes, shape):
            flat = self._join(tuple(axes[i] for i in inner), where, parts)
            split = self._split(flat, tuple(shape[j] for j in outer), where)
            for position, ids in zip(outer, split, strict=True):
                output[position] = ids
        return tuple(ids for ids in output if ids is not None)

    def _join(self, axes: tuple[np.ndarray, ...], where: str, parts: Tie | None) -> np.ndarray:
        if len(axes) == 1:
            return axes[0]
        sizes = tuple(len(ids) for ids in axes)
        if parts is not None and (order := order_of(parts, axes)) is not None:
            return parts.table.transpose(order).reshape(-1)
        free = [i for i, ids in enumerate(axes) if not self._nodes.frozen(ids).all()]
        if len(free) <= 1:
            axis = free[0] if free else 0
            return _spread(axes[axis], axis, sizes)
        flat = self._nodes.fresh(math.prod(sizes))
        self._ties.append(Tie(flat, axes, False, where))
        return flat

    def _split(
        self, flat: np.ndarray, sizes: tuple[int, ...], where: str
    ) -> tuple[np.ndarray, ...]:
        if len(sizes) == 1:
            return (flat,)
        for tie in self._ties:
            if tie.sizes == sizes and np.array_equal(tie.flat, flat):
                return tie.axes
        if self._nodes.frozen(flat).all():
            return tuple(np.full(size, flat[0], np.int64) for size in sizes)
        axis = _followed_axis(self._roots(flat), sizes)
        if axis is not None:
            ids = np.moveaxis(flat.reshape(sizes), axis, 0).reshape(sizes[axis], -1)[:, 0]
            return tuple(
                ids if i == axis else np.full(size, INPUT, np.int64) for i, size in enumerate(sizes)
            )
        axes = tuple(self._nodes.fresh(size) for size in sizes)
        self._ties.append(Tie(flat, axes, True, where))
        return axes

    def _roots(self, ids: np.ndarray) -> np.ndarray:
        """Return the classes of nodes, all frozen ones as one."""
        return np.where(self._nodes.frozen(ids), INPUT, self._nodes.find(ids))

    def resolve(
        self,
        reads: Sequence[Sequence[np.ndarray]],
        made: Sequence[np.ndarray],
        weighted: int = 0,
    ) -> None:
        """Tie each axis to the factor that carries its units.

        What nobody has read stays untied. An axis that can only go along one way goes that way;
        where there is a choice, an axis that weights read (channels) is preferred, then one that
        is not summed over (heads) to one that is (the width of a head), then the outermost.

        Args:
            reads: for each contraction and reduction the axes that it sums over, those with weights
                first.
            made: other axes that contractions make or go over.
            weighted: number of reads with weights.
        """
        marks, touched = np.zeros(len(self._nodes)), np.zeros(len(self._nodes), bool)
        for number, axes in enumerate(reads):
            for ids in axes:
                marks[ids] += 1 if number >= weighted else -_WEIGHTED
        for ids in [*made, *itertools.chain.from_iterable(reads)]:
            touched[ids] = True
        pending = list(self._ties)
        while pending:
            before = len(pending)
            census = self._nodes.census(marks)
            free = self._nodes.frozen(np.arange(len(self._nodes)))
            read = touched | free | (census.sizes > 1)
            pending = [tie for tie in pending if not (_is_read(tie, read) and self._settle(tie))]
            if len(pending) == before:
                chosen = [tie for tie in pending if _is_read(tie, read)]
                if not chosen:
                    break
                for tie in chosen:
                    if not self._settle(tie):
                        self._choose(tie, census)
                pending = [tie for tie in pending if not any(tie is each for each in chosen)]
        self.unsettled = pending

    def split_into(self, part: np.ndarray) -> Tie | None:
        """Return the split whose first part is this id array."""
        return next((tie for tie in self._ties if tie.is_split and tie.axes[0] is part), None)

    def _settle(self, tie: Tie) -> bool:
        """Decide a tie where there is one way alone."""
        nodes = self._nodes
        if nodes.frozen(tie.flat).all():
            for ids in tie.axes:
                nodes.freeze(ids, nodes.reason(int(tie.flat[0])))
            return True
        free = [i for i, ids in enumerate(tie.axes) if not nodes.frozen(ids).all()]
        if not free:
            longest = max(tie.axes, key=len)
            nodes.freeze(tie.flat, nodes.reason(int(longest[0])))
            return True
        axis: int | None = free[0]
        if len(free) > 1:
            axis = _followed_axis(self._roots(tie.flat), tie.sizes)
        if axis is None:
            return False
        self._tie(tie, axis)
        return True

    def _choose(self, tie: Tie, census: Census) -> None:
        def rank(axis: int) -> tuple[bool, float, int]:
            first = int(tie.axes[axis][0])
            return bool(census.generated[first]), float(census.marks[first]), axis

        free = [i for i, ids in enumerate(tie.axes) if not self._nodes.frozen(ids).all()]
        self._tie(tie, min(free, key=rank))

    def _tie(self, tie: Tie, axis: int) -> None:
        for i, ids in enumerate(tie.axes):
            if i != axis:
                self._nodes.freeze(ids, f"goes as a whole with another part of {tie.where}")
        self._nodes.tie(_spread(tie.axes[axis], axis, tie.sizes), tie.flat, lambda: tie.where)


def _is_read(tie: Tie, read: np.ndarray) -> bool:
    if tie.is_split:
        return any(read[ids].any() for ids in tie.axes)
    return bool(read[tie.flat].any())


def order_of(tie: Tie, axes: tuple[np.ndarray, ...]) -> tuple[int, ...] | None:
    """Return the order of a split's parts, or None."""
    if not tie.is_split or len(axes) != len(tie.axes):
        return None
    firsts = [int(ids[0]) for ids in tie.axes]
    if sorted(firsts) != sorted(int(ids[0]) for ids in axes):
        return None
    order = tuple(firsts.index(int(ids[0])) for ids in axes)
    same = all(np.array_equal(tie.axes[i], ids) for i, ids in zip(order, axes, strict=True))
    return order if same else None


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
