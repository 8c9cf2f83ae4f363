"""Networks of others with our convolution: equal to the original, and no convolution of XLA's."""

import logging
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec as P

from rlprune_jax.models.convolution import conv_general_dilated, rebind_convolutions

LAYOUTS = {
    1: [("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW"), ("WNC", "IWO", "NCW")],
    2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CWNH", "IHOW", "HNWC")],
}


NUMBERS = LAYOUTS[2][0]


def primitives(function, *args, **options):
    """Names of all primitives of a traced function, bodies of calls included."""

    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                for body in value if isinstance(value, tuple) else (value,):
                    if isinstance(body, Jaxpr | ClosedJaxpr):
                        yield from names(body)

    return list(names(jax.make_jaxpr(lambda *args: function(*args, **options))(*args)))


def convolutions(function, *args, **options):
    """Numbers of convolutions: ours, and XLA's."""
    names = primitives(function, *args, **options)
    return names.count("rlprune_convolution"), names.count("conv_general_dilated")


def normal(*shape, seed=0):
    return jnp.asarray(0.3 * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def with_derivatives(function, *operands):
    """The output, a gradient and a directional derivative."""
    output, pull_back = jax.vjp(function, *operands)
    tangents = tuple(jnp.cos(operand) for operand in operands)
    return output, pull_back(jnp.cos(output)), jax.jvp(function, operands, tangents)[1]


def assert_equal(actual, expected, tolerance=1e-4):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def compile_quickly(function, *args):
    """Compile with little optimization: tests run each program once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(options)


def arranged(array, order, layout):
    """Put the axes of an array, named in ``order``, into the order of ``layout``."""
    return array.transpose([order.index(axis) for axis in layout])


@settings(max_examples=12)
@given(st.data())
def test_every_layout_equals_lax(data):
    space = data.draw(st.sampled_from([1, 2]))
    layout = data.draw(st.sampled_from(LAYOUTS[space]))
    groups, inside, outside = data.draw(st.sampled_from([(1, 3, 4), (2, 4, 6), (4, 4, 8)]))

    def per_axis(low, high):
        return data.draw(st.lists(st.integers(low, high), min_size=space, max_size=space))

    sizes, kernel, strides, dilation = (
        per_axis(5, 8),
        per_axis(1, 3),
        per_axis(1, 3),
        per_axis(1, 2),
    )
    padding = data.draw(st.sampled_from(["SAME", "VALID", [(2, 1)] * space]))
    axes = "HW"[-space:]
    image = arranged(normal(2, *sizes, inside), "N" + axes + "C", layout[0])
    weights = arranged(normal(*kernel, inside // groups, outside), axes + "IO", layout[1])

    def convolve(image, weights):
        return lax.conv_general_dilated(
            image,
            weights,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=layout,
            feature_group_count=groups,
        )

    rebound = rebind_convolutions(convolve)
    assert convolutions(rebound, image, weights) == (1, 0)
    both = compile_quickly(
        lambda *pair: [with_derivatives(f, *pair) for f in (rebound, convolve)], image, weights
    )
    assert_equal(*both(image, weights))


def convolve(image, kernel, **options):
    options = {"dimension_numbers": NUMBERS, **options}
    return lax.conv_general_dilated(image, kernel, (1, 1), ((1, 1), (1, 1)), **options)


IMAGE, KERNEL = normal(2, 5, 5, 3), normal(3, 3, 3, 3, seed=1)


@pytest.mark.parametrize(
    "function, shapes, dtype",
    [
        (lambda x, k: convolve(x, k, lhs_dilation=(2, 1)), None, "float32"),
        (lambda x, k: convolve(x, k[..., :2], batch_group_count=2), None, "float32"),
        (lambda x, k: convolve(x, k, preferred_element_type=jnp.float32), None, "bfloat16"),
        (lambda x, k: convolve(x, k), None, "int32"),
        (lambda x, k: lax.conv(x, k, (1, 1, 1), "SAME"), ((1, 2, 4, 4, 4), (3, 2, 3, 3, 3)), None),
        (convolve, ((1, 16, 16, 1), (12, 12, 1, 1)), None),  # more than 128 positions
        (lambda x, k: lax.conv(x, k, (1, 1), "VALID"), ((1, 2, 3, 3), (4, 2, 4, 4)), None),  # empty
        (lambda x, k: x @ k, ((2, 3), (3, 4)), None),
    ],
)
def test_what_is_not_replaced_goes_to_the_function_itself(function, shapes, dtype):
    image, kernel = (IMAGE, KERNEL) if shapes is None else (normal(*shape) for shape in shapes)
    image, kernel = image.astype(dtype or "float32"), kernel.astype(dtype or "float32")
    calls = []

    def watched(image, kernel):
        calls.append(image)
        return function(image, kernel)

    actual = rebind_convolutions(watched)(image, kernel)
    assert calls[-1] is image
    np.testing.assert_array_equal(actual, function(image, kernel))


def test_a_large_kernel_that_tiles_the_image_is_replaced():
    image, kernel = normal(2, 24, 24, 1), normal(12, 12, 1, 4)

    def embed(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(image, kernel, (12, 12), "VALID", dimension_numbers=numbers)

    rebound = rebind_convolutions(embed)
    assert convolutions(rebound, image, kernel) == (1, 0)
    assert_equal(rebound(image, kernel), embed(image, kernel))


def looping(image, kernel):
    """Convolutions inside every kind of call that is looked into."""

    def body(carry, scale):
        value = jax.jit(convolve)(carry, scale * kernel)
        return jnp.tanh(value), value.sum()

    doubled = jax.custom_batching.custom_vmap(lambda x, k: 2 * convolve(x, k))
    doubled.def_vmap(lambda size, mapped, x, k: (2 * convolve(x[0], k)[None], True))
    image, sums = lax.scan(body, image, jnp.arange(1.0, 4.0), reverse=True, unroll=2)
    image = lax.fori_loop(0, 2, lambda _, x: jnp.tanh(convolve(x, kernel)), image)
    image = lax.cond(sums[0] > 0, lambda x: convolve(x, kernel), lambda x: x - 1, image)
    image = jax.checkpoint(lambda x: jnp.sin(convolve(jnp.sin(x), kernel)))(image)
    # A custom_vmap has no gradient.
    image = image + doubled(*map(lax.stop_gradient, (image, kernel)))
    return image, {"sums": sums, "none": None}


def test_bodies_of_calls_are_rewritten():
    rebound = rebind_convolutions(looping)
    assert convolutions(rebound, IMAGE, KERNEL) == (5, 0)
    renamed = {"conv_general_dilated": "rlprune_convolution"}
    original = primitives(looping, IMAGE, KERNEL)
    assert primitives(rebound, IMAGE, KERNEL) == [renamed.get(name, name) for name in original]

    def value(function):
        def loss(image, kernel):
            output, extra = function(image, kernel)
            return jnp.sum(output**2) + extra["sums"].sum()

        return lambda *pair: (function(*pair), jax.grad(loss, (0, 1))(*pair))

    actual, expected = jax.jit(lambda *pair: [value(f)(*pair) for f in (rebound, looping)])(
        IMAGE, KERNEL
    )
    assert_equal(actual, expected)


def test_a_while_loop_with_a_convolution_in_its_condition():
    def grow(image, kernel):
        return lax.while_loop(
            lambda x: jnp.abs(convolve(x, kernel)).max() < 9, lambda x: 2 * x, image
        )

    rebound = rebind_convolutions(grow)
    assert convolutions(rebound, IMAGE, KERNEL) == (1, 0)
    assert_equal(rebound(IMAGE, KERNEL), grow(IMAGE, KERNEL))


def test_a_checkpoint_computes_again_and_keeps_its_policy():
    policy = jax.checkpoint_policies.save_only_these_names("kept")

    def function(kernel, image):
        def block(image):
            hidden = checkpoint_name(jnp.sin(convolve(image, kernel)), "kept")
            return jnp.sin(convolve(hidden, kernel))

        return jax.checkpoint(block, policy=policy)(image).sum()

    rebound = rebind_convolutions(function)
    actual, expected = (
        primitives(jax.grad(f), KERNEL, IMAGE).count(name)
        for f, name in ((rebound, "rlprune_convolution"), (function, "conv_general_dilated"))
    )
    # Forward two, and again the second and the one under the name; XLA's gradients count too.
    assert actual == 4 and expected == actual + 3
    assert_equal(jax.grad(rebound)(KERNEL, IMAGE), jax.grad(function)(KERNEL, IMAGE))


def test_derivatives_of_ones_own_are_kept():
    @jax.custom_vjp
    def straight_through(image):
        return jnp.round(convolve(image, KERNEL))

    straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (7 * g,))

    @jax.custom_jvp
    def halved(image):
        return convolve(image, KERNEL)

    halved.defjvp(lambda primals, tangents: (halved(*primals), 0.5 * tangents[0]))

    def function(image):
        return nn.relu(convolve(halved(straight_through(image)), KERNEL))

    rebound = rebind_convolutions(function)
    assert convolutions(rebound, IMAGE) == (1, 2)
    for f in (function, rebound):
        loss = jax.grad(lambda x, f=f: f(x).sum())
        assert_equal(loss(IMAGE), jax.grad(lambda x: function(x).sum())(IMAGE))


class LinenNetwork(nn.Module):
    """Two dimensions with batch norm and dropout, or one dimension."""

    space: int = 2

    @nn.compact
    def __call__(self, x, training=False):
        for width, groups in ((4, 1), (6, 2), (6, 6)):
            x = nn.Conv(width, (3,) * self.space, feature_group_count=groups)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not training)(x))
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(3)(x.mean(tuple(range(1, 1 + self.space))))


@pytest.mark.parametrize("space", [1, 2])
def test_linen_in_both_modes_with_keywords(space):
    network, x = LinenNetwork(space), normal(4, *(6,) * space, 2)
    variables = network.init(jax.random.key(0), x)
    rebound = rebind_convolutions(network.apply)
    options: dict[str, Any] = {
        "training": True,
        "mutable": ["batch_stats"],
        "rngs": {"dropout": jax.random.key(1)},
    }
    modes: list[dict[str, Any]] = [{}, options]
    for keywords in modes:
        assert convolutions(rebound, variables, x, **keywords) == (3, 0)

    def outputs(apply):
        return [apply(variables, x, **keywords) for keywords in modes]

    assert_equal(*compile_quickly(lambda: (outputs(rebound), outputs(network.apply)))())


def test_training_in_a_scan_equals_the_original():
    network, x = LinenNetwork(), normal(8, 6, 6, 2)
    variables = network.init(jax.random.key(0), x)

    def train(apply):
        def step(variables, _):
            def loss(params):
                outputs, updates = apply(
                    {**variables, "params": params}, x, training=True,
                    mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
                )  # fmt: skip
                return jnp.sum(outputs**2), updates

            gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
            params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradients)
            return {"params": params, **updates}, None

        return lambda variables: lax.scan(step, variables, None, length=2)[0]

    rebound = train(rebind_convolutions(network.apply))
    assert convolutions(rebound, variables)[1] == 0
    both = compile_quickly(lambda v: (rebound(v), train(network.apply)(v)), variables)
    assert_equal(*both(variables), 1e-3)


def test_nnx_state_keeps_its_structure():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x))

    definition, state = nnx.split(Network(nnx.Rngs(0)))
    x = normal(2, 5, 5, 2)

    def train(state, x):
        network = nnx.merge(definition, state)
        network.train()
        return network(x), nnx.state(network)

    rebound = rebind_convolutions(train)
    assert convolutions(rebound, state, x) == (1, 0)
    assert_equal(rebound(state, x), train(state, x))


class EquinoxNetwork(eqx.Module):
    layers: list
    activation: Any = eqx.field(static=True)

    def __init__(self, space, key):
        first, second = jax.random.split(key)
        conv = {1: eqx.nn.Conv1d, 2: eqx.nn.Conv2d}[space]
        self.layers = [
            conv(2, 4, 3, padding=1, key=first),
            conv(4, 4, 3, stride=2, groups=4, key=second),
        ]
        self.activation = jax.nn.relu

    def __call__(self, x):
        for layer in self.layers:
            x = self.activation(layer(x))
        return x.mean(tuple(range(1, x.ndim)))


@pytest.mark.parametrize("space", [1, 2])
def test_equinox_vmapped_over_images_and_over_networks(space):
    modules = [EquinoxNetwork(space, jax.random.key(seed)) for seed in range(3)]
    population = jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)
    x = normal(4, 2, *(7,) * space)

    def apply(module, x):
        return jax.vmap(module)(x)

    rebound = rebind_convolutions(apply)
    assert convolutions(rebound, modules[0], x) == (2, 0)
    assert_equal(
        jax.jit(lambda: [jax.vmap(f, (0, None))(population, x) for f in (rebound, rebound)])(),
        jax.jit(lambda: [jax.vmap(f, (0, None))(population, x) for f in (apply, apply)])(),
    )


@pytest.mark.parametrize("space", [1, 2])
def test_export_with_a_symbolic_batch_and_a_symbolic_size(space):
    module = EquinoxNetwork(space, jax.random.key(0))
    x = normal(4, 2, *(7,) * space)
    rebound = rebind_convolutions(lambda x: jax.vmap(module)(x))

    def export(shape):
        sizes = jax.export.symbolic_shape(shape)
        return jax.export.export(jax.jit(rebound))(jax.ShapeDtypeStruct(sizes, jnp.float32))

    batch = export("b, 2" + ", 7" * space)
    assert_equal(batch.call(x), rebound(x))
    assert_equal(batch.call(x[:1]), rebound(x[:1]))
    sized = export("4, 2" + ", s" * space)  # the convolution of XLA
    assert_equal(sized.call(x), rebound(x))


def test_arguments_and_outputs_that_are_no_arrays():
    def apply(variables, x, activation, scale=1.0, *, key=None, names=("a",)):
        assert isinstance(scale, float) and names == ("b",) and isinstance(variables["flag"], bool)
        noise = jax.random.normal(key, ())
        output = activation(convolve(x, variables["kernel"])) * scale + noise
        return {"output": output, "none": None, "name": names[0], "rate": scale, "host": np.ones(2)}

    options = dict(key=jax.random.key(0), names=("b",))
    args = ({"kernel": np.asarray(KERNEL), "flag": True}, IMAGE, nn.relu, 2.0)
    actual = rebind_convolutions(apply)(*args, **options)
    expected = apply(*args, **options)
    assert actual["name"] == "b" and actual["rate"] == 2.0 and actual["none"] is None
    assert_equal(*({**tree, "name": None} for tree in (actual, expected)))


def test_twice_is_once():
    rebound = rebind_convolutions(convolve)
    assert rebind_convolutions(rebound) is rebound
    again = rebind_convolutions(lambda image, kernel: rebound(image, kernel))
    assert str(jax.make_jaxpr(again)(IMAGE, KERNEL)) == str(jax.make_jaxpr(rebound)(IMAGE, KERNEL))


def test_a_compiled_function_is_not_compiled_again(caplog):
    rebound = rebind_convolutions(jax.jit(convolve))
    rebound(IMAGE, KERNEL)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        rebound(IMAGE, KERNEL)
        assert not [each for each in caplog.messages if each.startswith("Compiling")]
        rebound(IMAGE[:1], KERNEL)
        assert [each for each in caplog.messages if each.startswith("Compiling")]


def test_no_tracer_leaks_and_the_program_is_well_typed():
    rebound = rebind_convolutions(lambda kernel, image: looping(image, kernel)[0].sum())
    with jax.checking_leaks(), jax.enable_checks(True):
        jax.jit(jax.grad(rebound)).lower(KERNEL, IMAGE)


def test_meshes_are_left_to_lax():
    explicit = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    rebound = rebind_convolutions(convolve)
    with jax.set_mesh(explicit):
        sharded = jax.device_put(IMAGE, jax.NamedSharding(explicit, P("d")))
        assert convolutions(rebound, sharded, KERNEL) == (0, 1)
        assert convolutions(rebound, IMAGE, KERNEL) == (1, 0)
        written = conv_general_dilated(sharded, KERNEL, (1, 1), "SAME", dimension_numbers=NUMBERS)
        assert jax.typeof(written).sharding.spec == P("d", None, None, None)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(function):
        loss = jax.grad(lambda k, x: jnp.sum(function(x, k) ** 2))
        return jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())

    names = [primitives(gradient(f), KERNEL, IMAGE) for f in (rebound, convolve)]
    assert names[0] == names[1]


def test_batch_statistics_over_a_mapped_axis():
    def apply(kernel, image):
        hidden = convolve(image[None], kernel)
        return hidden - lax.pmean(hidden.mean(), "batch")

    actual, expected = (
        jax.vmap(f, (None, 0), axis_name="batch")(KERNEL, IMAGE)
        for f in (rebind_convolutions(apply), apply)
    )
    assert_equal(actual, expected)
