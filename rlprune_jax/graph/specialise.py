"""Evaluating one equation on arrays whose pruned indices are gone."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from rlprune_jax.graph import primitives
from rlprune_jax.graph.cutting import Alive, cut, is_cut
from rlprune_jax.graph.program import Equation, Value
from rlprune_jax.graph.rules import top_k_axis

Size = int
"""Of an axis; symbolic ones (``jax.export``) are handed on as they are."""

Specialised = Callable[[Equation, list[Value], list[Alive], list[Alive]], list[Value]]

_CHANGED: dict[str, Specialised] = {}


def specialise(
    equation: Equation, operands: list[Value], alive_in: list[Alive], alive_out: list[Alive]
) -> list[Value]:
    """Evaluate an equation on slim operands.

    Args:
        equation: of the dense program.
        operands: slim arrays.
        alive_in: which dense indices each operand still has; () for a literal.
        alive_out: which dense indices each output is to have.

    Returns:
        The slim outputs.
    """
    if not any(map(is_cut, [*alive_in, *alive_out])):
        return equation.bind(*operands)
    rule = _CHANGED.get(equation.name)
    if rule is not None:
        return rule(equation, operands, alive_in, alive_out)
    if not any(map(is_cut, alive_in)):
        # Generated at the dense shape (random bits, iota), then cut: equal to the masked network's.
        outputs = equation.bind(*operands)
        return [cut(value, alive) for value, alive in zip(outputs, alive_out, strict=True)]
    return equation.bind(*operands)


def _sizes(alive: Alive, dense: tuple[Size, ...]) -> tuple[Size, ...]:
    """Return the sizes of a slim array.

    An axis that is not cut keeps its dense size, symbolic or not.
    """
    return tuple(
        size if each.all() else int(each.sum()) for each, size in zip(alive, dense, strict=True)
    )


def _out_sizes(equation: Equation, alive: Alive) -> tuple[Size, ...]:
    return _sizes(alive, equation.source.outvars[0].aval.shape)


def _register(*names: str) -> Callable[[Specialised], Specialised]:
    def add(rule: Specialised) -> Specialised:
        _CHANGED.update(dict.fromkeys(names, rule))
        return rule

    return add


@_register("broadcast_in_dim")
def _broadcast(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    dimensions = equation.params["broadcast_dimensions"]
    return [lax.broadcast_in_dim(operands[0], _out_sizes(equation, outputs[0]), dimensions)]


@_register("reshape")
def _reshape(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    sizes = _out_sizes(equation, outputs[0])
    if any(isinstance(size, int) and size == 0 for size in sizes):
        # An axis of size one that the reshape adds, and whose one unit is gone.
        return [jnp.zeros(sizes, operands[0].dtype)]
    return [lax.reshape(operands[0], sizes)]


@_register("iota")
def _iota(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    params = equation.params
    values = np.flatnonzero(outputs[0][params["dimension"]]).astype(params["dtype"])
    return [
        lax.broadcast_in_dim(
            jnp.asarray(values), _out_sizes(equation, outputs[0]), (params["dimension"],)
        )
    ]


@_register("slice")
def _slice(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    params = equation.params
    value = operands[0]
    strides = params["strides"] or (1,) * value.ndim
    for axis, (start, limit, stride) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        wanted = np.zeros(len(inputs[0][axis]), bool)
        wanted[start:limit:stride] = True
        places = np.flatnonzero(wanted[inputs[0][axis]])
        value = _take_run(value, places, axis)
    return [value]


@_register("split")
def _split(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    axis = equation.params["axis"]
    return list(lax.split(operands[0], [int(alive[axis].sum()) for alive in outputs], axis))


def _take_run(value: Value, places: np.ndarray, axis: int) -> Value:
    if len(places) == value.shape[axis]:
        return value
    if len(places) and np.array_equal(places, places[0] + np.arange(len(places))):
        return lax.slice_in_dim(value, int(places[0]), int(places[-1]) + 1, axis=axis)
    return jnp.take(value, places, axis=axis)


@_register("pad")
def _pad(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    configuration = []
    for (low, high, interior), alive, result in zip(
        equation.params["padding_config"], inputs[0], outputs[0], strict=True
    ):
        if not (alive.all() and result.all()):
            low = int(result[:low].sum())
            high = int(result[len(result) - high :].sum()) if high else 0
        configuration.append((low, high, interior))
    return [lax.pad(operands[0], operands[1], configuration)]


@_register(*primitives.CONVOLUTIONS)
def _convolution(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    groups = equation.params["feature_group_count"]
    if groups > 1:
        image, kernel, _ = primitives.convolution_axes(equation.name, equation.params)
        if len(inputs[1][kernel[1]]) == 1:
            groups = operands[0].shape[image[1]]
    return equation.bind(*operands, feature_group_count=groups)


@_register("gather")
def _gather(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    sizes = tuple(
        int(alive.sum()) if size == len(alive) else size
        for size, alive in zip(equation.params["slice_sizes"], inputs[0], strict=True)
    )
    return equation.bind(*operands, slice_sizes=sizes)


def pick(equation: Equation, value: Value, axis: int, places: np.ndarray, alive: Alive) -> Value:
    """Take places of one axis, of which some are gone.

    Args:
        equation: a ``gather`` that permutes or selects.
        value: slim array.
        axis: of it.
        places: int[...], of the dense axis.
        alive: which indices the array still has.
    """
    wanted = alive[axis][places]
    ranks = (np.cumsum(alive[axis]) - 1)[places]
    # What is gone of a block of places is gone along one of its axes.
    others = [tuple(set(range(places.ndim)) - {i}) for i in range(places.ndim)]
    shape = [int(wanted.any(each).sum()) for each in others]
    taken = jnp.take(value, ranks[wanted].reshape(shape), axis=axis)
    offsets = equation.params["dimension_numbers"].offset_dims
    block = list(range(axis, axis + places.ndim))
    rest = [i for i in range(taken.ndim) if i not in block]
    order = [rest.pop(0) if i in offsets else block.pop(0) for i in range(taken.ndim)]
    return jnp.transpose(taken, order)


@_register("top_k")
def _top_k(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    alive = inputs[0][top_k_axis(equation)]
    values, places = equation.bind(*operands)
    # Told by their dense numbers, which is what an iota over the units compares them with.
    return [values, jnp.asarray(np.flatnonzero(alive), places.dtype)[places]]


@_register("dynamic_slice")
def _dynamic_slice(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    return equation.bind(*operands, slice_sizes=_out_sizes(equation, outputs[0]))
