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
        carried: nodes of the weights' axes, by which they are named; () without weights.
        depends: whether it depends on the network's input, so that every example costs its own.
        times: how often it runs: the length of the loops around it, 0 in the cheaper branch of a
            choice.
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
    carried: Axes = ()
    depends: bool = True
    times: int = 1

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
        context.tie(left[i], right[j])
    return [
        (
            *(left[i] for i in left_batch),
            *(ids for i, ids in enumerate(left) if i not in (*left_contract, *left_batch)),
            *(ids for j, ids in enumerate(right) if j not in (*right_contract, *right_batch)),
        )
    ]


@register(*primitives.CONVOLUTIONS)
def _convolution(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    params = equation.params
    in_axes, kernel_axes, out_axes = primitives.convolution_axes(equation.name, params)
    image, kernel = axes
    groups = params["feature_group_count"]
    for ids in [*(image[i] for i in in_axes[2:]), *(kernel[i] for i in kernel_axes[2:])]:
        context.freeze(ids, "a position of a convolution")
    channels, kernel_in = image[in_axes[1]], kernel[kernel_axes[1]]
    kernel_out = kernel[kernel_axes[0]]
    if params.get("batch_group_count", 1) != 1:
        context.freeze_all(axes, "a convolution with batch groups")
        return [fixed_axes(shapes[0])]
    if groups == 1:
        context.tie(channels, kernel_in)
    elif len(kernel_in) == 1:
        # Depthwise: a channel goes straight on to the outputs made of it.
        context.tie(np.repeat(channels, len(kernel_out) // len(channels)), kernel_out)
        context.freeze(kernel_in, "the one input channel of a depthwise kernel")
    else:
        # Groups stay of equal size when the same position goes from each of them.
        context.tie(channels, np.tile(kernel_in, groups))
        by_group = kernel_out.reshape(groups, -1)
        context.tie(np.tile(by_group[0], groups), kernel_out)
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
    found = None
    if equation.name in ("dot_general", *primitives.RAGGED):
        found = _dot(number, equation, operands, tainted, outputs)
    elif equation.name in primitives.CONVOLUTIONS:
        found = _convolved(number, equation, operands, tainted, outputs)
    elif equation.name == "gather" and tainted == [False, True]:
        whole = tuple(
            ids
            for ids, size in zip(operands[0], equation.params["slice_sizes"], strict=True)
            if len(ids) == size > 1
        )
        found = Contraction(number, 1, (), 0, (), whole, (), (), ())
    if found is None:
        return None
    carried = () if found.weight is None else operands[found.weight]
    return found._replace(carried=carried, depends=any(tainted))


def _dot(
    number: int, equation: Equation, operands: list[Axes], tainted: list[bool], outputs: list[Axes]
) -> Contraction:
    contract, batch = _dimensions(equation)
    weight = None if tainted[0] and tainted[1] else (0 if tainted[1] else 1)
    gated = 1 if weight == 0 else 0
    free = [
        tuple(ids for i, ids in enumerate(side) if i not in (*contract[k], *batch[k]))
        for k, side in enumerate(operands[:2])
    ]
    if equation.name in primitives.RAGGED:
        numbers = equation.params["ragged_dot_dimension_numbers"]
        free[1] = tuple(
            ids
            for i, ids in enumerate(operands[1])
            if i not in (*contract[1], *batch[1], *numbers.rhs_group_dimensions)
        )
    summed = 1 - gated if weight is not None else gated
    consumed = tuple(operands[summed][i] for i in contract[summed])
    return Contraction(
        equation=number,
        operand=gated,
        axis=tuple(contract[gated]),
        weight=weight,
        multiplied=(*outputs[0], *consumed),
        produced=free[weight] if weight is not None else (),
        consumed=consumed,
        space=(),
        kernel=(),
    )


def _convolved(
    number: int, equation: Equation, operands: list[Axes], tainted: list[bool], outputs: list[Axes]
) -> Contraction:
    image, kernel, output = primitives.convolution_axes(equation.name, equation.params)
    kernel_in = operands[1][kernel[1]]
    depthwise = equation.params["feature_group_count"] > 1 and len(kernel_in) == 1
    spatial = tuple(operands[1][i] for i in kernel[2:])
    return Contraction(
        equation=number,
        operand=0,
        axis=() if depthwise else (image[1],),
        weight=1 if not tainted[1] else None,
        multiplied=(*outputs[0], kernel_in, *spatial),
        produced=(operands[1][kernel[0]],) if not depthwise else (),
        consumed=() if depthwise else (kernel_in,),
        space=tuple(len(outputs[0][i]) for i in output[2:]),
        kernel=tuple(len(ids) for ids in spatial),
    )


Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def _dimensions(equation: Equation) -> Dimensions:
    """Return the contracted and the batch axes of a dot."""
    if equation.name in primitives.RAGGED:
        numbers = equation.params["ragged_dot_dimension_numbers"]
        return numbers.dot_dimension_numbers
    return equation.params["dimension_numbers"]


@register(*primitives.RAGGED)
def _ragged_dot(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (left_contract, right_contract), (left_batch, right_batch) = _dimensions(equation)
    left, right, sizes = axes
    (ragged,) = numbers.lhs_ragged_dimensions
    if ragged in (*left_contract, *left_batch):
        context.freeze_all(axes, f"grouped by '{equation.name}' along what it sums over")
        return [fixed_axes(shapes[0])]
    for ids in [left[ragged], *sizes, *(right[i] for i in numbers.rhs_group_dimensions)]:
        context.freeze(ids, f"an axis that '{equation.name}' groups")
    for i, j in [
        *zip(left_contract, right_contract, strict=True),
        *zip(left_batch, right_batch, strict=True),
    ]:
        context.tie(left[i], right[j])
    gone = (*right_contract, *right_batch, *numbers.rhs_group_dimensions)
    return [
        (
            *(left[i] for i in left_batch),
            *(ids for i, ids in enumerate(left) if i not in (*left_contract, *left_batch)),
            *(ids for j, ids in enumerate(right) if j not in gone),
        )
    ]
