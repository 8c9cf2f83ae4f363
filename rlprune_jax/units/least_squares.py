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
    dot), M rows (examples and positions), K numbers summed over, N outputs. The K numbers are those
    of C channels at T places (of a window), ``K = T C``; a dot has one place.

    Attributes:
        blocks: B.
        summed: K.
        places: T.
        row_count: M.
        point_count: positions of all examples at which the operand has channels.
        features: ``(operand, int[R]) -> f[B, R, K]``, some rows.
        outputs: ``(output, int[R]) -> f[B, R, N]``, of the same rows.
        points: ``(operand, int[R]) -> f[B, R, C]``, the channels at some positions.
        weights: f[B, K, N] -> the weights, as the contraction takes them.
        made: N.
        columns: axes of the output that blocks and columns run along.
    """

    blocks: int
    summed: int
    places: int
    row_count: int
    point_count: int
    features: Callable[[jax.Array, jax.Array], jax.Array]
    outputs: Callable[[jax.Array, jax.Array], jax.Array]
    points: Callable[[jax.Array, jax.Array], jax.Array]
    weights: Callable[[jax.Array], jax.Array]
    made: int
    columns: tuple[int, ...]

    def matrix(self, weights: jax.Array) -> jax.Array:
        """Return weights as f[B, K, N]."""
        wide = jnp.promote_types(weights.dtype, jnp.float32)
        shape = jax.ShapeDtypeStruct((self.blocks, self.summed, self.made), wide)
        (matrix,) = jax.linear_transpose(self.weights, shape)(weights.astype(wide))
        return matrix


class Correction(NamedTuple):
    """Hold changes of weights and bias of a contraction.

    Attributes:
        weights: f[B, K, N].
        bias: f[B, N].
    """

    weights: jax.Array
    bias: jax.Array


class DenseRows(NamedTuple):
    """Hold what a dense contraction reads and makes.

    Attributes:
        outputs: f[B, R, N], at picked rows.
        points: f[B, R, C], at picked positions; None where they are not needed.
    """

    outputs: jax.Array
    points: jax.Array | None


class Site(NamedTuple):
    """Hold a masked contraction that is to be refitted.

    Attributes:
        form: of it.
        operand: its input.
        weights: f[B, K, N], so far.
        dense: what the dense network has there.
        with_bias: whether a constant may be added to its output.
    """

    form: MatrixForm
    operand: jax.Array
    weights: jax.Array
    dense: DenseRows
    with_bias: bool


def pick(count: int, most: int | None) -> np.ndarray:
    """Return the numbers of some rows, drawn without replacement.

    The draw is the same for the same numbers, so that dense and masked network are read at the same
    rows.

    Args:
        count: how many there are.
        most: how many are wanted; None for all.

    Example:
        >>> pick(3, None), len(pick(100, 7))
        (array([0, 1, 2]), 7)
    """
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, most, replace=False))


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
    count = int(np.prod([shapes[other][i] for i in free[other]], dtype=int))

    def features(operand: jax.Array, numbers: jax.Array) -> jax.Array:
        operand = operand.transpose(*free[other], *batch[other], *contract[other])
        return operand.reshape(count, blocks, summed)[numbers].swapaxes(0, 1)

    def outputs(output: jax.Array, numbers: jax.Array) -> jax.Array:
        output = output.transpose(*sides[other], *range(len(batch[0])), *sides[weight])
        return output.reshape(count, blocks, made)[numbers].swapaxes(0, 1)

    def weights(array: jax.Array) -> jax.Array:
        array = array.reshape(*sizes["batch"], *sizes["summed"], *sizes["made"])
        return array.transpose(np.argsort((*batch[weight], *contract[weight], *free[weight])))

    return MatrixForm(
        blocks=blocks,
        summed=summed,
        places=1,
        row_count=count,
        point_count=count,
        features=features,
        outputs=outputs,
        points=features,
        weights=weights,
        made=made,
        columns=(*range(len(batch[0])), *sides[weight]),
    )


def _convolution_form(equation: Equation, shapes: tuple[Shape, Shape, Shape]) -> MatrixForm:
    params = equation.params
    image, kernel, out = primitives.convolution_axes(equation.name, params)
    groups = params["feature_group_count"]
    window = tuple(shapes[1][i] for i in kernel[2:])
    space = tuple(shapes[2][i] for i in out[2:])
    inputs, made = shapes[1][kernel[1]], shapes[1][kernel[0]] // groups
    count, places = shapes[0][image[0]], int(np.prod(window, dtype=int))
    ones = (1,) * len(window)
    dilation = params.get("rhs_dilation") or ones
    padding = [
        (low, high, step - 1)
        for (low, high), step in zip(
            params["padding"], params.get("lhs_dilation") or ones, strict=True
        )
    ]

    def patch(padded: jax.Array, place: tuple[int, ...]) -> jax.Array:
        first = [i * step for i, step in zip(place, dilation, strict=True)]
        strides = params["window_strides"]
        last = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(first, space, strides, strict=True)
        ]
        channels = padded.shape[-1]
        return lax.slice(padded, (0, *first, 0), (count, *last, channels), (1, *strides, 1))

    def features(operand: jax.Array, numbers: jax.Array) -> jax.Array:
        operand = operand.transpose(image[0], *image[2:], image[1])
        zero = jnp.zeros((), operand.dtype)
        padded = lax.pad(operand, zero, [(0, 0, 0), *padding, (0, 0, 0)])
        taps = [
            patch(padded, place).reshape(-1, groups, inputs)[numbers]
            for place in np.ndindex(*window)
        ]
        return jnp.stack(taps, 1).transpose(2, 0, 1, 3).reshape(groups, len(numbers), -1)

    def positions(axes: Shape, array: jax.Array, numbers: jax.Array) -> jax.Array:
        array = array.transpose(axes[0], *axes[2:], axes[1])
        return array.reshape(-1, groups, array.shape[-1] // groups)[numbers].swapaxes(0, 1)

    def weights(array: jax.Array) -> jax.Array:
        array = array.reshape(groups, -1, inputs, made).transpose(1, 2, 0, 3)
        array = array.reshape(*window, inputs, groups * made)
        return array.transpose(np.argsort((*kernel[2:], kernel[1], kernel[0])))

    return MatrixForm(
        blocks=groups,
        summed=places * inputs,
        places=places,
        row_count=count * int(np.prod(space, dtype=int)),
        point_count=count * int(np.prod([shapes[0][i] for i in image[2:]], dtype=int)),
        features=features,
        outputs=partial(positions, out),
        points=partial(positions, image),
        weights=weights,
        made=made,
        columns=(out[1],),
    )


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


def fit_weights(site: Site, ridge: float) -> Correction:
    r"""Return the change of weights that fits an output best.

    It minimises ``|X D + b - R|^2 + d |D|^2`` per block, of ``D`` and, with a bias, of ``b``.
    The damping ``d`` is ``ridge`` times the mean square of the features that are not constant, but
    never so small that float32 could not solve the system. A column whose square error would grow
    all the same (by rounding) does not change.

    Args:
        site: the contraction; R is what its output lacks to the dense one.
        ridge: damping, relative to the features.
    """
    form, dense = site.form, site.dense

    def read(numbers: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = _wide(form.features(site.operand, numbers))
        return features, dense.outputs[:, places] - _product(features, site.weights)

    count = dense.outputs.shape[1]
    sums = _sum_rows(read, pick(form.row_count, count), form.blocks * form.summed)
    change = _solve(sums, count, ridge, site.with_bias)
    explained = jnp.einsum("bk,bkn->bn", sums.features, change, precision="highest")
    return Correction(change, _finite((sums.residuals - explained) / count))


def merge_channels(site: Site, ridge: float) -> Correction:
    """Return the change of weights that merges channels.

    Each channel of the dense operand is explained, at every position alone, by those that the
    masked network has there: ``min over A, a of |P A + a - (P0 - P)|^2 + d |A|^2``. The weights
    that read it are added to theirs, ``D = A W`` at every place of a window. The system has C
    unknowns where ``fit_weights`` has K = T C; on a dot both are one.

    Args:
        site: the contraction.
        ridge: damping, relative to the channels.
    """
    form, dense = site.form, site.dense
    assert dense.points is not None

    def read(numbers: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        points = _wide(form.points(site.operand, numbers))
        assert dense.points is not None
        return points, dense.points[:, places] - points

    count, channels = dense.points.shape[1:]
    sums = _sum_rows(read, pick(form.point_count, count), form.blocks * channels)
    change = _solve(sums, count, ridge, site.with_bias)
    placed = site.weights.reshape(form.blocks, form.places, channels, form.made)
    merged = jnp.einsum("bij,btjn->btin", change, placed, precision="highest")
    merged = merged.reshape(site.weights.shape)
    return Correction(merged, _lacking_mean(site, site.weights + merged))


def fit_bias(site: Site) -> Correction:
    """Return the bias that fits an output best."""
    return Correction(jnp.zeros_like(site.weights), _lacking_mean(site, site.weights))


def _lacking_mean(site: Site, weights: jax.Array) -> jax.Array:
    """Return f[B, N], the mean of what the output lacks with given weights."""
    numbers = pick(site.form.row_count, site.dense.outputs.shape[1])
    features = _wide(site.form.features(site.operand, jnp.asarray(numbers))).mean(1)
    made = jnp.einsum("bk,bkn->bn", features, weights, precision="highest")
    return _finite(site.dense.outputs.mean(1) - made)


def _solve(sums: _Sums, count: int, ridge: float, with_bias: bool) -> jax.Array:
    """Return f[B, K, N], the damped least squares of sums over rows."""
    gram, cross = sums.gram, sums.cross
    uncentred = _mean_diagonal(gram)
    if with_bias:
        gram -= sums.features[:, :, None] * sums.features[:, None, :] / count
        cross -= sums.features[:, :, None] * sums.residuals[:, None, :] / count
    size = gram.shape[-1]
    least = size * jnp.finfo(gram.dtype).eps
    damping = ridge * _mean_diagonal(gram) + least * uncentred
    # Features that are all zero leave zeros to be solved for.
    damping = jnp.where(damping > 0, damping, 1.0)
    damped = gram + damping[:, None, None] * jnp.eye(size, dtype=gram.dtype)
    change = jax.vmap(partial(jax.scipy.linalg.solve, assume_a="pos"))(damped, cross)
    gain = jnp.sum(change * (2 * cross - _product(gram, change)), 1, keepdims=True)
    return jnp.where(gain >= 0, change, 0.0)


def _product(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.matmul(first, second, precision="highest")


def _wide(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _finite(bias: jax.Array) -> jax.Array:
    """Return a bias that is 0 where nothing can be said."""
    return jnp.where(jnp.isfinite(bias), bias, 0.0)


def _mean_diagonal(gram: jax.Array) -> jax.Array:
    """Return f[B], the mean over the features that are not zero."""
    squares = jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2), 0.0)
    return squares.sum(1) / jnp.maximum((squares > 0).sum(1), 1)


def _sum_rows(
    read: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    numbers: np.ndarray,
    row_size: int,
) -> _Sums:
    """Sum over picked rows, in chunks.

    Args:
        read: ``(numbers, places) -> (features f[B, R, K], residuals f[B, R, N])`` of some rows, by
            their numbers, and by their places among the picked ones.
        numbers: of the picked rows.
        row_size: numbers of features in a row.
    """
    count = len(numbers)
    chunk = min(count, max(1, CHUNK // row_size))
    steps = -(-count // chunk)
    places = np.arange(steps * chunk).reshape(steps, chunk)
    chosen = np.minimum(places, count - 1)

    def sums_of(part: tuple[jax.Array, jax.Array, jax.Array]) -> _Sums:
        rows, places, is_row = part
        features, residuals = read(rows, places)
        # What fills up the last chunk adds nothing to any sum.
        features, residuals = (
            jnp.where(is_row[:, None], each, 0.0) for each in (features, residuals)
        )
        turned = features.swapaxes(1, 2)
        return _Sums(
            gram=_product(turned, features),
            cross=_product(turned, residuals),
            features=features.sum(1),
            residuals=residuals.sum(1),
        )

    def add(total: _Sums, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, total, sums_of(part)), None

    parts = (jnp.asarray(numbers[chosen]), jnp.asarray(chosen), jnp.asarray(places < count))
    first = sums_of(jax.tree.map(lambda each: each[0], parts))
    if steps == 1:
        return first
    total, _ = lax.scan(add, first, jax.tree.map(lambda each: each[1:], parts))
    return total
