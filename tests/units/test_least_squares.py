"""Contractions as matrices against the contractions themselves; fits against NumPy's."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from rlprune_jax.graph.program import trace_program
from rlprune_jax.models.convolution.conv import conv_general_dilated
from rlprune_jax.units import least_squares
from rlprune_jax.units.least_squares import (
    DenseRows,
    Site,
    fit_bias,
    fit_weights,
    matrix_form,
    merge_channels,
    pick,
)


def conv(x, w, **options):
    numbers = options.pop("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


def dot(numbers, x, w):
    return lax.dot_general(x, w, numbers)


CASES = {
    "matrix": (partial(dot, (((1,), (0,)), ((), ()))), (5, 3), (3, 4)),
    "two axes": (partial(dot, (((3, 1), (0, 2)), ((), ()))), (5, 2, 6, 3), (3, 4, 2)),
    "heads": (partial(dot, (((3,), (1,)), ((2,), (2,)))), (5, 6, 2, 3), (7, 3, 2)),
    "weights first": (
        lambda x, w: dot((((2,), (3,)), ((0,), (1,))), w, x), (4, 6, 2, 3), (6, 4, 3)),
    "same": (conv, (2, 6, 5, 3), (3, 3, 3, 4)),
    "strided": (partial(conv, window_strides=(2, 3), padding="VALID"), (2, 8, 9, 3), (3, 2, 3, 4)),
    "padded": (partial(conv, padding=((0, 3), (2, -1))), (2, 6, 7, 2), (3, 3, 2, 4)),
    "dilated": (partial(conv, rhs_dilation=(2, 1), padding="SAME"), (2, 7, 5, 2), (3, 2, 2, 3)),
    "transposed": (
        partial(conv, lhs_dilation=(2, 2), padding=((1, 2), (1, 2))), (2, 4, 4, 2), (3, 3, 2, 3)),
    "grouped": (partial(conv, feature_group_count=2), (2, 5, 5, 6), (3, 3, 3, 4)),
    "depthwise": (partial(conv, feature_group_count=3), (2, 5, 5, 3), (3, 3, 1, 6)),
    "other order": (
        partial(conv, dimension_numbers=("CNWH", "OWIH", "HCWN")), (3, 2, 5, 6), (4, 3, 3, 2),
    ),
    "one dimension": (
        partial(conv, window_strides=(2,), dimension_numbers=("NWC", "WIO", "NWC")),
        (2, 9, 3), (4, 3, 5),
    ),
    "three dimensions": (
        partial(conv, window_strides=(1, 2, 1), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")),
        (2, 4, 5, 3, 2), (2, 3, 1, 2, 3),
    ),
    "own": (
        partial(
            conv_general_dilated, window_strides=(2, 1), padding="SAME", feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        (2, 6, 5, 4), (3, 3, 2, 6),
    ),
}  # fmt: skip


def all_rows(form):
    return jnp.arange(form.row_count)


def site_of(form, x, residual, with_bias=True):
    """A contraction whose weights are zero, so that its output lacks a whole residual."""
    outputs = form.outputs(residual, all_rows(form))
    weights = jnp.zeros((form.blocks, form.summed, form.made))
    return Site(form, x, weights, DenseRows(outputs, None), with_bias)


@partial(jax.jit, static_argnums=(0, 4))
def fit(form, x, residual, ridge, with_bias):
    return fit_weights(site_of(form, x, residual, with_bias), ridge)


@cache
def form_of(function, x_shape, w_shape):
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x_shape, w_shape))
    program, out = trace_program(function, x, w)
    (equation,) = program.equations
    weight = equation.inputs.index(program.inputs[1])
    shapes = (w_shape, x_shape) if weight == 0 else (x_shape, w_shape)
    return matrix_form(equation, weight, (*shapes, out.shape)), out.shape


@pytest.mark.parametrize("name", CASES)
def test_the_form_is_the_contraction(name):
    function, x_shape, w_shape = CASES[name]
    form, out_shape = form_of(function, x_shape, w_shape)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(x_shape), jnp.float32)
    features = form.features(x, all_rows(form))
    assert features.shape == (form.blocks, form.row_count, form.summed)
    matrix = generator.standard_normal((form.blocks, form.summed, form.made))
    w = form.weights(jnp.asarray(matrix, jnp.float32))
    assert w.shape == w_shape
    np.testing.assert_allclose(form.matrix(w), matrix, rtol=1e-6)
    wanted = form.outputs(function(x, w), all_rows(form))
    np.testing.assert_allclose(np.asarray(features, np.float64) @ matrix, wanted, atol=1e-4)
    some = jnp.array([form.row_count - 1, 0])
    np.testing.assert_array_equal(form.features(x, some), features[:, some])
    # Every channel of every position is a point, once.
    points = form.points(x, jnp.arange(form.point_count))
    assert points.shape == (form.blocks, form.point_count, form.summed // form.places)
    np.testing.assert_array_equal(np.sort(points, None), np.sort(x, None))
    # Along `columns` runs what has a number of its own in every block and column.
    made = np.prod([out_shape[axis] for axis in form.columns])
    assert made == form.blocks * form.made
    ids = np.arange(made).reshape([out_shape[axis] for axis in form.columns])
    spread = np.moveaxis(np.zeros(out_shape), form.columns, range(len(form.columns)))
    spread = spread + ids.reshape(*ids.shape, *(1,) * (spread.ndim - ids.ndim))
    ids_out = np.moveaxis(spread, range(len(form.columns)), form.columns)
    numbered = form.outputs(jnp.asarray(ids_out), jnp.arange(1))
    np.testing.assert_array_equal(numbered[:, 0].reshape(-1), np.arange(made))


def test_what_is_no_matrix_product_is_refused():
    with pytest.raises(ValueError, match="batch groups"):
        form_of(partial(conv, batch_group_count=2), (4, 5, 5, 3), (3, 3, 3, 4))
    program, _ = trace_program(jnp.add, jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="add is neither a dot nor a convolution"):
        matrix_form(program.equations[0], 1, ((3,), (3,), (3,)))


def damped_least_squares(features, residual, damping, with_bias):
    """One block in float64: rows of the square root of the damping below the features."""
    count, size = features.shape
    columns = np.ones((count, 1)) if with_bias else np.zeros((count, 0))
    below = np.hstack([np.sqrt(damping) * np.eye(size), np.zeros((size, columns.shape[1]))])
    system = np.vstack([np.hstack([features, columns]), below])
    target = np.vstack([residual, np.zeros((size, residual.shape[1]))])
    solution = np.linalg.lstsq(system, target, rcond=None)[0]
    return solution[:size], solution[size:].sum(0)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", ["matrix", "heads", "strided", "grouped", "own"])
def test_a_fit_is_the_least_squares_of_numpy(name, with_bias, monkeypatch):
    function, x_shape, w_shape = CASES[name]
    shape = list(x_shape)
    shape[0] = 40
    form, out_shape = form_of(function, tuple(shape), w_shape)
    generator = np.random.default_rng(1)
    x = jnp.asarray(generator.standard_normal(shape) + 0.5, jnp.float32)
    residual = jnp.asarray(generator.standard_normal(out_shape), jnp.float32)
    found = fit(form, x, residual, 0.1, with_bias)
    features, rows = in_float64(form, x, residual)
    for block in range(form.blocks):
        centre = features[block].mean(0) * with_bias
        damping = 0.1 * np.square(features[block] - centre).sum(0).mean()
        weights, bias = damped_least_squares(features[block], rows[block], damping, with_bias)
        np.testing.assert_allclose(found.weights[block], weights, atol=2e-5)
        if with_bias:
            np.testing.assert_allclose(found.bias[block], bias, atol=2e-5)
    # The size of a chunk, also one that does not divide the examples, is nobody's choice.
    monkeypatch.setattr(least_squares, "CHUNK", 7 * form.blocks * form.summed)
    again = jax.jit(lambda x, r: fit_weights(site_of(form, x, r, with_bias), 0.1))(x, residual)
    np.testing.assert_allclose(again.weights, found.weights, atol=1e-5)
    np.testing.assert_allclose(again.bias, found.bias, atol=1e-5)


def in_float64(form, x, residual):
    rows = all_rows(form)
    both = form.features(x, rows), form.outputs(residual, rows)
    return [np.asarray(each, np.float64) for each in both]


def square_error(form, x, residual, found, with_bias):
    features, rows = in_float64(form, x, residual)
    left = rows - features @ np.asarray(found.weights, np.float64)
    if with_bias:
        left = left - np.asarray(found.bias, np.float64)[:, None]
    return np.square(left).sum((0, 1)), np.square(rows).sum((0, 1))


@given(
    kind=st.sampled_from(["random", "copies", "zero", "constant", "huge", "one example"]),
    ridge=st.sampled_from([0.0, 1e-6, 1e-2, 1e3]),
    with_bias=st.booleans(),
    seed=st.integers(0, 10),
)
def test_errors_never_grow_and_nothing_is_singular(kind, ridge, with_bias, seed):
    generator = np.random.default_rng(seed)
    form, _ = form_of(CASES["matrix"][0], (12, 6), (6, 4))
    x = generator.standard_normal((12, 6))
    if kind == "copies":
        x[:, 3:] = x[:, :3]
    elif kind == "huge":
        x = 1e3 + 1e-2 * x
    elif kind == "one example":
        x[1:] = x[0]
    elif kind != "random":
        x[:] = kind == "constant"
    x = jnp.asarray(x, jnp.float32)
    residual = jnp.asarray(generator.standard_normal((12, 4)), jnp.float32)
    found = fit(form, x, residual, ridge, with_bias)
    assert np.isfinite(found.weights).all() and np.isfinite(found.bias).all()
    after, before = square_error(form, x, residual, found, with_bias)
    assert (after <= before * (1 + 1e-3) + 1e-4).all()
    if kind == "zero":
        assert not found.weights.any()
    if kind == "random" and ridge == 0:
        assert after.sum() < 0.9 * before.sum()


def test_nothing_is_fitted_to_what_is_not_a_number():
    form, _ = form_of(CASES["matrix"][0], (5, 3), (3, 4))
    residual = jnp.ones((5, 4)).at[2, 1].set(jnp.nan)
    found = fit_weights(site_of(form, jnp.eye(5, 3), residual), 1e-3)
    assert np.isfinite(found.weights).all() and np.isfinite(found.bias).all()
    assert not found.weights[0, :, 1].any() and not found.bias[0, 1]
    assert found.bias[0, 0]
    nothing = fit_weights(site_of(form, jnp.full((5, 3), jnp.nan), residual), 1e-3)
    assert not nothing.weights.any() and not nothing.bias.any()


def test_a_bias_alone_is_the_mean():
    form, shape = form_of(*CASES["grouped"])
    x, residual = jnp.ones(CASES["grouped"][1]), jax.random.normal(jax.random.key(0), shape)
    found = fit_bias(site_of(form, x, residual))
    np.testing.assert_allclose(found.bias.reshape(-1), residual.mean((0, 1, 2)), atol=1e-6)
    assert not found.weights.any()


def test_channels_that_others_make_up_are_merged_without_loss():
    """The third channel is twice the first less the second, and is then taken away."""
    form, _ = form_of(conv, (4, 6, 5, 3), (3, 3, 3, 4))
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 2))
    x = jnp.concatenate([x, 2 * x[..., :1] - x[..., 1:]], -1)
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    masked = x * jnp.array([1.0, 1.0, 0.0])
    dense = DenseRows(
        form.outputs(conv(x, w), all_rows(form)), form.points(x, jnp.arange(form.point_count))
    )
    site = Site(form, masked, form.matrix(w), dense, True)
    found = merge_channels(site, 1e-6)
    repaired = form.weights(site.weights + found.weights)
    np.testing.assert_allclose(conv(masked, repaired), conv(x, w), atol=1e-3)
    np.testing.assert_allclose(repaired[..., 0, :], w[..., 0, :] + 2 * w[..., 2, :], atol=1e-3)
    np.testing.assert_allclose(found.bias, 0, atol=1e-3)
    assert not found.weights.reshape(9, 3, 4)[:, 2].any()


def test_merging_a_dot_is_refitting_it():
    form, _ = form_of(CASES["matrix"][0], (12, 6), (6, 4))
    x = jax.random.normal(jax.random.key(0), (12, 6))
    w = jax.random.normal(jax.random.key(1), (6, 4))
    dense = DenseRows(form.outputs(x @ w, all_rows(form)), form.points(x, all_rows(form)))
    site = Site(form, x.at[:, 2:4].set(0), form.matrix(w), dense, True)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-4),
        merge_channels(site, 1e-2),
        fit_weights(site, 1e-2),
    )


def test_rows_are_drawn_once_each():
    drawn = pick(100, 30)
    assert len(set(drawn.tolist())) == 30 and drawn.min() >= 0 and drawn.max() < 100
    np.testing.assert_array_equal(drawn, pick(100, 30))
    np.testing.assert_array_equal(pick(20, 30), np.arange(20))
