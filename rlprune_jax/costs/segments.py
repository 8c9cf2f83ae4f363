"""A network's program cut into segments that a compiler would run as one piece each.

A segment is a contraction with what follows it up to the next one: norms, activations, sums and
poolings, which XLA fuses. What brings in units that the contraction does not touch (a norm over a
concatenation) is a segment without a contraction. Equations that only move entries, or that depend
on the variables alone, go with every segment that reads them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.cutting import cut
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import Matched
from rlprune_jax.graph.program import Equation, Literal, Program
from rlprune_jax.graph.slim import SlimStep
from rlprune_jax.types import PyTree

_CONTRACTING = frozenset(["dot_general", *primitives.CONVOLUTIONS])
_MOVING = frozenset(
    """broadcast_in_dim concatenate convert_element_type copy expand_dims pad reshape rev slice
    split squeeze transpose""".split()  # noqa: SIM905
)
"""Fused into whatever reads them."""

_NO_SEGMENT = -1


@dataclass(frozen=True, eq=False)
class Segment:
    """Hold part of a program that runs as one piece.

    Attributes:
        head: number of its first equation, a contraction where it has one.
        equations: numbers of all, in the order of the program.
        inputs: slots that it reads: arguments of the program and outputs of earlier segments.
        outputs: slots that later segments read, or that the program returns.
        reads: f64[groups], indices per kept unit that the contraction sums over.
        makes: f64[groups], entries that it computes per kept unit of the other groups.
    """

    head: int
    equations: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    reads: np.ndarray
    makes: np.ndarray


def cut_into_segments(graph: Graph, matched: Matched) -> list[Segment]:
    """Cut a program into segments.

    Each equation that depends on the network's input is in one of them.

    Args:
        graph: of the network.
        matched: its program, with the units of the graph.
    """
    homes = _find_homes(graph, matched)
    program = matched.program
    made_by = {s: n for n, each in enumerate(program.equations) for s in each.outputs}
    loose = {n for n, home in enumerate(homes.of_equation) if home == _NO_SEGMENT}
    returned = [atom for atom in program.outputs if not isinstance(atom, Literal)]
    own: dict[int, set[int]] = {}
    for number, home in enumerate(homes.of_equation):
        if home != _NO_SEGMENT:
            own.setdefault(home, set()).add(number)
    for slot in returned:
        # What only moves entries on their way out belongs to the segment that they come from.
        if made_by.get(slot) in loose and homes.of_slot[slot] != _NO_SEGMENT:
            own[homes.of_slot[slot]].add(made_by[slot])
    for numbers in own.values():
        _take_in(numbers, program, {s: n for s, n in made_by.items() if n in loose})
    reads = {
        home: {slot for n in numbers for slot in _slots(program.equations[n])}
        - {slot for n in numbers for slot in program.equations[n].outputs}
        for home, numbers in own.items()
    }
    wanted = set(returned).union(*reads.values())
    segments = []
    for head, numbers in sorted(own.items()):
        produced = [slot for n in sorted(numbers) for slot in program.equations[n].outputs]
        units_read, units_made = _weights(graph, matched, head, produced)
        segments.append(
            Segment(
                head=head,
                equations=tuple(sorted(numbers)),
                inputs=tuple(sorted(reads[head] - program.constants.keys())),
                outputs=tuple(slot for slot in produced if slot in wanted),
                reads=units_read,
                makes=units_made,
            )
        )
    return segments


def _take_in(numbers: set[int], program: Program, loose: dict[int, int]) -> None:
    """Add the loose equations that ``numbers`` rest on.

    ``loose`` gives them by the slots that they make.
    """
    waiting = list(numbers)
    while waiting:
        for slot in _slots(program.equations[waiting.pop()]):
            if slot in loose and loose[slot] not in numbers:
                numbers.add(loose[slot])
                waiting.append(loose[slot])


@dataclass
class _Homes:
    """Hold the segment's head of each equation and slot.

    It is ``_NO_SEGMENT`` of what is loose.
    """

    of_equation: list[int]
    of_slot: list[int]


def _find_homes(graph: Graph, matched: Matched) -> _Homes:
    program = matched.program
    inputs = set(program.inputs[len(graph.variables) :])
    depends = [slot in inputs for slot in range(len(program.avals))]
    homes = _Homes([_NO_SEGMENT] * len(program.equations), [_NO_SEGMENT] * len(program.avals))
    held: dict[int, set[int]] = {}
    for number, equation in enumerate(program.equations):
        slots = _slots(equation)
        latest = max((homes.of_slot[slot] for slot in slots), default=_NO_SEGMENT)
        if any(depends[slot] for slot in slots):
            for slot in equation.outputs:
                depends[slot] = True
            if equation.name not in _MOVING:
                groups = _groups(graph, matched, equation.outputs)
                begins = equation.name in _CONTRACTING or latest == _NO_SEGMENT
                if begins or not groups <= held[latest]:
                    latest = number
                    # What follows may have the units of what is read, or of what is made.
                    held[number] = groups | _groups(graph, matched, tuple(slots))
                homes.of_equation[number] = latest
        for slot in equation.outputs:
            homes.of_slot[slot] = latest
    return homes


def _weights(
    graph: Graph, matched: Matched, head: int, produced: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    reads, makes = np.zeros(len(graph.groups)), np.zeros(len(graph.groups))
    equation = matched.program.equations[head]
    for axis in _contracted(equation):
        reads += _held(graph, matched.units[equation.inputs[0]][axis])
    for slot in produced:
        entries = float(np.prod([max(len(units), 1) for units in matched.units[slot]]))
        for units in matched.units[slot]:
            makes += _held(graph, units) * (entries / max(len(units), 1))
    sizes = np.asarray(graph.sizes, np.float64)
    return reads / sizes, np.where(reads > 0, 0.0, makes) / sizes


def _held(graph: Graph, units: np.ndarray) -> np.ndarray:
    """Indices int[groups] of an axis that belong to each group."""
    return np.bincount(graph.group_of_unit[units[units >= 0]], minlength=len(graph.groups))


def _groups(graph: Graph, matched: Matched, slots: tuple[int, ...]) -> set[int]:
    return {
        int(group)
        for slot in slots
        for units in matched.units[slot]
        for group in np.flatnonzero(_held(graph, units))
    }


def _contracted(equation: Equation) -> tuple[int, ...]:
    """Return the axes of the first operand summed over.

    A depthwise convolution has none.
    """
    if equation.name == "dot_general":
        return tuple(equation.params["dimension_numbers"][0][0])
    if equation.name in primitives.CONVOLUTIONS:
        image, _, _ = primitives.convolution_axes(equation.name, equation.params)
        return (image[1],)
    return ()


def _slots(equation: Equation) -> list[int]:
    return [atom for atom in equation.inputs if not isinstance(atom, Literal)]


def slim_shape(matched: Matched, slot: int, kept: np.ndarray) -> jax.ShapeDtypeStruct:
    """Return the shape of a value in the slim network.

    Args:
        matched: the program.
        slot: of the value.
        kept: bool[units + 1], which units remain; the last entry is True.
    """
    sizes = (int(kept[units].sum()) for units in matched.units[slot])
    return jax.ShapeDtypeStruct(tuple(sizes), matched.program.avals[slot].dtype)


def runnable(matched: Matched, segment: Segment, kept: np.ndarray) -> Callable[..., list[PyTree]]:
    """Return a segment as a function of slim inputs.

    Args:
        matched: the program.
        segment: of it.
        kept: bool[units + 1], which units remain; the last entry is True.
    """
    program, step = matched.program, SlimStep(matched, kept)

    def run(*operands: PyTree) -> list[PyTree]:
        values = dict(zip(segment.inputs, operands, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return atom.value
            if atom not in values:
                values[atom] = cut(program.constants[atom], step.alive[atom])
            return values[atom]

        for number in segment.equations:
            equation = program.equations[number]
            results = step(number, [read(atom) for atom in equation.inputs])
            values.update(zip(equation.outputs, results, strict=True))
        return [values[slot] for slot in segment.outputs]

    return run


def describe(program: Program, equations: Sequence[int], outputs: Sequence[Any]) -> list[str]:
    """Describe in text what equations compute.

    The texts are equal where only the names of values differ, so they name files of timings.

    Args:
        program: of the equations.
        equations: their numbers.
        outputs: slots of what they return.
    """
    numbers: dict[int, int] = {}

    def name(atom: Any) -> str:
        if isinstance(atom, Literal):
            return str(atom.value)
        aval = program.avals[atom]
        kind = " constant" if atom in program.constants else ""
        number = numbers.setdefault(atom, len(numbers))
        return f"{number}:{aval.dtype}{list(aval.shape)}{kind}"

    lines = []
    for equation in (program.equations[number] for number in equations):
        written, read = map(name, equation.outputs), map(name, equation.inputs)
        # Memory addresses of functions in parameters differ between processes.
        params = re.sub(r"0x[0-9a-f]+", "", str(equation.params))
        lines.append(f"{' '.join(written)} = {equation.name} {params} {' '.join(read)}")
    return [*lines, f"returns {' '.join(map(name, outputs))}"]
