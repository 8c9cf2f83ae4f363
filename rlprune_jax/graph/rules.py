"""How each primitive hands the nodes of its operands' axes on to its outputs' axes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.nodes import INPUT, Nodes
from rlprune_jax.graph.program import Equation
from rlprune_jax.graph.reshaping import Reshapes

Axes = tuple[np.ndarray, ...]
"""One id array per axis of an array."""

Rule = Callable[["Context", Equation, list[Axes], list[tuple[int, ...]]], list[Axes]]
"""``(context, equation, axes of the operands, shapes of the outputs) -> axes of the outputs``."""

RULES: dict[str, Rule] = {}


class Context:
    """What the rules write to: the nodes, and the joins of reshapes still to be resolved."""

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.reshapes = Reshapes(self.nodes)

    def freeze_all(self, axes: list[Axes], reason: str) -> None:
        """Freeze every axis of every operand."""
        for operand in axes:
            for ids in operand:
                self.nodes.freeze(ids, reason)


def fixed(count: int) -> np.ndarray:
    """Return the id array of an axis that is never pruned."""
    return np.full(count, INPUT, np.int64)


def fixed_axes(shape: tuple[int, ...]) -> Axes:
    """Return id arrays for an array none of whose axes is pruned."""
    return tuple(fixed(count) for count in shape)


def propagate(
    context: Context, equation: Equation, axes: list[Axes], shapes: list[tuple[int, ...]]
) -> list[Axes]:
    """Apply the rule of ``equation``; an unknown primitive freezes what passes through it."""
    name = equation.name
    rule = RULES.get(name)
    if rule is None:
        context.freeze_all(axes, f"passes through '{name}', which the graph does not know")
        return [fixed_axes(shape) for shape in shapes]
    return rule(context, equation, axes, shapes)


def _register(*names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


@_register(*primitives.ELEMENTWISE, "custom_jvp_call")
def _elementwise(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    operands = [operand for operand in axes if len(operand) == len(shapes[0])]
    output = []
    for position, size in enumerate(shapes[0]):
        ids = [operand[position] for operand in operands]
        whole = [each for each in ids if len(each) == size]
        for each in whole[1:]:
            context.nodes.tie(whole[0], each)
        for each in ids:
            if len(each) != size:
                context.nodes.freeze(each, "stretched by broadcasting")
        output.append(whole[0] if whole else context.nodes.fresh(size))
    return [tuple(output)] * len(shapes)


@_register("optimization_barrier")
def _pass_through(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return list(axes)


@_register("broadcast_in_dim")
def _broadcast(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    output: list[Any] = [None] * len(shapes[0])
    for ids, position in zip(axes[0], equation.params["broadcast_dimensions"], strict=True):
        if len(ids) == shapes[0][position]:
            output[position] = ids
        else:
            context.nodes.freeze(ids, "stretched by broadcasting")
    return [
        tuple(
            context.nodes.fresh(size) if ids is None else ids
            for ids, size in zip(output, shapes[0], strict=True)
        )
    ]


@_register("iota", "random_bits", "rng_uniform", "empty", "empty2")
def _generate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "shapes a generated array")
    return [tuple(context.nodes.fresh(size) for size in shape) for shape in shapes]


@_register("random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split")
def _keys(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "part of a random key")
    return [fixed_axes(shape) for shape in shapes]


@_register("reshape")
def _reshape(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return [context.reshapes.reshape(axes[0], shapes[0])]


@_register("transpose")
def _transpose(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return [tuple(axes[0][position] for position in equation.params["permutation"])]


@_register("squeeze")
def _squeeze(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    dropped = equation.params["dimensions"]
    for position in dropped:
        context.nodes.freeze(axes[0][position], "squeezed away")
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@_register("rev")
def _reverse(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    reversed_ = equation.params["dimensions"]
    return [tuple(ids[::-1] if i in reversed_ else ids for i, ids in enumerate(axes[0]))]


@_register(*primitives.REDUCTIONS)
def _reduce(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    dropped = equation.params["axes"]
    for position in dropped:
        context.nodes.freeze(
            axes[0][position], f"read whole by '{equation.name}' (a norm or mean over the units)"
        )
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@_register(*primitives.CUMULATIVE)
def _cumulate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.nodes.freeze(axes[0][equation.params["axis"]], f"mixed by '{equation.name}'")
    return [axes[0]]


@_register("sort")
def _sort(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    for operand in axes:
        context.nodes.freeze(operand[equation.params["dimension"]], "mixed by 'sort'")
    tied = _elementwise(context, equation, axes, shapes[:1])[0]
    return [tied] * len(shapes)


@_register(*primitives.WINDOWED)
def _reduce_window(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    params = equation.params
    operand = axes[0]
    untouched = [
        window == stride == base == dilation == 1 and tuple(padding) == (0, 0)
        for window, stride, base, dilation, padding in zip(
            params["window_dimensions"],
            params["window_strides"],
            params["base_dilation"],
            params["window_dilation"],
            params["padding"],
            strict=True,
        )
    ]
    for position, same in enumerate(untouched):
        if not same:
            context.nodes.freeze(operand[position], f"pooled by '{equation.name}'")
    output = tuple(
        ids if same else fixed(size)
        for ids, same, size in zip(operand, untouched, shapes[0], strict=True)
    )
    return [output] * len(shapes)


@_register("slice")
def _slice(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    params = equation.params
    strides = params["strides"] or (1,) * len(axes[0])
    return [
        tuple(
            ids[start:limit:stride]
            for ids, start, limit, stride in zip(
                axes[0], params["start_indices"], params["limit_indices"], strides, strict=True
            )
        )
    ]


@_register("split")
def _split(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = equation.params["axis"]
    starts = np.cumsum((0, *equation.params["sizes"]))
    return [
        tuple(ids[first:last] if i == position else ids for i, ids in enumerate(axes[0]))
        for first, last in zip(starts[:-1], starts[1:], strict=True)
    ]


@_register("pad")
def _pad(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    output = []
    configuration = equation.params["padding_config"]
    for ids, (low, high, interior), size in zip(axes[0], configuration, shapes[0], strict=True):
        if low == high == interior == 0:
            output.append(ids)
        elif not np.any(ids != INPUT):
            output.append(fixed(size))
        elif min(low, high) < 0 or interior:
            context.nodes.freeze(ids, "padded inside or cropped")
            output.append(fixed(size))
        else:
            # Fresh, so that zero-padded channels may be tied to real ones by a residual sum.
            nodes = context.nodes
            output.append(np.concatenate([nodes.fresh(low), ids, nodes.fresh(high)]))
    return [tuple(output)]


@_register("concatenate")
def _concatenate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = equation.params["dimension"]
    output = []
    for i in range(len(shapes[0])):
        if i == position:
            output.append(np.concatenate([operand[i] for operand in axes]))
        else:
            for operand in axes[1:]:
                context.nodes.tie(axes[0][i], operand[i])
            output.append(axes[0][i])
    return [tuple(output)]


@_register("dot_general")
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


@_register(*primitives.CONVOLUTIONS)
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


@_register("gather")
def _gather(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    params = equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    operand, indices = axes
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    whole = {
        i: operand[i] for i, ids in enumerate(operand) if i not in gone and sizes[i] == len(ids)
    }
    for i, ids in enumerate(operand):
        if i not in whole:
            context.nodes.freeze(ids, "looked up by 'gather'")
    for ids in indices:
        context.nodes.freeze(ids, "an index of 'gather'")
    output: list[Any] = [fixed(size) for size in shapes[0]]
    kept = [i for i in range(len(operand)) if i not in gone]
    for i, position in zip(kept, numbers.offset_dims, strict=True):
        if i in whole:
            output[position] = whole[i]
    return [tuple(output)]


@_register("dynamic_slice")
def _dynamic_slice(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    output = []
    for ids, size in zip(axes[0], equation.params["slice_sizes"], strict=True):
        if len(ids) != size:
            context.nodes.freeze(ids, "cut at a position known only at run time")
        output.append(ids if len(ids) == size else fixed(size))
    return [tuple(output)]
