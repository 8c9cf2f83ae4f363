"""Sums and extremes over units, and the numbers that stand for how many they are."""

import math
from typing import NamedTuple

import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.program import Equation
from rlprune_jax.graph.rules import Axes, top_k_axis


class Reduction(NamedTuple):
    """Describe an equation that reads axes of one operand whole.

    Attributes:
        equation: its number in the program.
        axes: of the operand that are dropped.
        consumed: id arrays of these axes.
    """

    equation: int
    axes: tuple[int, ...]
    consumed: tuple[np.ndarray, ...]


class Length(NamedTuple):
    """Describe a constant that counts the units of a sum.

    Attributes:
        equation: number of the equation that multiplies or divides by it.
        operand: which operand it is.
        exponent: the constant is the number of terms to this power, times what is fixed.
        counted: id arrays of the axes that it counts.
    """

    equation: int
    operand: int
    exponent: float
    counted: tuple[np.ndarray, ...]


class Sum(NamedTuple):
    """Describe a value that grows with a sum.

    Attributes:
        exponent: the value grows with the number of terms to this power.
        fixed: number of terms over axes that are never pruned.
        counted: id arrays of the other axes.
    """

    exponent: float
    fixed: float
    counted: tuple[np.ndarray, ...]


_FIRST = Sum(exponent=1.0, fixed=1.0, counted=())


def reduction(number: int, equation: Equation, operands: list[Axes]) -> Reduction | None:
    """Describe a reduction that leaves pruned units out.

    Any other equation gives None.
    """
    if equation.name not in primitives.READERS:
        return None
    axes = (top_k_axis(equation),) if equation.name == "top_k" else equation.params["axes"]
    axes = tuple(axes)
    return Reduction(number, axes, tuple(operands[0][i] for i in axes))


_KEEPING = frozenset(
    """convert_element_type reshape broadcast_in_dim squeeze stop_gradient copy reduce_precision
    neg abs transpose slice identity optimization_barrier sharding_constraint expand_dims
    max min clamp select_n rev copy_p""".split()  # noqa: SIM905
)
"""Primitives whose result grows with a sum as their operand does."""

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "cbrt": 1 / 3}

_SMALL = 0.01
"""A number up to which one added (an epsilon) is taken for none."""


class Lengths:
    """Find the constants that count the terms of sums.

    A mean is a sum divided by its number of terms, N; a root mean square is the root of a sum of
    squares, divided by the root of N. A value that grows with a sum to the power e, multiplied by
    N to the power -e, is a mean of this kind, and the constant N to the power -e stands for the
    number of terms. Where a sum is divided by another number, that stays, and `remarks` says so.
    """

    def __init__(self) -> None:
        self.found: list[Length] = []
        self.remarks: list[str] = []
        self._sums: dict[int, Sum] = {}

    def see(
        self,
        number: int,
        equation: Equation,
        operands: list[Axes],
        known: dict[int, np.ndarray],
        frozen: list[bool],
    ) -> None:
        """Look at one equation.

        Args:
            number: of the equation.
            equation: with one output or more.
            operands: nodes of its operands' axes.
            known: position of an operand -> its value, where constants tell it.
            frozen: for each dropped axis of a reduction whether it is never pruned.
        """
        sums = {
            position: self._sums[atom]
            for position, atom in enumerate(equation.inputs)
            if isinstance(atom, int) and atom in self._sums
        }
        found: Sum | None = None
        if equation.name == "reduce_sum":
            before = sums.get(0, _FIRST)
            before = before if before.exponent == 1.0 else _FIRST
            found = _summed(before, [operands[0][i] for i in equation.params["axes"]], frozen)
        elif sums:
            found = self._follow(number, equation, sums, known)
        if found is not None:
            self._sums.update(dict.fromkeys(equation.outputs, found))

    def _follow(
        self,
        number: int,
        equation: Equation,
        sums: dict[int, Sum],
        known: dict[int, np.ndarray],
    ) -> Sum | None:
        name = equation.name
        position, held = next(iter(sums.items()))
        if name in _POWERS:
            return held._replace(exponent=held.exponent * _POWERS[name])
        if name == "integer_pow":
            return held._replace(exponent=held.exponent * equation.params["y"])
        if name == "pow" and position == 0 and 1 in known and known[1].ndim == 0:
            return held._replace(exponent=held.exponent * float(known[1]))
        if name in ("mul", "div"):
            return self._scaled(number, equation, sums, known)
        if name in ("add", "sub") and len(sums) == 1:
            other = known.get(1 - position)
            if other is not None and other.size and np.abs(other).max() <= _SMALL:
                return held
            return None
        # Whatever else stands beside the sum must be known, as the bound of a maximum.
        others = [i for i in range(len(equation.inputs)) if i not in sums]
        beside = all(i in known for i in others) or name in ("select_n", "slice")
        return (
            held
            if name in _KEEPING and beside and len(set(map(_key, sums.values()))) == 1
            else None
        )

    def _scaled(
        self,
        number: int,
        equation: Equation,
        sums: dict[int, Sum],
        known: dict[int, np.ndarray],
    ) -> Sum | None:
        signs = (1.0, -1.0 if equation.name == "div" else 1.0)
        if len(sums) == 2:
            first, second = sums[0], sums[1]
            power = first.exponent + signs[1] * second.exponent
            same = _key(first)[1:] == _key(second)[1:]
            return first._replace(exponent=power) if same and power else None
        ((position, held),) = sums.items()
        power = signs[position] * held.exponent
        other = 1 - position
        constant = _uniform(known.get(other))
        if constant is None:
            return held._replace(exponent=power)
        # The constant to multiply by, for a mean: terms ** -power.
        wanted = -power * signs[other]
        for fixed in {held.fixed, 1.0}:
            terms: float = fixed * math.prod(map(len, held.counted))
            if terms > 1 and _equal(constant, terms**wanted, known[other].dtype):
                if held.counted:
                    self.found.append(Length(number, other, wanted, held.counted))
                return None
        if held.counted and power == 1.0 and equation.name == "div" and constant > 1:
            self._remark(equation, constant, math.prod(map(len, held.counted)))
        return held._replace(exponent=power)

    def _remark(self, equation: Equation, constant: float, terms: int) -> None:
        place = f" at {equation.place}" if equation.place else ""
        self.remarks.append(
            f"a sum over {terms} units is divided by {constant:g}{place}, which is not their "
            "number and stays as it is"
        )


def _key(held: Sum) -> tuple[float, float, tuple[int, ...]]:
    return held.exponent, held.fixed, tuple(int(ids[0]) for ids in held.counted)


def _summed(before: Sum, axes: list[np.ndarray], frozen: list[bool]) -> Sum:
    fixed = before.fixed * math.prod(
        len(ids) for ids, never in zip(axes, frozen, strict=True) if never
    )
    counted = tuple(
        ids for ids, never in zip(axes, frozen, strict=True) if not never and len(ids) > 1
    )
    return Sum(1.0, fixed, (*before.counted, *counted))


def _uniform(value: np.ndarray | None) -> float | None:
    """Return the one number that a constant holds, or None."""
    if value is None or not value.size or value.dtype == bool or np.iscomplexobj(value):
        return None
    first = value.reshape(-1)[0]
    return float(first) if (value == first).all() else None


def _equal(constant: float, wanted: float, dtype: np.dtype) -> bool:
    # Compared as the program holds it: bfloat16 keeps 8 bits of a number.
    held = float(np.asarray(wanted).astype(dtype))
    return abs(constant - held) <= 4e-7 * abs(wanted) or constant == held
