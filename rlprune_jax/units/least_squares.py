"""Contractions as matrices, and the ridge least squares that refits their weights."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlprune_jax.graph import primitives
from rlprune_jax.graph.program import Equation

CHUNK = 2**22
"""Numbers of features that are held at once."""

Shape = tuple[int, ...]


class MatrixForm(NamedTuple):
    """Hold how a contraction becomes B products of matrices.

    Each is ``features[M, K] @ weights[K, N]``: B blocks (groups of a convolution, batch axes of a
    dot), M rows (examples and positions), K numbers summed over, N outputs.

    Attributes:
        blocks: B.
        summed: K.
        row_size: numbers of features per example.
        examples: ``(operand, output) -> (operand, output)`` with the examples' axis first.
        rows: some of these examples -> ``(features f[B, M, K], outputs f[B, M, N])``.
        weights: f[B, K, N] -> the weights, as the contraction takes them.
        columns: axes of the output that blocks and columns run along.
    """

    blocks: int
    summed: int
    row_size: int
    examples: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    rows: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    weights: Callable[[jax.Array], jax.Array]
    columns: tuple[int, ...]


class Correction(NamedTuple):
    """Hold changes of weights and bias of a contraction.

    Attributes:
        weights: f[B, K, N].
        bias: f[B, N].
    """

    weights: jax.Array
    bias: jax.Array


def matrix_form(equation: Equation, weight: int, shapes: tuple[Shape, Shape, Shape]) -> MatrixForm:
    """Describe a dot or convolution as products of matrices.

    Args:
        equation: the contraction.
        weight: which of its operands holds the weights.
        shapes: of both operands and of the output.

    Raises:
        ValueError: it is neither, or a convolution with batch groups.
    """
    if equation.name == "dot_general":
        return _dot_form(equation, weight, shapes)
    if equation.name not in primitives.CONVOLUTIONS:
        raise ValueError(f"{equation.name} is neither a dot nor a convolution")
    if equation.params.get("batch_group_count", 1) != 1:
        raise ValueError("a convolution with batch groups")
    return _convolution_form(equation, shapes)


def _dot_form(equation: Equation, weight: int, shapes: tuple[Shape, Shape, Shape]) -> MatrixForm:
    contract, batch = equation.params["dimension_numbers"]
    other = 1 - weight
    free = [
        tuple(i for i in range(len(shapes[side])) if i not in (*contract[side], *batch[side]))
        for side in (0, 1)
    ]
    sizes = {
        "batch": tuple(shapes[weight][i] for i in batch[weight]),
        "summed": tuple(shapes[weight][i] for i in contract[weight]),
        "made": tuple(shapes[weight][i] for i in free[weight]),
    }
    blocks, summed, made = (int(np.prod(each, dtype=int)) for each in sizes.values())
    last = len(batch[0]) + len(free[0])
    sides = [tuple(range(len(batch[0]), last)), tuple(range(last, len(shapes[2])))]

    def examples(operand: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
        operand = operand.transpose(*free[other], *batch[other], *contract[other])
        output = output.transpose(*sides[other], *range(len(batch[0])), *sides[weight])
        return operand.reshape(-1, blocks, summed), output.reshape(-1, blocks, made)

    def rows(operand: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
        return operand.swapaxes(0, 1), output.swapaxes(0, 1)

    def weights(array: jax.Array) -> jax.Array:
        array = array.reshape(*sizes["batch"], *sizes["summed"], *sizes["made"])
        return array.transpose(np.argsort((*batch[weight], *contract[weight], *free[weight])))

    columns = (*range(len(batch[0])), *sides[weight])
    return MatrixForm(blocks, summed, blocks * summed, examples, rows, weights, columns)


def _convolution_form(equation: Equation, shapes: tuple[Shape, Shape, Shape]) -> MatrixForm:
    params = equation.params
    image, kernel, out = primitives.convolution_axes(equation.name, params)
    groups = params["feature_group_count"]
    window = tuple(shapes[1][i] for i in kernel[2:])
    space = tuple(shapes[2][i] for i in out[2:])
    inputs, made = shapes[1][kernel[1]], shapes[1][kernel[0]] // groups
    ones = (1,) * len(window)
    dilation = params.get("rhs_dilation") or ones
    padding = [
        (low, high, step - 1)
        for (low, high), step in zip(
            params["padding"], params.get("lhs_dilation") or ones, strict=True
        )
    ]

    def examples(operand: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
        operand = operand.transpose(image[0], *image[2:], image[1])
        return operand, output.transpose(out[0], *out[2:], out[1])

    def patch(padded: jax.Array, place: tuple[int, ...]) -> jax.Array:
        first = [i * step for i, step in zip(place, dilation, strict=True)]
        strides = params["window_strides"]
        last = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(first, space, strides, strict=True)
        ]
        count, *_, channels = padded.shape
        return lax.slice(padded, (0, *first, 0), (count, *last, channels), (1, *strides, 1))

    def rows(operand: jax.Array, output: jax.Array) -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros((), operand.dtype)
        padded = lax.pad(operand, zero, [(0, 0, 0), *padding, (0, 0, 0)])
        taps = jnp.stack([patch(padded, place) for place in np.ndindex(*window)], -2)
        features = taps.reshape(-1, taps.shape[-2], groups, inputs).transpose(2, 0, 1, 3)
        outputs = output.reshape(-1, groups, made).transpose(1, 0, 2)
        return features.reshape(*features.shape[:2], -1), outputs

    def weights(array: jax.Array) -> jax.Array:
        array = array.reshape(groups, -1, inputs, made).transpose(1, 2, 0, 3)
        array = array.reshape(*window, inputs, groups * made)
        return array.transpose(np.argsort((*kernel[2:], kernel[1], kernel[0])))

    summed = int(np.prod(window, dtype=int)) * inputs
    row_size = int(np.prod(space, dtype=int)) * groups * summed
    return MatrixForm(groups, summed, row_size, examples, rows, weights, (out[1],))


class _Sums(NamedTuple):
    """Hold sums over rows, of which least squares are made.

    Attributes:
        gram: f[B, K, K], of features times features.
        cross: f[B, K, N], of features times residuals.
        features: f[B, K].
        residuals: f[B, N].
    """

    gram: jax.Array
    cross: jax.Array
    features: jax.Array
    residuals: jax.Array


def fit_weights(
    form: MatrixForm, operand: jax.Array, residual: jax.Array, ridge: float, with_bias: bool
) -> Correction:
    r"""Return the change of weights that explains a residual best.

    It minimises ``|X D + b - R|^2 + d |D|^2`` per block, of ``D`` and, with a bias, of ``b``.
    The damping ``d`` is ``ridge`` times the mean square of the features that are not constant, but
    never so small that float32 could not solve the system. A column whose square error would grow
    all the same (by rounding) does not change.

    Args:
        form: of the contraction.
        operand: its input.
        residual: what its output lacks.
        ridge: damping, relative to the features.
        with_bias: whether a constant may be added.
    """
    sums, count = _sum_rows(form, operand, residual)
    gram, cross = sums.gram, sums.cross
    uncentred = _mean_diagonal(gram)
    if with_bias:
        gram -= sums.features[:, :, None] * sums.features[:, None, :] / count
        cross -= sums.features[:, :, None] * sums.residuals[:, None, :] / count
    least = form.summed * jnp.finfo(gram.dtype).eps
    damping = ridge * _mean_diagonal(gram) + least * uncentred
    # Features that are all zero leave zeros to be solved for.
    damping = jnp.where(damping > 0, damping, 1.0)
    damped = gram + damping[:, None, None] * jnp.eye(form.summed, dtype=gram.dtype)
    change = jax.vmap(partial(jax.scipy.linalg.solve, assume_a="pos"))(damped, cross)
    gain = jnp.sum(change * (2 * cross - _product(gram, change)), 1, keepdims=True)
    change = jnp.where(gain >= 0, change, 0.0)
    explained = jnp.einsum("bk,bkn->bn", sums.features, change, precision="highest")
    return Correction(change, (sums.residuals - explained) / count)


def fit_bias(form: MatrixForm, operand: jax.Array, residual: jax.Array) -> Correction:
    """Return the bias that explains a residual best."""
    _, outputs = form.rows(*form.examples(operand, residual))
    dtype = jnp.promote_types(residual.dtype, jnp.float32)
    bias = outputs.astype(dtype).mean(1)
    return Correction(jnp.zeros((form.blocks, form.summed, bias.shape[-1]), dtype), bias)


def _product(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.matmul(first, second, precision="highest")


def _mean_diagonal(gram: jax.Array) -> jax.Array:
    """Return f[B], the mean over the features that are not zero."""
    squares = jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2), 0.0)
    return squares.sum(1) / jnp.maximum((squares > 0).sum(1), 1)


def _sum_rows(form: MatrixForm, operand: jax.Array, residual: jax.Array) -> tuple[_Sums, int]:
    """Sum over all rows, in chunks of examples; return the number of rows too."""
    dtype = jnp.promote_types(residual.dtype, jnp.float32)
    examples = [each.astype(dtype) for each in form.examples(operand, residual)]
    count = len(examples[0])
    chunk = min(count, max(1, CHUNK // form.row_size))
    steps = -(-count // chunk)
    # What is filled up with zeros adds nothing to any sum... but to the number of rows.
    parts = [
        jnp.pad(each, [(0, steps * chunk - count)] + [(0, 0)] * (each.ndim - 1)).reshape(
            steps, chunk, *each.shape[1:]
        )
        for each in examples
    ]

    def sums_of(part: list[jax.Array]) -> _Sums:
        features, outputs = form.rows(*part)
        turned = features.swapaxes(1, 2)
        return _Sums(
            gram=_product(turned, features),
            cross=_product(turned, outputs),
            features=features.sum(1),
            residuals=outputs.sum(1),
        )

    def add(total: _Sums, part: list[jax.Array]) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, total, sums_of(part)), None

    first = sums_of([each[0] for each in parts])
    total, _ = lax.scan(add, first, [each[1:] for each in parts])
    made = first.residuals.shape[-1] * form.blocks
    return total, residual.size // made
