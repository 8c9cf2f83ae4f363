"""Look at what layers read of units while a network is evaluated."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.matching import Matched
from rlprune_jax.graph.program import Call, Value, evaluate
from rlprune_jax.graph.program import Literal as Constant


class Reading(NamedTuple):
    """Hold what a layer reads of units.

    Attributes:
        operand: that the layer reads, of any shape.
        axis: whose places belong to units; -1 where all of the operand is one unit, a branch.
        units: i32[places] numbers of units, -1 at places of none.
        is_reduction: whether they are summed over without weights.
    """

    operand: jax.Array
    axis: int
    units: np.ndarray
    is_reduction: bool


class _Read(NamedTuple):
    """Hold an operand whose units are read: of each axis the units, int32[size]."""

    equation: int
    operand: int
    units: tuple[tuple[int, np.ndarray], ...]
    is_reduction: bool = False


def look_at_readings(
    matched: Matched, arguments: list[Value], look: Callable[[Reading], None]
) -> None:
    """Evaluate a network and show each reading of units.

    Layers inside of loops are not looked at.

    Args:
        matched: the network.
        arguments: of its program.
        look: called with each reading.
    """
    reads: dict[int, list[_Read]] = {}
    for read in _reads(matched):
        reads.setdefault(read.equation, []).append(read)

    def step(number: int, operands: list[Value]) -> list[Value]:
        for read in reads.get(number, ()):
            for axis, units in read.units:
                operand = jnp.asarray(operands[read.operand])
                look(Reading(operand, axis, units, read.is_reduction))
        return matched.program.equations[number].bind(*operands)

    def call(item: Call, operands: list[Value]) -> list[Value] | None:
        if any(number in reads for number in range(item.first, item.last)):
            return None
        return item.equation.bind(*operands)

    evaluate(matched.program, arguments, matched.program.constants, step, call)


def _reads(matched: Matched) -> Iterator[_Read]:
    """Yield where units are summed over, or a branch is added."""
    places = [(each.equation, each.operand, each.axis, False) for each in matched.contractions]
    places += [(each.equation, 0, each.axes, True) for each in matched.reductions]
    for number, operand, axes, is_reduction in places:
        atom = matched.program.equations[number].inputs[operand]
        if isinstance(atom, Constant):
            continue
        units = tuple(
            (axis, matched.units[atom][axis])
            for axis in axes
            if (matched.units[atom][axis] >= 0).any()
        )
        if units:
            yield _Read(number, operand, units, is_reduction)
    for branch, unit in matched.branches:
        yield _Read(branch.equation, branch.operand, ((-1, np.array([unit], np.int32)),))
