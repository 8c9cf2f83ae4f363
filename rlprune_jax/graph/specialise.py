"""Evaluating one equation on arrays whose pruned indices are gone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlprune_jax.graph import primitives
from rlprune_jax.graph.program import Equation, bind

Alive = tuple[np.ndarray, ...]
"""For each axis of the dense array bool[size]: which indices are still there."""

Specialised = Callable[[Equation, list[Any], list[Alive], list[Alive]], list[Any]]

_CHANGED: dict[str, Specialised] = {}


def specialise(
    equation: Equation, operands: list[Any], alive_in: list[Alive | None], alive_out: list[Alive]
) -> list[Any]:
    """Evaluate ``equation`` on slim operands.

    Args:
        equation: of the dense program.
        operands: slim arrays.
        alive_in: which dense indices each operand still has; None for a literal.
        alive_out: which dense indices each output is to have.

    Returns:
        The slim outputs.
    """
    inputs = [
        tuple(np.ones(size, bool) for size in np.shape(operand)) if alive is None else alive
        for operand, alive in zip(operands, alive_in, strict=True)
    ]
    if not any(map(_is_cut, [*inputs, *alive_out])):
        return equation.bind(*operands)
    rule = _CHANGED.get(equation.name)
    if rule is not None:
        return rule(equation, operands, inputs, alive_out)
    if not any(map(_is_cut, inputs)):
        # Generated at the dense shape (random bits, iota), then cut: equal to the masked network's.
        outputs = equation.bind(*operands)
        return [_cut(value, alive) for value, alive in zip(outputs, alive_out, strict=True)]
    return equation.bind(*operands)


def _is_cut(alive: Alive) -> bool:
    return any(not each.all() for each in alive)


def _cut(value: Any, alive: Alive) -> Any:
    for axis, each in enumerate(alive):
        if not each.all():
            value = jnp.take(value, np.flatnonzero(each), axis=axis)
    return value


def _sizes(alive: Alive) -> tuple[int, ...]:
    return tuple(int(each.sum()) for each in alive)


def _register(*names: str) -> Callable[[Specialised], Specialised]:
    def add(rule: Specialised) -> Specialised:
        _CHANGED.update(dict.fromkeys(names, rule))
        return rule

    return add


@_register("custom_jvp_call")
def _custom_jvp(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    if equation.source.params["call_jaxpr"].jaxpr.debug_info.func_name == "relu":
        return [jax.nn.relu(operands[0])]
    return _evaluate_elementwise(equation.params["call_jaxpr"], operands)


def _evaluate_elementwise(closed: Any, operands: list[Any]) -> list[Any]:
    # Elementwise bodies hold no shapes, so their equations run on any.
    env = dict(zip(closed.jaxpr.invars, operands, strict=True))
    env.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    for eqn in closed.jaxpr.eqns:
        values = [atom.val if hasattr(atom, "val") else env[atom] for atom in eqn.invars]
        inner = eqn.params.get("jaxpr")
        if inner is not None:
            results = _evaluate_elementwise(inner, values)
        else:
            results = bind(eqn.primitive, eqn.params, values)
        env.update(zip(eqn.outvars, results, strict=True))
    return [atom.val if hasattr(atom, "val") else env[atom] for atom in closed.jaxpr.outvars]


@_register("broadcast_in_dim")
def _broadcast(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    dimensions = equation.params["broadcast_dimensions"]
    return [lax.broadcast_in_dim(operands[0], _sizes(outputs[0]), dimensions)]


@_register("reshape")
def _reshape(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    return [lax.reshape(operands[0], _sizes(outputs[0]))]


@_register("iota")
def _iota(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    params = equation.params
    values = np.flatnonzero(outputs[0][params["dimension"]]).astype(params["dtype"])
    return [lax.broadcast_in_dim(jnp.asarray(values), _sizes(outputs[0]), (params["dimension"],))]


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
    starts = np.cumsum([0, *(int(alive[axis].sum()) for alive in outputs)])
    return [
        lax.slice_in_dim(operands[0], int(first), int(last), axis=axis)
        for first, last in zip(starts[:-1], starts[1:], strict=True)
    ]


def _take_run(value: Any, places: np.ndarray, axis: int) -> Any:
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


@_register("dynamic_slice")
def _dynamic_slice(equation: Equation, operands: list, inputs: list, outputs: list) -> list:
    return equation.bind(*operands, slice_sizes=_sizes(outputs[0]))
