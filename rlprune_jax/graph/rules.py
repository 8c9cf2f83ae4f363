"""How each primitive hands the nodes of its operands' axes on to its outputs' axes."""

from collections.abc import Callable
from itertools import pairwise
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

_OPAQUE = {
    "scan": "whose steps share one body although their units may differ",
    "while": "a loop that the graph does not look into",
    "cond": "whose branches may treat units differently",
    "pure_callback": "which runs on the host",
    "io_callback": "which runs on the host",
}
"""Why a primitive freezes what passes through it, where more can be said than its name."""


class Context:
    """Hold what rules write to.

    That is the nodes, and the joins of reshapes that are still to be resolved.
    """

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.reshapes = Reshapes(self.nodes)

    def freeze_all(self, axes: list[Axes], reason: str) -> None:
        """Freeze every axis of every operand."""
        for operand in axes:
            for ids in operand:
                self.nodes.freeze(ids, reason)


def fixed(count: int) -> np.ndarray:
    """Return the ids of an axis that is never pruned."""
    return np.full(count, INPUT, np.int64)


def fixed_axes(shape: tuple[int, ...]) -> Axes:
    """Return the ids of an array that is never pruned."""
    return tuple(fixed(count) for count in shape)


def propagate(
    context: Context, equation: Equation, axes: list[Axes], shapes: list[tuple[int, ...]]
) -> list[Axes]:
    """Apply the rule of an equation.

    A primitive without a rule freezes what passes through it.
    """
    name = equation.name
    rule = RULES.get(name)
    if rule is None:
        why = _OPAQUE.get(name, "which the graph does not know")
        context.freeze_all(axes, f"passes through '{name}', {why}")
        return [fixed_axes(shape) for shape in shapes]
    return rule(context, equation, axes, shapes)


def register(*names: str) -> Callable[[Rule], Rule]:
    """Make the decorated function the rule of the primitives ``names``."""

    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return add


@register(*primitives.ELEMENTWISE)
def _elementwise(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    operands = [operand for operand in axes if operand]
    if any(len(operand) != len(shapes[0]) for operand in operands):
        context.freeze_all(operands, f"takes another rank in '{equation.name}'")
        return [fixed_axes(shape) for shape in shapes]
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


@register("identity", "optimization_barrier")
def _pass_through(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return list(axes)


@register("broadcast_in_dim")
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


@register("iota", "random_bits", "rng_uniform", "empty", "empty2")
def _generate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "shapes a generated array")
    return [tuple(context.nodes.fresh(size) for size in shape) for shape in shapes]


@register("random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split")
def _keys(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "part of a random key")
    return [fixed_axes(shape) for shape in shapes]


@register("reshape")
def _reshape(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return [context.reshapes.reshape(axes[0], shapes[0])]


@register("transpose")
def _transpose(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return [tuple(axes[0][position] for position in equation.params["permutation"])]


@register("squeeze")
def _squeeze(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    dropped = equation.params["dimensions"]
    for position in dropped:
        context.nodes.freeze(axes[0][position], "squeezed away")
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@register("rev")
def _reverse(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    reversed_ = equation.params["dimensions"]
    return [tuple(ids[::-1] if i in reversed_ else ids for i, ids in enumerate(axes[0]))]


@register(*primitives.REDUCTIONS)
def _reduce(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    dropped = equation.params["axes"]
    for position in dropped:
        context.nodes.freeze(
            axes[0][position], f"read whole by '{equation.name}', as by a norm, softmax or mean"
        )
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@register(*primitives.COLLECTIVES)
def _reduce_collectively(
    context: Context, equation: Equation, axes: list[Axes], shapes: list
) -> list:
    return [_reduce(context, equation, [operand], shapes)[0] for operand in axes]


@register(*primitives.CUMULATIVE)
def _cumulate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.nodes.freeze(axes[0][equation.params["axis"]], f"mixed by '{equation.name}'")
    return [axes[0]]


@register("sort")
def _sort(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    for operand in axes:
        context.nodes.freeze(operand[equation.params["dimension"]], "mixed by 'sort'")
    tied = _elementwise(context, equation, axes, shapes[:1])[0]
    return [tied] * len(shapes)


@register(*primitives.WINDOWED)
def _reduce_window(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    params = equation.params
    operand = _elementwise(
        context, equation, [ids for ids in axes if ids], [tuple(map(len, axes[0]))]
    )[0]
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


@register("slice")
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


@register("split")
def _split(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = equation.params["axis"]
    starts = np.cumsum((0, *equation.params["sizes"]))
    return [
        tuple(ids[first:last] if i == position else ids for i, ids in enumerate(axes[0]))
        for first, last in pairwise(starts)
    ]


@register("pad")
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


@register("concatenate")
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


@register("stack")
def _stack(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = equation.params["axis"]
    tied = _elementwise(context, equation, axes, [tuple(map(len, axes[0]))])[0]
    return [(*tied[:position], fixed(len(axes)), *tied[position:])]


@register("unstack")
def _unstack(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = equation.params["axis"]
    context.nodes.freeze(axes[0][position], "taken apart by 'unstack'")
    return [axes[0][:position] + axes[0][position + 1 :]] * len(shapes)


@register("tile")
def _tile(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    times = equation.params["reps"]
    return [tuple(np.tile(ids, count) for ids, count in zip(axes[0], times, strict=True))]


@register("gather")
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


@register("dynamic_slice")
def _dynamic_slice(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    output = []
    for ids, size in zip(axes[0], equation.params["slice_sizes"], strict=True):
        if len(ids) != size:
            context.nodes.freeze(ids, "cut at a position known only at run time")
        output.append(ids if len(ids) == size else fixed(size))
    return [tuple(output)]
