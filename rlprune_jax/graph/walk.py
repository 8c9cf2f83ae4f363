"""One walk over a program, which finds the nodes of every value's axes."""

from typing import NamedTuple

import numpy as np

from rlprune_jax.graph.contractions import Contraction, contraction
from rlprune_jax.graph.nodes import Nodes
from rlprune_jax.graph.program import Literal, Program
from rlprune_jax.graph.rules import Axes, Context, fixed_axes, propagate


class Walk(NamedTuple):
    """Hold what a walk over a program found.

    Attributes:
        nodes: of all axes.
        axes: for each slot, one id array per axis of its value.
        contractions: where units are made and summed.
    """

    nodes: Nodes
    axes: list[Axes]
    contractions: list[Contraction]


def walk(program: Program, variable_count: int) -> Walk:
    """Walk a program whose first inputs are variables.

    Axes of variables get nodes of their own; axes of all other inputs are fixed.
    """
    context = Context()
    axes: list[Axes] = [()] * len(program.avals)
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
        operands = [() if isinstance(atom, Literal) else axes[atom] for atom in equation.inputs]
        shapes = [tuple(program.avals[slot].shape) for slot in equation.outputs]
        outputs = propagate(context, equation, operands, shapes)
        for slot, ids in zip(equation.outputs, outputs, strict=True):
            axes[slot] = ids
        tainted = [not isinstance(atom, Literal) and depends[atom] for atom in equation.inputs]
        for slot in equation.outputs:
            depends[slot] = any(tainted)
        found = contraction(number, equation, operands, tainted, outputs)
        if found is not None:
            contractions.append(found)
    context.reshapes.resolve()
    return Walk(context.nodes, axes, contractions)
