"""JAX functions evaluated by NumPy in double precision: nothing to compile, and a second method.

Only a function's jaxpr is taken from JAX. Floats are float64 throughout, so that what is equal
mathematically is equal to some 1e-12; random bits are NumPy's, a function of the key.
"""

import math
import string
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import scipy.special
from jax.extend import core as jex_core

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "logistic": scipy.special.expit,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "erf_inv": scipy.special.erfinv,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "not": np.invert,
    "is_finite": np.isfinite,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
    "random_wrap": lambda x: x,
    "random_unwrap": lambda x: x,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda x, y: x / y if np.issubdtype(x.dtype, np.floating) else x // y,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "rem": np.fmod,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift,
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_and": np.all,
    "reduce_or": np.any,
}
OTHERS: dict[str, Callable[..., Any]] = {}


def evaluate(function: Callable[..., Any], *args: Any) -> Any:
    """Evaluate ``function(*args)``; floats come out as float64."""
    return compiled(function, *args)(*args)


def compiled(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Trace ``function`` once, for arguments of these shapes."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)

    def run(*args: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shape), _run(closed, jax.tree.leaves(args)))

    return run


def traced_once(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Return ``function`` as its own program: the same when traced again, and much quicker."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    flat = jex_core.jaxpr_as_fun(closed)
    return lambda *args: jax.tree.unflatten(jax.tree.structure(shape), flat(*jax.tree.leaves(args)))


def _run(closed: Any, leaves: list[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(_array, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, map(_array, leaves), strict=True))

    def read(atom: Any) -> Any:
        return _array(atom.val) if isinstance(atom, jex_core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    value = np.asarray(value)
    return value.astype(np.float64) if _is_floating(value.dtype) else value


def _is_floating(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def _dtype(dtype: Any) -> Any:
    return np.float64 if _is_floating(np.dtype(dtype)) else np.dtype(dtype)


def _apply(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        inner = params[CALLS[name]]
        closed = inner if hasattr(inner, "consts") else jex_core.ClosedJaxpr(inner, ())
        return _run(closed, operands)
    if name in UNARY:
        return [UNARY[name](*operands)]
    if name in BINARY:
        return [BINARY[name](*operands)]
    if name in REDUCTIONS:
        return [REDUCTIONS[name](operands[0], axis=params["axes"])]
    if name in OTHERS:
        result = OTHERS[name](equation, *operands)
        return result if equation.primitive.multiple_results else [result]
    raise NotImplementedError(f"'{name}' has no NumPy form; add it to {__name__}")


def rule(*names: str) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        OTHERS.update(dict.fromkeys(names, function))
        return function

    return add


def _shape(equation: Any) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape


@rule("scan")
def _scan(equation, *operands):
    params = equation.params
    consts, carries, length = params["num_consts"], params["num_carry"], params["length"]
    carry, rows = list(operands[consts : consts + carries]), []
    order = range(length)[::-1] if params["reverse"] else range(length)
    for i in order:
        step = [each[i] for each in operands[consts + carries :]]
        outputs = _run(params["jaxpr"], [*operands[:consts], *carry, *step])
        carry = outputs[:carries]
        rows.append(outputs[carries:])
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *(np.stack(each) for each in zip(*rows, strict=True))]


@rule("cond")
def _cond(equation, which, *operands):
    return _run(equation.params["branches"][int(which)], list(operands))


@rule("tile")
def _tile(equation, x):
    return np.tile(x, equation.params["reps"])


@rule("integer_pow")
def _integer_pow(equation, x):
    return x ** float(equation.params["y"])


@rule("convert_element_type")
def _convert(equation, x):
    return x.astype(_dtype(equation.params["new_dtype"]))


@rule("bitcast_convert_type")
def _bitcast(equation, x):
    return _array(x.view(equation.params["new_dtype"]))


@rule("select_n")
def _select(equation, which, *cases):
    which = which.astype(int)
    output = cases[0]
    for number, case in enumerate(cases[1:], start=1):
        output = np.where(which == number, case, output)
    return output


@rule("clamp")
def _clamp(equation, low, x, high):
    return np.clip(x, low, high)


@rule("broadcast_in_dim")
def _broadcast(equation, x):
    shape = [1] * len(_shape(equation))
    for size, position in zip(x.shape, equation.params["broadcast_dimensions"], strict=True):
        shape[position] = size
    return np.broadcast_to(x.reshape(shape), _shape(equation))


@rule("reshape", "squeeze")
def _reshape(equation, x):
    return x.reshape(_shape(equation))


@rule("transpose")
def _transpose(equation, x):
    return x.transpose(equation.params["permutation"])


@rule("rev")
def _reverse(equation, x):
    return np.flip(x, equation.params["dimensions"])


@rule("argmax")
def _argmax(equation, x):
    return np.argmax(x, axis=equation.params["axes"][0]).astype(equation.params["index_dtype"])


@rule("cumsum")
def _cumsum(equation, x):
    axis = equation.params["axis"]
    return (
        np.flip(np.cumsum(np.flip(x, axis), axis), axis)
        if equation.params["reverse"]
        else (np.cumsum(x, axis))
    )


@rule("iota")
def _iota(equation):
    size = _shape(equation)[equation.params["dimension"]]
    shape = [1] * len(_shape(equation))
    shape[equation.params["dimension"]] = size
    values = np.arange(size).astype(_dtype(equation.params["dtype"]))
    return np.broadcast_to(values.reshape(shape), _shape(equation))


@rule("concatenate")
def _concatenate(equation, *operands):
    return np.concatenate(operands, axis=equation.params["dimension"])


@rule("split")
def _split(equation, x):
    places = np.cumsum(equation.params["sizes"])[:-1]
    return np.split(x, places, axis=equation.params["axis"])


@rule("slice")
def _slice(equation, x):
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


@rule("pad")
def _pad(equation, x, value):
    assert all(interior == 0 for _, _, interior in equation.params["padding_config"])
    widths = [(low, high) for low, high, _ in equation.params["padding_config"]]
    assert min(min(pair) for pair in widths) >= 0
    return np.pad(x, widths, constant_values=value)


@rule("gather")
def _gather(equation, operand, indices):
    """Take along one axis: what indexing by an array of integers makes."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    (axis,) = numbers.start_index_map
    assert numbers.collapsed_slice_dims == (axis,) and not numbers.operand_batching_dims
    assert all(i == axis or size == operand.shape[i] for i, size in enumerate(sizes))
    taken = np.moveaxis(operand, axis, 0)[indices[..., 0]]
    rest = range(indices.ndim - 1, taken.ndim)
    return np.moveaxis(taken, list(rest), numbers.offset_dims)


@rule("dot_general")
def _dot(equation, x, y):
    (x_contract, y_contract), (x_batch, y_batch) = equation.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    x_names, y_names = [next(letters) for _ in x.shape], [next(letters) for _ in y.shape]
    for i, j in [
        *zip(x_contract, y_contract, strict=True),
        *zip(x_batch, y_batch, strict=True),
    ]:
        y_names[j] = x_names[i]
    output = [x_names[i] for i in x_batch]
    output += [each for i, each in enumerate(x_names) if i not in (*x_contract, *x_batch)]
    output += [each for j, each in enumerate(y_names) if j not in (*y_contract, *y_batch)]
    names = ["".join(each) for each in (x_names, y_names, output)]
    return np.einsum(f"{names[0]},{names[1]}->{names[2]}", x, y, optimize=True)


@rule("conv_general_dilated", "rlprune_convolution")
def _convolution(equation, image, kernel):
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        assert all(step == 1 for step in params["lhs_dilation"])
        assert params["batch_group_count"] == 1
        numbers = params["dimension_numbers"]
        assert numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
        assert numbers.rhs_spec == (3, 2, 0, 1)
    padded = np.pad(image, [(0, 0), *params["padding"], (0, 0)])
    dilation, strides = params["rhs_dilation"], params["window_strides"]
    groups = params["feature_group_count"]
    batch, height, width, outputs = _shape(equation)
    result = np.zeros((batch, height, width, groups, outputs // groups))
    weights = kernel.reshape(*kernel.shape[:3], groups, outputs // groups)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation[0], j * dilation[1]
            seen = padded[
                :,
                top : top + strides[0] * (height - 1) + 1 : strides[0],
                left : left + strides[1] * (width - 1) + 1 : strides[1],
            ].reshape(batch, height, width, groups, -1)
            if groups == 1:
                result[..., 0, :] += seen[..., 0, :] @ weights[i, j, :, 0]
            else:
                result += np.einsum("bhwgc,cgo->bhwgo", seen, weights[i, j])
    return result.reshape(_shape(equation))


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _reduce_window(equation, x):
    params = equation.params
    assert all(step == 1 for step in (*params["base_dilation"], *params["window_dilation"]))
    kind = equation.primitive.name.rsplit("_", 1)[1]
    neutral = {"sum": 0, "max": -np.inf, "min": np.inf}[kind]
    padded = np.pad(x, params["padding"], constant_values=neutral)
    windows = np.lib.stride_tricks.sliding_window_view(padded, params["window_dimensions"])
    windows = windows[tuple(slice(None, None, step) for step in params["window_strides"])]
    return getattr(np, kind)(windows, axis=tuple(range(x.ndim, 2 * x.ndim)))


@rule("random_seed")
def _random_seed(equation, seed):
    return np.array([0, int(seed)], np.uint32)


@rule("random_fold_in")
def _fold_in(equation, key, data):
    return np.random.SeedSequence([*key.tolist(), int(data)]).generate_state(2)


@rule("random_bits")
def _random_bits(equation, key):
    shape = _shape(equation)
    bits = np.random.default_rng(key.tolist()).integers(0, 2**32, math.prod(shape), np.uint32)
    assert equation.params["bit_width"] == 32
    return bits.reshape(shape)
