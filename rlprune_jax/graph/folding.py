"""Values that a program computes from constants alone, as far as indices and counts need them."""

from collections.abc import Callable, Sequence

import numpy as np

from rlprune_jax.graph.program import Equation

MOST = 1 << 16
"""Entries of the largest value that is computed."""

_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
}
_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda value: 1 / np.sqrt(value),
    "square": np.square,
    "abs": np.abs,
    "not": np.invert,
    "floor": np.floor,
    "copy": lambda value: value,
    "stop_gradient": lambda value: value,
}


def fold(equation: Equation, operands: Sequence[np.ndarray]) -> np.ndarray | None:
    """Compute an equation whose operands are known.

    Use it for what shapes and index arithmetic become in a trace: ``N - ddof``, negative indices
    counted from the end, an ``iota`` that is turned. Everything else is None.

    Args:
        equation: with one output.
        operands: values of all its operands.
    """
    if len(equation.outputs) != 1 or equation.source is None:
        return operands[0] if equation.source is None and len(operands) == 1 else None
    aval = equation.source.outvars[0].aval
    if not all(isinstance(size, int) for size in aval.shape) or np.prod(aval.shape) > MOST:
        return None
    with np.errstate(all="ignore"):
        value = _value(equation, operands)
    if value is None or np.shape(value) != aval.shape:
        return None
    return np.asarray(value, aval.dtype)


def _value(equation: Equation, operands: Sequence[np.ndarray]) -> np.ndarray | None:
    name, params = equation.name, equation.params
    if name in _BINARY:
        return _BINARY[name](*operands)
    if name in _UNARY:
        return _UNARY[name](operands[0])
    if name == "div":
        whole = np.issubdtype(operands[0].dtype, np.integer)
        # Rounds towards zero as XLA does; division by zero is left to XLA.
        if whole and not operands[1].all():
            return None
        return np.trunc(operands[0] / operands[1]) if whole else operands[0] / operands[1]
    if name == "rem":
        return np.fmod(*operands) if operands[1].all() else None
    if name == "integer_pow":
        return operands[0] ** params["y"] if params["y"] >= 0 else 1 / operands[0] ** -params["y"]
    if name == "convert_element_type":
        return operands[0].astype(params["new_dtype"])
    if name == "select_n":
        return _select(operands)
    if name == "reshape":
        return operands[0].reshape(params["new_sizes"])
    if name == "squeeze":
        return operands[0].squeeze(params["dimensions"])
    if name == "transpose":
        return operands[0].transpose(params["permutation"])
    if name == "rev":
        return np.flip(operands[0], params["dimensions"])
    if name == "broadcast_in_dim":
        return _broadcast(operands[0], params["shape"], params["broadcast_dimensions"])
    if name == "iota":
        places = np.arange(params["shape"][params["dimension"]])
        return _broadcast(places, params["shape"], (params["dimension"],))
    if name == "concatenate":
        return np.concatenate(list(operands), params["dimension"])
    if name == "slice":
        strides = params["strides"] or (1,) * operands[0].ndim
        limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return operands[0][tuple(slice(*each) for each in limits)]
    return None


def _select(operands: Sequence[np.ndarray]) -> np.ndarray:
    which, *cases = operands
    shape = cases[0].shape
    return np.choose(np.broadcast_to(which, shape).astype(np.int64), cases)


def _broadcast(value: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    sizes = [1] * len(shape)
    for axis, size in zip(axes, value.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(value.reshape(sizes), shape)
