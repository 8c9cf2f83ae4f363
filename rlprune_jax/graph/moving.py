"""Axes that are split, moved and joined again, which permutes their units."""

from typing import NamedTuple

import numpy as np

from rlprune_jax.graph.program import Equation, Literal
from rlprune_jax.graph.reshaping import Reshapes, Tie, order_of
from rlprune_jax.graph.rules import Axes


class Parted(NamedTuple):
    """Describe a value with an axis split and moved.

    Attributes:
        source: slot of the other value.
        axis: of the source that was split.
        tie: the split.
        layout: for each axis of the value that of the source, or ``(part,)`` of the split axis.
    """

    source: int
    axis: int
    tie: Tie
    layout: tuple[int | tuple[int], ...]


class Permutation(NamedTuple):
    """Describe a reshape that joins parts in another order.

    Attributes:
        source: slot of the value whose axis was split.
        axis: of the source.
        places: int[size], the index along the axis that each index of the joined one has.
        order: for each axis of the result that of the source.
    """

    source: int
    axis: int
    places: np.ndarray
    order: tuple[int, ...]


class Moves:
    """Follow split axes to where they are joined again.

    Between the two, pruned units leave no rectangular array; where nothing reads what lies between,
    the slim network takes the joined value straight from the source.
    """

    def __init__(self, reshapes: Reshapes) -> None:
        self._reshapes = reshapes
        self._parted: dict[int, Parted] = {}
        self.between: dict[int, Parted] = {}
        self.permutations: dict[int, Permutation] = {}

    def joined(
        self, equation: Equation, operands: list[Axes], shapes: list[tuple[int, ...]]
    ) -> Tie | None:
        """Return the split whose parts alone a reshape joins."""
        held = self._held(equation)
        if held is None or equation.name != "reshape":
            return None
        return None if _joined(held, operands[0], shapes[0]) is None else held.tie

    def _held(self, equation: Equation) -> Parted | None:
        if equation.name not in ("reshape", "transpose") or len(equation.inputs) != 1:
            return None
        (atom,) = equation.inputs
        return None if isinstance(atom, Literal) else self._parted.get(atom)

    def see(
        self, number: int, equation: Equation, operands: list[Axes], outputs: list[Axes]
    ) -> None:
        """Look at one equation, after its rule."""
        if equation.name not in ("reshape", "transpose"):
            return
        held = self._held(equation)
        if held is None:
            held = self._split(equation, operands[0], outputs[0])
        elif equation.name == "transpose":
            layout = tuple(held.layout[i] for i in equation.params["permutation"])
            held = held._replace(layout=layout)
        else:
            found = _joined(held, operands[0], tuple(map(len, outputs[0])))
            if found is not None:
                self.permutations[number] = found
            return
        if held is not None:
            self._parted[equation.outputs[0]] = held
            self.between[number] = held

    def _split(self, equation: Equation, before: Axes, after: Axes) -> Parted | None:
        if equation.name != "reshape" or isinstance(equation.inputs[0], Literal):
            return None
        for axis in range(min(len(before), len(after))):
            tie = self._reshapes.split_into(after[axis])
            if tie is None or before[axis] is not tie.flat:
                continue
            parts = len(tie.axes)
            rest = [i for i in range(len(before)) if i != axis]
            sizes = [len(before[i]) for i in rest]
            if sizes == [len(ids) for ids in (*after[:axis], *after[axis + parts :])]:
                layout: list[int | tuple[int]] = list(rest)
                layout[axis:axis] = [(part,) for part in range(parts)]
                return Parted(equation.inputs[0], axis, tie, tuple(layout))
        return None


def _joined(held: Parted, before: Axes, shape: tuple[int, ...]) -> Permutation | None:
    """Return how a reshape joins all parts and leaves the other axes, or None."""
    parts = len(held.tie.axes)
    places = [i for i, each in enumerate(held.layout) if isinstance(each, tuple)]
    first = places[0]
    if places != list(range(first, first + parts)) or len(shape) != len(before) - parts + 1:
        return None
    order = order_of(held.tie, before[first : first + parts])
    lengths = [len(ids) for ids in before]
    wanted = (*lengths[:first], len(held.tie.flat), *lengths[first + parts :])
    if order is None or tuple(shape) != wanted:
        return None
    table = np.arange(len(held.tie.flat)).reshape(held.tie.sizes)
    axes = [held.axis if isinstance(each, tuple) else each for each in held.layout]
    return Permutation(
        source=held.source,
        axis=held.axis,
        places=table.transpose(order).reshape(-1),
        order=(*axes[:first], held.axis, *axes[first + parts :]),
    )
