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


def counted(function):
    """Return a function and the list that grows with every call of it."""
    calls = []

    def call(*args, **keywords):
        calls.append(keywords)
        return function(*args, **keywords)

    return call, calls


def test_a_graph_remembers_the_functions_it_was_matched_with(small):
    graph, variables, x = small
    function, calls = counted(two_layers)
    gates = {"a": jnp.array([1.0, 0, 1, 0, 1])}
    expected = gated(function, graph)(variables, gates, x)
    assert len(calls) == 1
    # Another masked network, other arrays, inside of jit, grad and vmap: the shapes are the same.
    assert_close(gated(function, graph)(variables, gates, x), expected, 1e-6)
    masked = gated(function, graph)
    assert_close(jax.jit(masked)(variables, gates, x), expected, 1e-6)
    jax.grad(lambda v: masked(v, gates, x).sum())(variables)
    several = jax.vmap(masked, (None, 0, None))(variables, {"a": jnp.ones((2, 5))}, x)
    assert_close(several[0], two_layers(variables, x), 1e-5)
    assert len(calls) == 1
    masked(variables, gates, x[:2])
    assert len(calls) == 2
    masked(variables, gates, x)
    assert len(calls) == 2


def test_what_the_graph_was_traced_with_is_remembered_too(small):
    _, variables, x = small
    function, calls = counted(two_layers)
    graph = trace_graph(function, variables, x)
    gated(function, graph)(variables, ones_gates(graph), x)
    assert len(calls) == 1


def test_precision_is_that_of_the_call(small):
    graph, variables, x = small
    masked = gated(two_layers, graph)
    with jax.default_matmul_precision("highest"):
        masked(variables, ones_gates(graph), x)
    jaxpr = jax.make_jaxpr(masked)(variables, ones_gates(graph), x)
    dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert [eqn.params["precision"] for eqn in dots] == [None, None]


def test_what_closes_over_a_tracer_is_not_remembered(small):
    graph, variables, x = small
    gates = ones_gates(graph)
    before = len(graph.programs)

    @jax.jit
    def shifted(shift):
        def function(variables, x):
            return two_layers(variables, x) + shift

        found = gated(function, graph)(variables, gates, x)
        assert len(graph.programs) == before
        return found, gated(function, graph)(variables, gates, x)

    with jax.checking_leaks():
        for shift in (0.0, 1.0):
            first, second = shifted(shift)
            assert_close(first, two_layers(variables, x) + shift, 1e-5)
            assert_close(second, first, 1e-6)


def test_ever_new_functions_do_not_pile_up(small):
    graph, variables, x = small
    for number in range(3):
        gated(lambda v, x, n=number: two_layers(v, x) + n, graph)(variables, ones_gates(graph), x)
    assert len(graph.programs) <= 1


def test_keywords_are_passed_on(small):
    graph, variables, x = small

    def function(variables, x, *, shift, key, negative=False):
        assert isinstance(negative, bool)
        x = -x if negative else x
        return {"y": two_layers(variables, x) + shift, "noise": jax.random.normal(key, (2,))}

    function, calls = counted(function)
    masked = jax.jit(gated(function, graph), static_argnames="negative")
    for seed, negative in ((0, True), (1, True), (0, False)):
        keywords = {"shift": jnp.float32(seed), "key": jax.random.key(seed), "negative": negative}
        found = masked(variables, ones_gates(graph), x, **keywords)
        expected = function(variables, x, **keywords)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), found, expected)
    assert len(calls) == 3 + 2  # traced once for each static argument
    inputs = {"shift": 1, "key": jax.random.key(0)}
    by_name = gated(function, graph)(variables, ones_gates(graph), x=x, **inputs)
    assert_close(by_name["y"], two_layers(variables, x) + 1, 1e-5)


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
    with pytest.raises(TypeError, match=r"gates\['a'\] is a list; pass an array f32\[5\]"):
        gated(two_layers, graph)(variables, {"a": [1.0] * 5}, x)


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
        return two_layers(variables, x).sum() + jnp.sort(variables["a"], axis=1)[0, 0]

    with pytest.raises(ValueError, match=r"units of 'a' .* mixed by 'sort' at test_.*outside"):
        gated(penalised, graph)(variables, ones_gates(graph), x)

    def coupled(variables, x):
        return two_layers(variables | {"a": variables["a"] + variables["a"][:, ::-1]}, x)

    with pytest.raises(ValueError, match="couples units of 'a'"):
        gated(coupled, graph)(variables, ones_gates(graph), x)
