"""One walk over a program: the nodes of every value's axes, and where units are contracted."""

from typing import Any, NamedTuple

import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.nodes import Nodes
from rlprune_jax.graph.program import Equation, Literal, Program
from rlprune_jax.graph.rules import Axes, Context, fixed_axes, propagate


class Contraction(NamedTuple):
    """An equation that sums over units: a convolution or a dot.

    Attributes:
        equation: its number in the program.
        operand: which operand a gate multiplies (the one that depends on the input).
        axis: the contracted axes of that operand.
        weight: which operand holds the weights, or None when both depend on the input.
        multiplied: id arrays whose sizes multiply to the MACs of the equation.
        space: output positions (height, width) of a convolution, ``()`` of a dot.
        kernel: spatial size of a convolution's kernel, ``()`` of a dot.
    """

    equation: int
    operand: int
    axis: tuple[int, ...]
    weight: int | None
    multiplied: tuple[np.ndarray, ...]
    produced: tuple[np.ndarray, ...]
    consumed: tuple[np.ndarray, ...]
    space: tuple[int, ...]
    kernel: tuple[int, ...]


class Walk(NamedTuple):
    """Nodes of a program: ``axes[slot]`` has one id array per axis of the value in that slot."""

    nodes: Nodes
    axes: list[Axes | None]
    contractions: list[Contraction]


def walk(program: Program, variable_count: int) -> Walk:
    """Walk ``program``, whose first ``variable_count`` inputs are variables.

    Axes of variables get nodes of their own; axes of all other inputs are fixed.
    """
    context = Context()
    axes: list[Axes | None] = [None] * len(program.avals)
    depends = [False] * len(program.avals)
    for number, slot in enumerate(program.inputs):
        shape = program.avals[slot].shape
        depends[slot] = number >= variable_count
        axes[slot] = (
            fixed_axes(shape)
            if depends[slot]
            else tuple(context.nodes.fresh(size) for size in shape)
        )
    for slot, value in program.constants.items():
        axes[slot] = tuple(context.nodes.fresh(size) for size in np.shape(value))

    contractions = []
    for number, equation in enumerate(program.equations):
        operands = [_axes_of(context, axes, atom) for atom in equation.inputs]
        shapes = [tuple(program.avals[slot].shape) for slot in equation.outputs]
        outputs = propagate(context, equation, operands, shapes)
        for slot, ids in zip(equation.outputs, outputs, strict=True):
            axes[slot] = ids
        tainted = [not isinstance(atom, Literal) and depends[atom] for atom in equation.inputs]
        for slot in equation.outputs:
            depends[slot] = any(tainted)
        found = _contraction(number, equation, operands, tainted, outputs)
        if found is not None:
            contractions.append(found)
    context.reshapes.resolve()
    return Walk(context.nodes, axes, contractions)


def _axes_of(context: Context, axes: list[Axes | None], atom: Any) -> Axes:
    if isinstance(atom, Literal):
        return tuple(context.nodes.fresh(size) for size in np.shape(atom.value))
    found = axes[atom]
    assert found is not None, "a program reads only values that it has computed"
    return found


def _contraction(
    number: int, equation: Equation, operands: list[Axes], tainted: list[bool], outputs: list[Axes]
) -> Contraction | None:
    if equation.name == "dot_general":
        contract, batch = equation.params["dimension_numbers"]
        weight = None if tainted[0] and tainted[1] else (0 if tainted[1] else 1)
        gated = 1 if weight == 0 else 0
        free = [
            tuple(ids for i, ids in enumerate(side) if i not in (*contract[k], *batch[k]))
            for k, side in enumerate(operands)
        ]
        consumed = tuple(operands[gated][i] for i in contract[gated])
        return Contraction(
            number,
            gated,
            tuple(contract[gated]),
            weight,
            (*outputs[0], *consumed),
            free[weight] if weight is not None else (),
            tuple(operands[k][i] for k in (0, 1) for i in contract[k]),
            (),
            (),
        )
    if equation.name in primitives.CONVOLUTIONS:
        image, kernel, output = primitives.convolution_axes(equation.name, equation.params)
        kernel_in = operands[1][kernel[1]]
        depthwise = equation.params["feature_group_count"] > 1 and len(kernel_in) == 1
        channels = operands[0][image[1]]
        spatial = tuple(operands[1][i] for i in kernel[2:])
        return Contraction(
            number,
            0,
            () if depthwise else (image[1],),
            1 if not tainted[1] else None,
            (*outputs[0], kernel_in, *spatial),
            (operands[1][kernel[0]],) if not depthwise else (),
            () if depthwise else (channels, kernel_in),
            tuple(len(outputs[0][i]) for i in output[2:]),
            tuple(len(ids) for ids in spatial),
        )
    return None
