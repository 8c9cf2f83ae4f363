"""Where units are made and summed, and what a gate or a count needs of it."""

from typing import Any, NamedTuple

import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.program import Equation
from rlprune_jax.graph.rules import Axes, Context, fixed, fixed_axes, register


class Contraction(NamedTuple):
    """Describe an equation that makes units or sums over them.

    It is a convolution, a dot or a lookup.

    Attributes:
        equation: its number in the program.
        operand: which operand a gate multiplies (the one that depends on the input).
        axis: the contracted axes of that operand.
        weight: which operand holds the weights, or None when both depend on the input.
        multiplied: id arrays whose sizes multiply to the MACs of the equation; none of a lookup in
            a table (of an embedding), which makes units and sums over nothing.
        produced: id arrays of the weights' out-axes; none of a depthwise kernel, which makes no
            units of its own.
        consumed: id arrays of the weights' in-axes (of the gated operand's where there are none).
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

    @property
    def kind(self) -> str:
        """Tell ``"convolution"`` from ``"dot"``."""
        return "convolution" if self.kernel else "dot"


@register("dot_general")
def _dot_general(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    (left_contract, right_contract), (left_batch, right_batch) = equation.params[
        "dimension_numbers"
    ]
    left, right = axes
    for i, j in [
        *zip(left_contract, right_contract, strict=True),
        *zip(left_batch, right_batch, strict=True),
    ]:
        context.nodes.tie(left[i], right[j])
    return [
        (
            *(left[i] for i in left_batch),
            *(ids for i, ids in enumerate(left) if i not in (*left_contract, *left_batch)),
            *(ids for j, ids in enumerate(right) if j not in (*right_contract, *right_batch)),
        )
    ]


@register(*primitives.CONVOLUTIONS)
def _convolution(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    nodes, params = context.nodes, equation.params
    in_axes, kernel_axes, out_axes = primitives.convolution_axes(equation.name, params)
    image, kernel = axes
    groups = params["feature_group_count"]
    for ids in [*(image[i] for i in in_axes[2:]), *(kernel[i] for i in kernel_axes[2:])]:
        nodes.freeze(ids, "a position of a convolution")
    channels, kernel_in = image[in_axes[1]], kernel[kernel_axes[1]]
    kernel_out = kernel[kernel_axes[0]]
    if params.get("batch_group_count", 1) != 1:
        context.freeze_all(axes, "a convolution with batch groups")
        return [fixed_axes(shapes[0])]
    if groups == 1:
        nodes.tie(channels, kernel_in)
    elif len(kernel_in) == 1:
        # Depthwise: a channel goes straight on to the outputs made of it.
        nodes.tie(np.repeat(channels, len(kernel_out) // len(channels)), kernel_out)
        nodes.freeze(kernel_in, "the one input channel of a depthwise kernel")
    else:
        # Groups stay of equal size when the same position goes from each of them.
        nodes.tie(channels, np.tile(kernel_in, groups))
        by_group = kernel_out.reshape(groups, -1)
        nodes.tie(np.tile(by_group[0], groups), kernel_out)
    output: list[Any] = [fixed(size) for size in shapes[0]]
    output[out_axes[0]] = image[in_axes[0]]
    output[out_axes[1]] = kernel_out
    return [tuple(output)]


def contraction(
    number: int, equation: Equation, operands: list[Axes], tainted: list[bool], outputs: list[Axes]
) -> Contraction | None:
    """Describe a convolution, dot or lookup of the input.

    Any other equation gives None.

    Args:
        number: of the equation in its program.
        equation: to describe.
        operands: nodes of its operands' axes.
        tainted: which operands depend on the network's input.
        outputs: nodes of its outputs' axes.
    """
    if equation.name == "dot_general":
        contract, batch = equation.params["dimension_numbers"]
        weight = None if tainted[0] and tainted[1] else (0 if tainted[1] else 1)
        gated = 1 if weight == 0 else 0
        free = [
            tuple(ids for i, ids in enumerate(side) if i not in (*contract[k], *batch[k]))
            for k, side in enumerate(operands)
        ]
        summed = 1 - gated if weight is not None else gated
        consumed = tuple(operands[summed][i] for i in contract[summed])
        return Contraction(
            number,
            gated,
            tuple(contract[gated]),
            weight,
            (*outputs[0], *consumed),
            free[weight] if weight is not None else (),
            consumed,
            (),
            (),
        )
    if equation.name in primitives.CONVOLUTIONS:
        image, kernel, output = primitives.convolution_axes(equation.name, equation.params)
        kernel_in = operands[1][kernel[1]]
        depthwise = equation.params["feature_group_count"] > 1 and len(kernel_in) == 1
        spatial = tuple(operands[1][i] for i in kernel[2:])
        return Contraction(
            number,
            0,
            () if depthwise else (image[1],),
            1 if not tainted[1] else None,
            (*outputs[0], kernel_in, *spatial),
            (operands[1][kernel[0]],) if not depthwise else (),
            () if depthwise else (kernel_in,),
            tuple(len(outputs[0][i]) for i in output[2:]),
            tuple(len(ids) for ids in spatial),
        )
    if equation.name == "gather" and tainted == [False, True]:
        whole = tuple(
            ids
            for ids, size in zip(operands[0], equation.params["slice_sizes"], strict=True)
            if len(ids) == size > 1
        )
        return Contraction(number, 1, (), 0, (), whole, (), (), ())
    return None
