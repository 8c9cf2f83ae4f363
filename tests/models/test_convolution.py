from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from rlprune_jax.models.convolution.conv import conv_general_dilated, convolution_p

LAYOUT = ("NHWC", "HWIO", "NHWC")


def random_pair(lhs_shape, rhs_shape, dtype=jnp.float32):
    lhs_key, rhs_key = jax.random.split(jax.random.key(0))
    lhs = jax.random.normal(lhs_key, lhs_shape, dtype)
    return lhs, 0.2 * jax.random.normal(rhs_key, rhs_shape, dtype)


def ours(lhs, rhs, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def lax_convolution(lhs, rhs, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def with_gradients(function, lhs, rhs, *options):
    output, pull_back = jax.vjp(lambda x, k: function(x, k, *options), lhs, rhs)
    return output, *pull_back(jnp.cos(output))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.sampled_from(["SAME", "SAME_LOWER", "VALID", ((2, 0), (1, 3)), ((-1, 2), (5, 4))]),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]),
    channels=st.sampled_from([(1, 3, 4), (1, 20, 7), (2, 4, 6), (4, 4, 4), (3, 3, 6)]),
)
def test_output_and_gradients_equal_lax(size, kernel, strides, padding, dilation, channels):
    groups, inside, outside = channels
    lhs, rhs = random_pair((2, *size, inside), (*kernel, inside // groups, outside))
    options = (strides, padding, dilation, groups)
    expected_shape = jax.eval_shape(lambda: lax_convolution(lhs, rhs, *options)).shape
    if 0 in expected_shape:
        with pytest.raises(ValueError, match="too small"):
            ours(lhs, rhs, *options)
        return
    actual, expected = jax.jit(
        lambda x, k: [with_gradients(f, x, k, *options) for f in (ours, lax_convolution)]
    )(lhs, rhs)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("options", [(), ((2, 1), "VALID", (1, 1), 2)])
def test_second_order_and_forward_mode_equal_lax(options):
    lhs, rhs = random_pair((2, 6, 5, 4), (3, 3, 4 // (options[3] if options else 1), 6))

    def penalty(function):
        def loss(x, k):
            return jnp.sum(jnp.tanh(function(x, k, *options)))

        def gradient_norm(x, k):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, k))

        return (
            jax.grad(gradient_norm, (0, 1))(lhs, rhs),
            jax.jvp(loss, (lhs, rhs), (rhs.sum() * lhs, 2 * rhs)),
            jax.jvp(jax.grad(loss), (lhs, rhs), (lhs**2, rhs**2)),
        )

    actual, expected = jax.jit(lambda: (penalty(ours), penalty(lax_convolution)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), actual, expected
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [(0, None), (None, 3), (1, 0)])
def test_vmap_of_output_and_gradients_equals_a_loop(axes, groups):
    lhs, rhs = random_pair((3, 2, 5, 5, 4), (3, 3, 3, 4 // groups, 6))
    operands = [
        a[0] if axis is None else jnp.moveaxis(a, 0, axis)
        for a, axis in zip((lhs, rhs), axes, strict=True)
    ]

    def function(x, k):
        return with_gradients(ours, x, k, (1, 1), "SAME", (1, 1), groups)

    actual = jax.jit(jax.vmap(function, axes))(*operands)
    for index in range(3):
        single = [
            a if axis is None else jnp.take(a, index, axis)
            for a, axis in zip(operands, axes, strict=True)
        ]
        expected = with_gradients(lax_convolution, *single, (1, 1), "SAME", (1, 1), groups)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a[index], b, atol=1e-4)


def test_vmap_over_images_alone_keeps_one_convolution_of_the_joined_batch():
    lhs, rhs = random_pair((5, 2, 4, 4, 3), (3, 3, 3, 4))
    jaxpr = jax.make_jaxpr(jax.vmap(ours, (0, None)))(lhs, rhs)
    (equation,) = [e for e in jaxpr.eqns if e.primitive is convolution_p]
    assert equation.invars[0].aval.shape == (10, 4, 4, 3)


def test_nested_vmap_over_images_kernels_and_both():
    lhs, rhs = random_pair((2, 3, 2, 4, 4, 3), (2, 3, 3, 3, 3, 5))
    both = jax.vmap(jax.vmap(ours))(lhs, rhs)
    crossed = jax.vmap(jax.vmap(ours, (None, 0)), (0, 0))(lhs[:, 0], rhs)
    inner_images = jax.vmap(jax.vmap(ours, (0, None)), (0, 0))(lhs, rhs[:, 0])
    for i in range(2):
        for j in range(3):
            for actual, operands in (
                (both, (lhs[i, j], rhs[i, j])),
                (crossed, (lhs[i, 0], rhs[i, j])),
                (inner_images, (lhs[i, j], rhs[i, 0])),
            ):
                np.testing.assert_allclose(actual[i, j], lax_convolution(*operands), atol=1e-4)


def test_scan_remat_and_eager_under_leak_checking():
    lhs, rhs = random_pair((2, 4, 4, 3), (3, 3, 3, 3))

    def train(function):
        def step(kernel, _):
            loss = jax.checkpoint(lambda k: jnp.sum(jnp.sin(function(lhs, k)) ** 2))
            return kernel - 0.01 * jax.grad(loss)(kernel), loss(kernel)

        return lax.scan(step, rhs, None, length=3)

    with jax.checking_leaks():
        actual = jax.jit(lambda: train(ours))()
        eager = ours(lhs, rhs)
    expected = train(lax_convolution)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(eager, lax_convolution(lhs, rhs), atol=1e-4)
    with jax.disable_jit():
        np.testing.assert_array_equal(ours(lhs, rhs), eager)
    with jax.no_tracing():
        ours_again = convolution_again(lhs, rhs)
    np.testing.assert_array_equal(eager, ours_again)


def convolution_again(lhs, rhs):
    return convolution_p.bind(
        lhs,
        rhs,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        rhs_dilation=(1, 1),
        feature_group_count=1,
        precision=None,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_type_and_sums_in_float32(dtype):
    lhs, rhs = random_pair((2, 4, 4, 32), (3, 3, 32, 8), dtype)
    actual = with_gradients(ours, lhs, rhs)
    exact = with_gradients(lax_convolution, *(a.astype(jnp.float32) for a in (lhs, rhs)))
    for a, b in zip(actual, exact, strict=True):
        assert a.dtype == dtype
        # One rounding of the result, and one of the cotangent: half a unit in 8 bits is 2**-9.
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2**-7 * float(jnp.abs(b).max()))


def test_float64_is_exact_to_float64():
    with jax.enable_x64(True):
        lhs, rhs = random_pair((2, 5, 5, 4), (3, 3, 4, 4), jnp.float64)
        for a, b in zip(
            with_gradients(ours, lhs, rhs), with_gradients(lax_convolution, lhs, rhs), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_export_for_all_platforms_with_a_symbolic_batch():
    lhs, rhs = random_pair((3, 8, 8, 3), (3, 3, 3, 4))
    (batch,) = jax.export.symbolic_shape("b")

    def function(x, k):
        hidden = nn.relu(ours(x, k, (2, 2)))
        return with_gradients(ours, hidden, jnp.tile(k, (1, 1, 2, 1))[:, :, :4])

    argument = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(argument, rhs)
    restored = jax.export.deserialize(exported.serialize())
    for a, b in zip(restored.call(lhs, rhs), function(lhs, rhs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_other_platforms_get_the_convolution_of_xla():
    lhs, rhs = random_pair((2, 2, 2, 3), (3, 3, 3, 4))
    for platform, count in (("tpu", 3), ("cpu", 0)):
        lowered = jax.jit(lambda x, k: with_gradients(ours, x, k)).trace(lhs, rhs)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == count


def test_equation_can_be_bound_again_with_fewer_channels():
    lhs, rhs = random_pair((2, 5, 5, 4), (3, 3, 1, 4))
    jaxpr = jax.make_jaxpr(lambda x, k: ours(x, k, (2, 2), groups=4))(lhs, rhs)
    (equation,) = jaxpr.eqns
    assert equation.primitive.name == "rlprune_convolution"
    assert equation.params["window_strides"] == (2, 2)
    assert equation.params["padding"] == ((1, 1), (1, 1))
    assert equation.params["rhs_dilation"] == (1, 1)
    operands = lhs[:1, :, :, :3], rhs[..., :3]
    slim = equation.primitive.bind(*operands, **{**equation.params, "feature_group_count": 3})
    np.testing.assert_allclose(slim, ours(lhs, rhs, (2, 2), groups=4)[:1, :, :, :3], atol=1e-5)


def test_flax_convolution_equals_its_own():
    x = jax.random.normal(jax.random.key(1), (2, 7, 7, 4))
    options: dict[str, Any] = dict(features=6, kernel_size=(3, 3), strides=2, feature_group_count=2)
    plain, mine = nn.Conv(**options), nn.Conv(**options, conv_general_dilated=conv_general_dilated)
    variables = plain.init(jax.random.key(0), x)
    difference = jnp.asarray(mine.apply(variables, x)) - jnp.asarray(plain.apply(variables, x))
    assert float(jnp.abs(difference).max()) <= 1e-5
    jaxpr = jax.make_jaxpr(mine.apply)(variables, x)
    assert "rlprune_convolution" in str(jaxpr)


@pytest.mark.parametrize(
    "shapes, options",
    [
        (
            ((2, 9, 3), (3, 3, 4)),
            dict(dimension_numbers=("NWC", "WIO", "NWC"), window_strides=(1,)),
        ),
        (((2, 3, 9, 9), (4, 3, 3, 3)), dict(dimension_numbers=("NCHW", "OIHW", "NCHW"))),
        (
            ((2, 5, 5, 3), (3, 3, 3, 4)),
            dict(dimension_numbers=LAYOUT, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
        ),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(dimension_numbers=LAYOUT, batch_group_count=2)),
        (
            ((2, 5, 5, 3), (3, 3, 3, 4)),
            dict(dimension_numbers=LAYOUT, preferred_element_type=jnp.float32),
        ),
    ],
)
def test_what_is_not_ours_goes_to_lax(shapes, options):
    lhs, rhs = random_pair(*shapes, dtype=jnp.bfloat16)
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    actual = conv_general_dilated(lhs, rhs, **options)
    expected = lax.conv_general_dilated(lhs, rhs, **options)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_shard_map_sums_the_kernel_gradient_over_the_mesh_as_with_lax():
    lhs, rhs = random_pair((2, 4, 4, 3), (3, 3, 3, 4))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def psums(function):
        def kernel_gradient(x, k):
            return jax.grad(lambda k: jnp.sum(function(x, k) ** 2))(k)

        mapped = jax.shard_map(kernel_gradient, mesh=mesh, in_specs=(P("d"), P()), out_specs=P())
        return str(jax.make_jaxpr(mapped)(lhs, rhs)).count("psum")

    assert psums(ours) == psums(lax_convolution) > 0


@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (((2, 5, 5, 3), (3, 3, 4, 4)), {}, "lhs of shape .* has 3 channels but rhs"),
        (((2, 5, 5, 4), (3, 3, 2, 3)), dict(groups=2), "rhs has 3 channels.*feature_group_count=2"),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(groups=2), "lhs has 3 channels"),
        (((2, 2, 2, 3), (3, 3, 3, 4)), dict(padding="VALID"), "too small for rhs"),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(padding="FULL"), "padding='FULL'"),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(padding=((1, 1),)), "padding="),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(strides=(0, 1)), r"window_strides=\(0, 1\)"),
        (((2, 5, 5, 3), (3, 3, 3, 4)), dict(dilation=(1,)), r"rhs_dilation=\(1,\)"),
    ],
)
def test_bad_arguments_are_named(shapes, options, message):
    lhs, rhs = random_pair(*shapes)
    with pytest.raises(ValueError, match=message):
        ours(lhs, rhs, **options)


def test_mixed_types_are_refused():
    lhs, rhs = random_pair((2, 5, 5, 3), (3, 3, 3, 4))
    with pytest.raises(TypeError, match="lhs is float32 but rhs is bfloat16"):
        ours(lhs, rhs.astype(jnp.bfloat16))
