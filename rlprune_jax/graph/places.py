"""Places along an axis that a program computes, and compares with the numbers of another axis."""

import numpy as np

from rlprune_jax.graph.program import Equation, Literal
from rlprune_jax.graph.rules import Axes, Context, top_k_axis

_MOVES = frozenset(
    """broadcast_in_dim reshape squeeze expand_dims transpose slice convert_element_type copy
    stop_gradient identity rev""".split()  # noqa: SIM905
)
"""Primitives that hand places on as they are."""


class Places:
    """Tie what places point to with what compares them.

    A router takes the places of the largest of its columns, and ``one_hot`` compares them with the
    numbers of the experts: an expert goes with its column.
    """

    def __init__(self) -> None:
        self._pointed: dict[int, np.ndarray] = {}

    def see(
        self, context: Context, equation: Equation, operands: list[Axes], outputs: list[Axes]
    ) -> None:
        """Look at one equation, after its rule."""
        if equation.name == "top_k":
            self._pointed[equation.outputs[1]] = operands[0][top_k_axis(equation)]
            return
        held = {
            position: self._pointed[atom]
            for position, atom in enumerate(equation.inputs)
            if not isinstance(atom, Literal) and atom in self._pointed
        }
        if equation.name in _MOVES and 0 in held:
            self._pointed[equation.outputs[0]] = held[0]
        if equation.name in ("eq", "ne") and len(held) == 1:
            ((position, ids),) = held.items()
            numbers = context.known.get(1 - position)
            axis = None if numbers is None else _numbered_axis(numbers, len(ids))
            if axis is not None and len(outputs[0][axis]) == len(ids):
                context.tie(outputs[0][axis], ids)


def _numbered_axis(value: np.ndarray, size: int) -> int | None:
    """Return the axis along which a value counts from 0, or None."""
    for axis in range(value.ndim):
        if value.shape[axis] == size:
            rows = np.moveaxis(value, axis, 0).reshape(size, -1)
            if (rows == np.arange(size)[:, None]).all():
                return axis
    return None
