"""How each primitive hands the nodes of its operands' axes on to its outputs' axes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from rlprune_jax.graph import primitives
from rlprune_jax.graph.nodes import INPUT, Nodes
from rlprune_jax.graph.program import Equation
from rlprune_jax.graph.reshaping import Reshapes, Tie

Axes = tuple[np.ndarray, ...]
"""One id array per axis of an array."""

Rule = Callable[["Context", Equation, list[Axes], list[tuple[int, ...]]], list[Axes]]
"""``(context, equation, axes of the operands, shapes of the outputs) -> axes of the outputs``."""

RULES: dict[str, Rule] = {}

_OPAQUE = {
    "pure_callback": "which runs on the host",
    "io_callback": "which runs on the host",
}
"""Why a primitive freezes what passes through it, where more can be said than its name."""


@dataclass
class Context:
    """Hold what rules read and write.

    Attributes:
        nodes: of all axes.
        reshapes: those that are still to be resolved.
        equation: under way, which reasons name.
        known: position of an operand of the equation -> its value, where constants tell it.
        parts: the split whose parts the operand of a reshape has, if it was only moved since.
        layers: whether the steps of a loop over residual layers may be pruned.
        leasts: axes of which a number must be kept, with the number.
    """

    nodes: Nodes = field(default_factory=Nodes)
    equation: Equation | None = None
    known: Mapping[int, np.ndarray] = field(default_factory=dict)
    parts: Tie | None = None
    layers: bool = False
    leasts: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reshapes = Reshapes(self.nodes)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Freeze nodes for a reason, with the equation's place."""
        self.nodes.freeze(ids, lambda: self.placed(reason))

    def freeze_all(self, axes: Sequence[Axes], reason: str) -> None:
        """Freeze every axis of every operand."""
        for operand in axes:
            for ids in operand:
                self.freeze(ids, reason)

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Merge classes, for the equation under way."""
        self.nodes.tie(first, second, self._how)

    def placed(self, text: str) -> str:
        """Return a text with the place of the equation."""
        place = "" if self.equation is None else self.equation.place
        return f"{text} at {place}" if place else text

    def _how(self) -> str:
        return "" if self.equation is None else self.placed(f"'{self.equation.name}'")


def fixed(count: int) -> np.ndarray:
    """Return the ids of an axis that is never pruned."""
    return np.full(count, INPUT, np.int64)


def fixed_axes(shape: tuple[int, ...]) -> Axes:
    """Return the ids of an array that is never pruned."""
    return tuple(fixed(count) for count in shape)


def fixed_like(ids: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of an axis of a frozen one.

    It is fixed for the same reason.
    """
    return np.full(count, ids[0] if len(ids) else INPUT, np.int64)


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
            context.tie(whole[0], each)
        for each in ids:
            if len(each) != size:
                context.freeze(each, "stretched by broadcasting")
        output.append(whole[0] if whole else context.nodes.generate(size))
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
            context.freeze(ids, "stretched by broadcasting")
    return [
        tuple(
            context.nodes.generate(size) if ids is None else ids
            for ids, size in zip(output, shapes[0], strict=True)
        )
    ]


@register("iota", "random_bits", "rng_uniform", "empty", "empty2")
def _generate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "shapes a generated array")
    return [tuple(context.nodes.generate(size) for size in shape) for shape in shapes]


@register("random_split")
def _split_keys(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    new = shapes[0][len(axes[0]) :]
    return [(*axes[0], *(context.nodes.generate(size) for size in new))]


@register("random_seed", "random_wrap", "random_unwrap", "random_fold_in")
def _keys(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze_all(axes, "part of a random key")
    return [fixed_axes(shape) for shape in shapes]


@register("reshape")
def _reshape(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    where = context.placed("'reshape'")
    return [context.reshapes.reshape(axes[0], shapes[0], where, context.parts)]


@register("transpose")
def _transpose(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    return [tuple(axes[0][position] for position in equation.params["permutation"])]


@register("squeeze")
def _squeeze(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    dropped = equation.params["dimensions"]
    for position in dropped:
        context.freeze(axes[0][position], "squeezed away")
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@register("rev")
def _reverse(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    reversed_ = equation.params["dimensions"]
    return [tuple(ids[::-1] if i in reversed_ else ids for i, ids in enumerate(axes[0]))]


@register(*primitives.REDUCTIONS)
def _reduce(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    # A sum or a maximum over units is read as a contraction is: what is pruned takes no part.
    dropped = equation.params["axes"]
    if equation.name not in primitives.READERS:
        for position in dropped:
            context.freeze(axes[0][position], f"read whole by '{equation.name}'")
    return [tuple(ids for position, ids in enumerate(axes[0]) if position not in dropped)]


@register(*primitives.COLLECTIVES)
def _reduce_collectively(
    context: Context, equation: Equation, axes: list[Axes], shapes: list
) -> list:
    dropped = equation.params["axes"]
    for operand in axes:
        for position in dropped:
            if isinstance(position, int):
                context.freeze(operand[position], f"read whole by '{equation.name}'")
    return [
        tuple(ids for position, ids in enumerate(operand) if position not in dropped)
        for operand in axes
    ]


@register(*primitives.CUMULATIVE)
def _cumulate(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    context.freeze(axes[0][equation.params["axis"]], f"mixed by '{equation.name}'")
    return [axes[0]]


@register("sort")
def _sort(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    for operand in axes:
        context.freeze(operand[equation.params["dimension"]], "mixed by 'sort'")
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
            context.freeze(operand[position], f"pooled by '{equation.name}'")
    output = tuple(
        ids if same else fixed_like(ids, size)
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
            context.freeze(ids, "padded inside or cropped")
            output.append(fixed_like(ids, size))
        else:
            # Fresh, so that zero-padded channels may be tied to real ones by a residual sum.
            nodes = context.nodes
            output.append(np.concatenate([nodes.generate(low), ids, nodes.generate(high)]))
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
                context.tie(axes[0][i], operand[i])
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
    context.freeze(axes[0][position], "taken apart by 'unstack'")
    return [axes[0][:position] + axes[0][position + 1 :]] * len(shapes)


@register("tile")
def _tile(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    times = equation.params["reps"]
    return [tuple(np.tile(ids, count) for ids, count in zip(axes[0], times, strict=True))]


@register("gather")
def _gather(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, indices = axes
    for ids in indices:
        context.freeze(ids, "an index of 'gather'")
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(operand)) if i not in gone]
    output: list[Any] = [fixed(size) for size in shapes[0]]
    for i, position in zip(kept, numbers.offset_dims, strict=True):
        if sizes[i] == len(operand[i]):
            output[position] = operand[i]
        else:
            context.freeze(operand[i], "looked up by 'gather'")
    places = picked(equation, context.known, tuple(map(len, operand)))
    if places is None:
        for i in gone:
            context.freeze(operand[i], "looked up by 'gather'")
        return [tuple(output)]
    axis, where = places
    free = [j for j in range(len(output)) if j not in numbers.offset_dims]
    taken = context.reshapes.reshape((operand[axis][where.reshape(-1)],), where.shape)
    for position, ids in zip(free, taken, strict=True):
        output[position] = ids
    return [tuple(output)]


Picked = tuple[int, np.ndarray]
"""The axis that a gather permutes or selects from, and int[...], the places taken."""


def picked(
    equation: Equation, known: Mapping[int, np.ndarray], sizes: tuple[int, ...]
) -> Picked | None:
    """Return the axis that a gather selects from, and places.

    Args:
        equation: a ``gather``.
        known: values of its operands, where constants tell them.
        sizes: of the array that is looked up.

    Returns:
        None where the places are not known, lie outside, or belong to several axes.
    """
    numbers = equation.params["dimension_numbers"]
    if 1 not in known or numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    places = known[1][..., 0]
    one = equation.params["slice_sizes"][axis] == 1 and axis in numbers.collapsed_slice_dims
    inside = places.size > 0 and places.min() >= 0 and places.max() < sizes[axis]
    if not one or numbers.collapsed_slice_dims != (axis,) or not inside or not places.ndim:
        return None
    return axis, places


@register(*primitives.SCATTERS)
def _scatter(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    numbers = equation.params["dimension_numbers"]
    operand, indices, updates = axes
    for ids in indices:
        context.freeze(ids, f"an index of '{equation.name}'")
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [i for i in range(len(operand)) if i not in gone]
    written = dict(zip(windows, numbers.update_window_dims, strict=True))
    for i, ids in enumerate(operand):
        whole = i in written and len(updates[written[i]]) == len(ids)
        if whole and i not in numbers.scatter_dims_to_operand_dims:
            context.tie(ids, updates[written[i]])
        else:
            context.freeze(ids, f"written in places by '{equation.name}'")
            if i in written:
                context.freeze(updates[written[i]], f"written in places by '{equation.name}'")
    for position, ids in enumerate(updates):
        if position not in numbers.update_window_dims:
            context.freeze(ids, f"written in places by '{equation.name}'")
    return [operand]


@register("dynamic_update_slice")
def _dynamic_update(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    for ids, update in zip(axes[0], axes[1], strict=True):
        if len(ids) == len(update):
            context.tie(ids, update)
        else:
            context.freeze(ids, "written at a position known only at run time")
            context.freeze(update, "written at a position known only at run time")
    return [axes[0]]


@register("top_k")
def _top_k(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    position = top_k_axis(equation)
    ids, count = axes[0][position], shapes[0][position]
    if count < len(ids):
        # As of a maximum, what is pruned takes no part (experts that are routed to).
        context.leasts.append((ids, count))
    else:
        context.freeze(ids, "mixed by 'top_k'")
    output = list(axes[0])
    output[position] = fixed(count)
    return [tuple(output)] * len(shapes)


def top_k_axis(equation: Equation) -> int:
    """Return the axis along which a ``top_k`` takes the largest."""
    return equation.params.get("axis", -1) % len(equation.source.invars[0].aval.shape)


@register("fft")
def _fft(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    first = len(axes[0]) - len(equation.params["fft_lengths"])
    output = list(axes[0])
    for position in range(first, len(output)):
        context.freeze(axes[0][position], "mixed by 'fft'")
        output[position] = fixed_like(axes[0][position], shapes[0][position])
    return [tuple(output)]


@register("dynamic_slice")
def _dynamic_slice(context: Context, equation: Equation, axes: list[Axes], shapes: list) -> list:
    output = []
    for ids, size in zip(axes[0], equation.params["slice_sizes"], strict=True):
        if len(ids) != size:
            context.freeze(ids, "cut at a position known only at run time")
        output.append(ids if len(ids) == size else fixed_like(ids, size))
    return [tuple(output)]
