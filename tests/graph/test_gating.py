import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import ResidualNetwork, assert_close, images, random_gates, random_variables

from rlprune_jax import gated, ones_gates, trace_graph
from rlprune_jax.models import create_model, model_functions

MODULE = ResidualNetwork()


def apply(variables, x):
    return MODULE.apply(variables, x)


@pytest.fixture(scope="module")
def network():
    x = images()
    variables = random_variables(MODULE, x)
    return trace_graph(apply, variables, x), variables, x


def two_layers(variables, x):
    return jnp.tanh(x @ variables["a"] + 1) @ variables["b"]


@pytest.fixture
def small():
    variables = {
        "a": jax.random.normal(jax.random.key(0), (3, 5)),
        "b": jax.random.normal(jax.random.key(1), (5, 2)),
    }
    x = jax.random.normal(jax.random.key(2), (4, 3))
    return trace_graph(two_layers, variables, x), variables, x


def test_all_ones_is_the_network_and_gates_are_felt(network):
    graph, variables, x = network
    masked = jax.jit(gated(apply, graph))
    dense = jax.jit(apply)(variables, x)
    assert_close(masked(variables, ones_gates(graph), x), dense, 1e-6)
    pruned = masked(variables, random_gates(graph, 0), x)
    assert np.abs(pruned - dense).max() > 1e-2


def test_jit_vmap_and_other_batch_sizes(network):
    graph, variables, x = network
    masked = gated(apply, graph)
    several = [random_gates(graph, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    together = jax.jit(jax.vmap(masked, (None, 0, None)))(variables, stacked, x)
    single = jax.jit(masked)
    for number, gates in enumerate(several):
        assert_close(single(variables, gates, x), together[number], 1e-5)
    assert_close(masked(variables, several[0], x), together[0], 1e-5)
    other = jnp.concatenate([x, x[:1]])
    assert_close(single(variables, several[0], other)[-1], together[0, 0], 1e-5)


def test_gates_in_a_scan(network):
    graph, variables, x = network
    several = [random_gates(graph, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    @jax.jit
    def run(stacked):
        return jax.lax.scan(
            lambda _, g: (None, gated(apply, graph)(variables, g, x)), None, stacked
        )

    assert_close(run(stacked)[1][1], jax.jit(gated(apply, graph))(variables, several[1], x), 1e-5)


def test_a_second_call_traces_nothing(network):
    graph, variables, x = network
    count = 0

    def counted(variables, x):
        nonlocal count
        count += 1
        return apply(variables, x)

    masked = jax.jit(gated(counted, graph))
    masked(variables, random_gates(graph, 0), x)
    masked(variables, random_gates(graph, 1), x)
    assert count == 1


def test_no_tracer_leaks(small):
    graph, variables, x = small
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda v, g: gated(two_layers, graph)(v, g, x).sum(), argnums=(0, 1)))(
            variables, ones_gates(graph)
        )


def test_soft_gates_multiply_what_is_read(small):
    graph, variables, x = small
    soft = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = (jnp.tanh(x @ variables["a"] + 1) * soft) @ variables["b"]
    assert_close(gated(two_layers, graph)(variables, {"a": soft}, x), expected, 1e-6)
    derivative = jax.grad(lambda g: gated(two_layers, graph)(variables, {"a": g}, x).sum())(soft)
    by_hand = jnp.tanh(x @ variables["a"] + 1).sum(0) * variables["b"].sum(1)
    assert_close(derivative, by_hand, 1e-5)


def test_half_precision_stays_half(small):
    graph, variables, x = small
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    output = gated(two_layers, graph)(half, ones_gates(graph), x.astype(jnp.bfloat16))
    assert output.dtype == jnp.bfloat16


def test_gradient_of_pruned_weights_is_zero_and_of_others_finite():
    functions = model_functions(create_model("cnn", 3, widths=(3, 4)))
    x = images()
    variables = functions.init(jax.random.key(0), x)
    graph = trace_graph(functions.apply, variables, x)
    gates = {"conv1": jnp.array([1.0, 0, 0]), "conv2": jnp.array([0.0, 0, 1, 1])}
    gradient = jax.jit(
        jax.grad(lambda v: gated(functions.apply_train, graph)(v, gates, x)[0].var())
    )(variables)["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    first, second = (np.abs(gradient[name]["kernel"]).sum((0, 1)) for name in ("conv1", "conv2"))
    assert (first[:, 1:] == 0).all() and (first[:, 0] > 0).all()
    assert (second[1:] == 0).all() and (second[0, :2] == 0).all() and (second[0, 2:] > 0).all()


def test_relu_keeps_its_derivative_at_zero(small):
    graph, variables, _ = small

    def function(variables, x):
        return jax.nn.relu(x @ variables["a"]) @ variables["b"]

    # At exactly 0 the derivative of relu is 0, that of max would be 1/2.
    zero = jnp.zeros((1, 3))
    gradient = jax.grad(lambda x: gated(function, graph)(variables, ones_gates(graph), x).sum())
    assert (gradient(zero) == 0).all()


def test_custom_derivatives_are_kept(small):
    graph, variables, x = small

    @jax.custom_vjp
    def straight_through(h):
        return jnp.sign(h)

    straight_through.defvjp(lambda h: (jnp.sign(h), None), lambda _, g: (g * 7,))

    def function(variables, x):
        return straight_through(x @ variables["a"]) @ variables["b"]

    gates = {"a": jnp.array([1.0, 0, 1, 0, 1])}
    gradient = jax.grad(lambda v: gated(function, graph)(v, gates, x).sum())(variables)["a"]
    expected = x.sum(0)[:, None] * 7 * (variables["b"].sum(1) * gates["a"])
    assert_close(gradient, expected, 1e-5)


def test_checkpoint_is_kept(small):
    graph, variables, x = small

    def function(variables, x):
        return jax.checkpoint(lambda h: jnp.sin(jnp.tanh(h @ variables["a"]) @ variables["b"]))(x)

    jaxpr = jax.make_jaxpr(lambda v: gated(function, graph)(v, ones_gates(graph), x))(variables)
    assert [eqn.primitive.name for eqn in jaxpr.eqns].count("remat2") == 1
    masked = jax.grad(lambda v: gated(function, graph)(v, ones_gates(graph), x).sum())(variables)
    assert_close(masked, jax.grad(lambda v: function(v, x).sum())(variables), 1e-5)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({}, "unknown: .., missing: .'a'."),
        ({"a": np.ones(5), "z": np.ones(5)}, "unknown: .'z'., missing: .."),
        ({"a": np.ones(4)}, r"gates\['a'\] has shape \(4,\), needs \(5,\)"),
        ({"a": np.ones((5, 1))}, r"gates\['a'\] has shape \(5, 1\)"),
        ({"a": np.array([1, np.nan, 1, 1, 1])}, r"gates\['a'\] holds nan; .* between 0 and 1"),
        ({"a": np.array([1, -0.5, 1, 1, 1])}, r"gates\['a'\] holds -0.5"),
        ({"a": np.array([1, 1.5, 1, 1, 1])}, r"gates\['a'\] holds 1.5"),
    ],
)
def test_bad_gates_are_refused(small, gates, message):
    graph, variables, x = small
    with pytest.raises(ValueError, match=message):
        gated(two_layers, graph)(variables, gates, x)
    with pytest.raises(TypeError, match="gates must be a dict"):
        gated(two_layers, graph)(variables, np.ones(5), x)


def test_foreign_variables_are_refused(small):
    graph, variables, x = small
    with pytest.raises(ValueError, match=r"'b' has shape \(5, 3\), .* traced with \(5, 2\)"):
        gated(two_layers, graph)(variables | {"b": jnp.ones((5, 3))}, ones_gates(graph), x)
    with pytest.raises(ValueError, match="'c' is not in the graph"):
        gated(two_layers, graph)(variables | {"c": jnp.ones(1)}, ones_gates(graph), x)
    with pytest.raises(ValueError, match="'b' is not in variables"):
        gated(two_layers, graph)({"a": variables["a"]}, ones_gates(graph), x)


def test_a_function_that_uses_units_otherwise_is_refused(small):
    graph, variables, x = small

    def penalised(variables, x):
        return two_layers(variables, x).sum() + (variables["a"] ** 2).sum()

    with pytest.raises(ValueError, match=r"units of 'a' .* read whole by 'reduce_sum'.*outside"):
        gated(penalised, graph)(variables, ones_gates(graph), x)

    def coupled(variables, x):
        return two_layers(variables | {"a": variables["a"] + variables["a"][:, ::-1]}, x)

    with pytest.raises(ValueError, match="couples units of 'a'"):
        gated(coupled, graph)(variables, ones_gates(graph), x)
