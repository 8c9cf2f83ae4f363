"""One walk over a program, which finds the nodes of every value's axes."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlprune_jax.graph.branches import Addition, residual_sums
from rlprune_jax.graph.contractions import Contraction, contraction
from rlprune_jax.graph.folding import MOST, fold
from rlprune_jax.graph.moving import Moves
from rlprune_jax.graph.nodes import BATCH, Nodes
from rlprune_jax.graph.places import Places
from rlprune_jax.graph.program import Equation, Literal, Program
from rlprune_jax.graph.reductions import Length, Lengths, Reduction, reduction
from rlprune_jax.graph.rules import Axes, Context, fixed, fixed_axes, propagate
from rlprune_jax.pytree import is_key


class Walk(NamedTuple):
    """Hold what a walk over a program found.

    Attributes:
        nodes: of all axes.
        axes: for each slot, one id array per axis of its value.
        contractions: where units are made and summed.
        reductions: where units are read by a sum, a maximum and the like.
        lengths: constants that count units.
        known: slot -> value, of indices and counts that constants tell.
        bodies: number of an equation -> the walks over its bodies.
        moves: axes that are split, moved and joined again.
        places: what points along an axis.
        layers: number of a loop over residual layers -> nodes of its steps, and what each adds.
        remarks: what a user should know, in words.
    """

    nodes: Nodes
    axes: list[Axes]
    contractions: list[Contraction]
    reductions: list[Reduction]
    lengths: list[Length]
    known: dict[int, np.ndarray]
    bodies: "dict[int, tuple[Walk, ...]]"
    moves: Moves
    places: Places
    layers: dict[int, tuple[np.ndarray, list[Addition]]]
    remarks: list[str]

    def all_contractions(self) -> Iterator[Contraction]:
        """Yield all contractions in order, those of bodies too."""
        yield from (contraction for _, contraction in self.numbered_contractions())

    def numbered_contractions(self) -> Iterator[tuple[int, Contraction]]:
        """Yield all contractions, each with its number at the top."""
        own = {each.equation: each for each in self.contractions}
        for number in sorted({*own, *self.bodies}):
            if number in own:
                yield number, own[number]
            for body in self.bodies.get(number, ()):
                yield from ((number, each) for each in body.all_contractions())

    def contracting(self) -> set[int]:
        """Return the numbers of equations that hold contractions."""
        return {n for n, each in self.numbered_contractions() if each.multiplied}

    def reads(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the axes that each contraction and reduction sums over."""
        yield from (each.consumed for each in self.contractions if each.consumed)
        yield from (each.consumed for each in self.reductions)
        for bodies in self.bodies.values():
            for body in bodies:
                yield from body.reads()

    def all_remarks(self) -> list[str]:
        """Return the remarks of the program and its bodies."""
        inner = [body.all_remarks() for bodies in self.bodies.values() for body in bodies]
        return [*self.remarks, *(remark for each in inner for remark in each)]


def variable_axes(context: Context, program: Program, count: int) -> list[Axes]:
    """Make nodes for the axes of a program's variables.

    They are its first ``count`` inputs.
    """
    shapes = (program.avals[slot].shape for slot in program.inputs[:count])
    return [tuple(context.nodes.fresh(size) for size in shape) for shape in shapes]


def walk_with(context: Context, program: Program, variables: Sequence[Axes]) -> Walk:
    """Walk a program on nodes given for its variables."""
    shapes = [program.avals[slot].shape for slot in program.inputs[len(variables) :]]
    batch = shapes[0][0] if shapes and shapes[0] else None
    inputs = [*variables, *(_given(shape, batch) for shape in shapes)]
    depends = [number >= len(variables) for number in range(len(inputs))]
    return _walk(context, program, inputs, depends, 1)


def _given(shape: tuple[int, ...], batch: int | None) -> Axes:
    """Return the axes of an input, whose first is the batch where it has that size."""
    if not shape or shape[0] != batch:
        return fixed_axes(shape)
    return (np.full(shape[0], BATCH, np.int64), *fixed_axes(shape[1:]))


def resolve(context: Context, walks: Sequence[Walk]) -> None:
    """Decide what reshapes have left open."""
    weights = [
        each.consumed
        for found in walks
        for each in found.all_contractions()
        if each.weight is not None and each.consumed
    ]
    reads = [axes for found in walks for axes in found.reads()]
    made = [
        ids
        for found in walks
        for each in found.all_contractions()
        for ids in (*each.multiplied, *each.produced)
    ]
    context.reshapes.resolve([*weights, *reads], made, len(weights))


def _walk(
    context: Context, program: Program, inputs: Sequence[Axes], depends: Sequence[bool], times: int
) -> Walk:
    axes: list[Axes] = [()] * len(program.avals)
    tainted = [False] * len(program.avals)
    for slot, ids, taint in zip(program.inputs, inputs, depends, strict=True):
        axes[slot], tainted[slot] = ids, taint
    found = Walk(
        nodes=context.nodes,
        axes=axes,
        contractions=[],
        reductions=[],
        lengths=[],
        known={},
        bodies={},
        moves=Moves(context.reshapes),
        places=Places(),
        layers={},
        remarks=[],
    )
    for slot, value in program.constants.items():
        axes[slot] = tuple(context.nodes.fresh(size) for size in np.shape(value))
        if not isinstance(value, jax.core.Tracer) and not is_key(value) and np.size(value) <= MOST:
            whole = jax.dtypes.issubdtype(value.dtype, np.integer) or value.dtype == bool
            if whole or np.size(value) <= 1:
                found.known[slot] = np.asarray(value)
    lengths = Lengths()
    for number in range(len(program.equations)):
        _visit(context, program, (number, times), found, tainted, lengths)
    found.lengths.extend(lengths.found)
    found.remarks.extend(lengths.remarks)
    return found


def _visit(
    context: Context,
    program: Program,
    place: tuple[int, int],
    found: Walk,
    tainted: list[bool],
    lengths: Lengths,
) -> None:
    """Walk over one equation.

    Args:
        context: of the walk.
        program: that the equation is part of.
        place: number of the equation, and how often it runs.
        found: so far; added to.
        tainted: for each slot whether it depends on the network's input; added to.
        lengths: follows sums.
    """
    number, times = place
    equation = program.equations[number]
    axes = found.axes
    operands = [() if isinstance(atom, Literal) else axes[atom] for atom in equation.inputs]
    taints = [not isinstance(atom, Literal) and tainted[atom] for atom in equation.inputs]
    known = _known(equation, found.known)
    context.equation, context.known = equation, known
    if equation.bodies:
        outputs = _BODIES[equation.name](
            context, equation, operands, taints, (found, number, times)
        )
        context.equation = equation
    else:
        shapes = [tuple(program.avals[slot].shape) for slot in equation.outputs]
        context.parts = found.moves.joined(equation, operands, shapes)
        outputs = propagate(context, equation, operands, shapes)
        found.moves.see(number, equation, operands, outputs)
        found.places.see(context, equation, operands, outputs)
    for slot, ids in zip(equation.outputs, outputs, strict=True):
        axes[slot], tainted[slot] = ids, any(taints)
    if len(known) == len(equation.inputs) and not equation.bodies:
        values = [known[position] for position in range(len(known))]
        if (value := fold(equation, values)) is not None:
            found.known[equation.outputs[0]] = value
    made = contraction(number, equation, operands, taints, outputs)
    if made is not None:
        found.contractions.append(made._replace(times=times))
    read = reduction(number, equation, operands)
    frozen = []
    if read is not None:
        found.reductions.append(read)
        frozen = [bool(context.nodes.frozen(ids).all()) for ids in read.consumed]
    lengths.see(number, equation, operands, known, frozen)


def _known(equation: Equation, values: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return the operands whose values constants tell."""
    return {
        position: np.asarray(atom.value) if isinstance(atom, Literal) else values[atom]
        for position, atom in enumerate(equation.inputs)
        if isinstance(atom, Literal) or atom in values
    }


Inside = tuple[Walk, int, int]
"""The walk over the program that an equation is part of, its number and how often it runs."""


def _scan(
    context: Context, equation: Equation, operands: list[Axes], taints: list[bool], inside: Inside
) -> list[Axes]:
    """Walk the body of a loop once, its carry tied to itself."""
    found, number, times = inside
    (body,) = equation.bodies
    params = equation.params
    consts, carries = params["num_consts"], params["num_carry"]
    length = params["length"]
    sliced = operands[consts + carries :]
    inputs = [*operands[: consts + carries], *(ids[1:] for ids in sliced)]
    sums = residual_sums(body, consts, carries) if context.layers and sliced else None
    for ids in sliced:
        if sums is None:
            context.freeze(ids[0], "the steps of a 'scan'")
        else:
            context.tie(sliced[0][0], ids[0])
    depends = list(taints)
    if any(taints):
        depends[consts : consts + carries] = [True] * carries
    inner = _walk(context, body, inputs, depends, times if sums else times * length)
    if sums is not None:
        found.layers[number] = (sliced[0][0], sums)
        inner = _stacked(inner, sliced[0][0])
    found.bodies[number] = (inner,)
    context.equation = equation
    outputs = [() if isinstance(atom, Literal) else inner.axes[atom] for atom in body.outputs]
    for before, after in zip(inputs[consts : consts + carries], outputs[:carries], strict=True):
        for first, second in zip(before, after, strict=False):
            context.tie(first, second)
    stacked = sliced[0][0] if sliced else fixed(length)
    return [*inputs[consts : consts + carries], *((stacked, *ids) for ids in outputs[carries:])]


def _while(
    context: Context, equation: Equation, operands: list[Axes], taints: list[bool], inside: Inside
) -> list[Axes]:
    """Freeze what passes through a loop of unknown length; count one trip."""
    found, number, times = inside
    context.freeze_all(operands, "passes through 'while', a loop of unknown length,")
    params = equation.params
    conditions = params["cond_nconsts"]
    consts = conditions + params["body_nconsts"]
    groups = [
        [*range(conditions), *range(consts, len(operands))],
        [*range(conditions, consts), *range(consts, len(operands))],
    ]
    # What the condition or the body reads, the carry depends on after one trip.
    depends = [taint or (number >= consts and any(taints)) for number, taint in enumerate(taints)]
    walks = [
        _walk(context, body, [operands[i] for i in group], [depends[i] for i in group], times)
        for body, group in zip(equation.bodies, groups, strict=True)
    ]
    context.equation = equation
    found.bodies[number] = tuple(walks)
    if _macs(walks):
        found.remarks.append(
            context.placed("the MACs of one trip are counted of the 'while'")
            + ", whose length is not known"
        )
    shapes = [var.aval.shape for var in equation.source.outvars]
    return [
        ids if ids else fixed_axes(shape)
        for ids, shape in zip(operands[consts:], shapes, strict=True)
    ]


def _cond(
    context: Context, equation: Equation, operands: list[Axes], taints: list[bool], inside: Inside
) -> list[Axes]:
    """Walk all branches of a choice, their outputs tied; count the dearer one."""
    found, number, times = inside
    for ids in operands[0]:
        context.freeze(ids, "chooses a branch of 'cond'")
    walks = [_walk(context, branch, operands[1:], taints[1:], times) for branch in equation.bodies]
    context.equation = equation
    costs = [_macs([each]) for each in walks]
    dearest = costs.index(max(costs))
    if len(set(costs)) > 1:
        found.remarks.append(
            context.placed(f"of the branches of the 'cond', of {_listed(costs)} MACs,")
            + " the dearer one is counted"
        )
    walks = [each if i == dearest else _uncounted(each) for i, each in enumerate(walks)]
    found.bodies[number] = tuple(walks)
    outputs = []
    for position, var in enumerate(equation.source.outvars):
        branches = [
            inner.axes[atom]
            for inner, branch in zip(walks, equation.bodies, strict=True)
            if not isinstance(atom := branch.outputs[position], Literal)
        ]
        for other in branches[1:]:
            for first, second in zip(branches[0], other, strict=True):
                context.tie(first, second)
        outputs.append(branches[0] if branches else fixed_axes(var.aval.shape))
    return outputs


_BODIES = {"scan": _scan, "while": _while, "cond": _cond}


def _macs(walks: Sequence[Walk]) -> int:
    return sum(
        each.times * math.prod(map(len, each.multiplied))
        for found in walks
        for each in found.all_contractions()
        if each.multiplied
    )


def _stacked(found: Walk, steps: np.ndarray) -> Walk:
    """Return a walk whose contractions are counted once for every step that is kept."""
    bodies = {
        number: tuple(_stacked(body, steps) for body in bodies)
        for number, bodies in found.bodies.items()
    }
    contractions = [
        each._replace(multiplied=(steps, *each.multiplied)) if each.multiplied else each
        for each in found.contractions
    ]
    return found._replace(contractions=contractions, bodies=bodies)


def _uncounted(found: Walk) -> Walk:
    """Return a walk whose contractions are not counted."""
    bodies = {number: tuple(map(_uncounted, bodies)) for number, bodies in found.bodies.items()}
    contractions = [each._replace(times=0) for each in found.contractions]
    return found._replace(contractions=contractions, bodies=bodies)


def _listed(costs: Sequence[int]) -> str:
    return " and ".join(f"{cost:,}" for cost in costs)
