import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from networks import (
    DenseNetwork,
    NormedNetwork,
    ResidualNetwork,
    SeparableNetwork,
    TrainedNetwork,
    assert_close,
    assert_masked_equals_slim,
    compile_quickly,
    images,
    random_gates,
    random_like,
    random_variables,
)

from rlprune_jax import compact, count_params, gated, respecialise, trace_graph
from rlprune_jax.models import create_model, model_functions

ZOO = {
    "mlp": {"widths": (6, 5)},
    "cnn": {"widths": (4, 5, 6)},
    "vgg16": {"width": 1 / 32, "pools": 3},
}
MODULES = [ResidualNetwork(), DenseNetwork(), SeparableNetwork(), NormedNetwork()]


@pytest.mark.parametrize("name", ZOO)
def test_zoo_masked_equals_slim(name):
    functions = model_functions(create_model(name, 3, **ZOO[name]))
    x = images(4)
    variables = random_like(jax.eval_shape(functions.init, jax.random.key(0), x))
    graph = trace_graph(functions.apply, variables, x)
    for seed, apply in [(0, functions.apply), (1, functions.apply_train)]:
        gates = random_gates(graph, seed)
        slim = compact(graph, variables, gates)
        assert sum(map(np.size, jax.tree.leaves(slim["params"]))) == count_params(graph, gates)
        # VGG is CNN with more of the same; its gradients take long to compile.
        gradient = name == "cnn" and apply is functions.apply_train
        assert_masked_equals_slim(apply, graph, variables, gates, x, gradient=gradient)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_linen_masked_equals_slim(module):
    x = images() if not isinstance(module, NormedNetwork) else images()[:, 0]
    variables = random_variables(module, x)

    def apply(variables, x):
        return module.apply(variables, x)

    def train(variables, x):
        keys = {"dropout": jax.random.key(3)}
        logits, updates = module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=keys)
        return logits, dict(updates)

    graph = trace_graph(apply, variables, x)
    for seed, function in [(0, apply), (1, train)]:
        gates = random_gates(graph, seed)
        assert_masked_equals_slim(function, graph, variables, gates, x, gradient=function is train)


class NoisyNetwork(nn.Module):
    """Batch statistics and dropout: what Linen takes keyword arguments for."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(3)(x)


def test_linen_is_passed_without_a_wrapper():
    """Keyword arguments of Linen pass through both, and its variables may be frozen."""
    module, x = NoisyNetwork(), jax.random.normal(jax.random.key(0), (4, 5))
    variables = random_variables(module, x)

    def options(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return {"train": True, "mutable": ["batch_stats"], "rngs": rngs}

    for given in (variables, freeze(variables)):
        graph = trace_graph(module.apply, given, x)
        gates = random_gates(graph, 0)
        slim = compact(graph, given, gates)
        assert type(slim) is type(given)
        masked, thin = gated(module.apply, graph), respecialise(module.apply, graph, gates)
        assert_close(thin(slim, x), masked(given, gates, x))
        dense_outputs, updates = masked(given, gates, x, **options(3))
        outputs, slim_updates = thin(slim, x, **options(3))
        assert_close(outputs, dense_outputs)
        cut = compact(graph, {**given, **updates}, gates)
        assert_close(dict(slim_updates), {"batch_stats": cut["batch_stats"]})
        other, _ = thin(slim, x, **options(4))
        assert np.abs(other - outputs).max() > 1e-3


def two_layers(variables, x):
    return jnp.tanh(x @ variables["a"] + 1) @ variables["b"]


def graph_of(function, **shapes):
    variables = random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    x = jax.random.normal(jax.random.key(2), (4, 3))
    return trace_graph(function, variables, x), variables, x


@pytest.fixture
def small():
    return graph_of(two_layers, a=(3, 5), b=(5, 2))


GATES = {"a": jnp.array([0.0, 1, 0, 1, 1])}


def test_compact_takes_the_kept_units_in_order(small):
    graph, variables, _ = small
    slim = compact(graph, variables, GATES)
    np.testing.assert_array_equal(slim["a"], variables["a"][:, [1, 3, 4]])
    np.testing.assert_array_equal(slim["b"], variables["b"][jnp.array([1, 3, 4])])


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (np.zeros(5), r"gates\['a'\] prunes all 5 units"),
        (np.full(5, 0.5), r"gates\['a'\] holds 0.5; every gate must be 0 or 1"),
        (np.full(5, np.nan), r"gates\['a'\] holds nan"),
        (np.ones(6), r"gates\['a'\] has shape \(6,\)"),
    ],
)
def test_compact_refuses_bad_gates(small, gate, message):
    graph, variables, _ = small
    with pytest.raises(ValueError, match=message):
        compact(graph, variables, {"a": gate})


def test_compact_refuses_traced_gates_unknown_groups_and_foreign_variables(small):
    graph, variables, _ = small
    with pytest.raises(TypeError, match=r"gates\['a'\] is traced"):
        jax.jit(lambda gates: compact(graph, variables, gates))(GATES)
    with pytest.raises(ValueError, match=r"unknown: \['z'\]"):
        compact(graph, variables, GATES | {"z": np.ones(2)})
    with pytest.raises(ValueError, match="'b' has shape"):
        compact(graph, variables | {"b": jnp.ones((4, 2))}, GATES)


def test_respecialise_without_gates_reads_the_widths(small):
    graph, variables, x = small
    slim = compact(graph, variables, GATES)
    masked = gated(two_layers, graph)(variables, GATES, x)
    for function in (respecialise(two_layers, graph), respecialise(two_layers, graph, GATES)):
        assert_close(jax.jit(function)(slim, x), masked, 1e-6)
        several = jax.vmap(function, (None, 0))(slim, jnp.stack([x, x]))
        assert_close(several[1], masked, 1e-6)


def test_inputs_of_other_shapes_do_where_the_function_takes_them(small):
    graph, variables, _ = small
    x = jax.random.normal(jax.random.key(3), (2, 7, 3))
    slim = compact(graph, variables, GATES)
    masked = gated(two_layers, graph)(variables, GATES, x)
    assert masked.shape == (2, 7, 2)
    assert_close(respecialise(two_layers, graph, GATES)(slim, x), masked, 1e-6)


def test_slim_networks_of_the_same_function_are_traced_once(small):
    graph, variables, x = small
    count = 0

    def counted(variables, x):
        nonlocal count
        count += 1
        return two_layers(variables, x)

    for gate in ([1, 1, 0, 0, 0], [1, 0, 1, 0, 1]):
        gates = {"a": jnp.array(gate, jnp.float32)}
        slim = compact(graph, variables, gates)
        found = respecialise(counted, graph, gates)(slim, x)
        assert_close(found, gated(two_layers, graph)(variables, gates, x), 1e-6)
    assert count == 1


def test_widths_are_told_apart_in_a_concatenation():
    module, x = DenseNetwork(), images()
    variables = random_variables(module, x)

    def apply(variables, x):
        return module.apply(variables, x)

    graph = trace_graph(apply, variables, x)
    gates = random_gates(graph, 2)
    output = jax.jit(respecialise(apply, graph))(compact(graph, variables, gates), x)
    assert_close(output, jax.jit(gated(apply, graph))(variables, gates, x))


def test_widths_held_by_several_groups_are_told_from_one_another():
    def apply(v, x):
        q, k, value = jnp.split(x @ v["qkv"], [4, 8], axis=-1)
        return jnp.tanh(q @ k.T) @ value @ v["out"]

    graph, variables, x = graph_of(apply, qkv=(3, 14), out=(6, 2))
    assert graph.sizes == (4, 6)
    gates = random_gates(graph, 0)
    output = respecialise(apply, graph)(compact(graph, variables, gates), x)
    assert_close(output, gated(apply, graph)(variables, gates, x))


def test_wrong_widths_are_refused(small):
    graph, variables, x = small
    slim = compact(graph, variables, GATES)
    function = respecialise(two_layers, graph)
    for wrong, message in [
        ({"a": jnp.ones((3, 6))}, r"'a' has shape \(3, 6\), which leaves group 'a' 6 of its 5"),
        ({"b": jnp.ones((4, 2))}, r"'b' has shape \(4, 2\), the kept units give \(3, 2\)"),
        ({"a": jnp.ones((2, 3))}, r"'a' has shape \(2, 3\), the kept units give \(3, 3\)"),
        ({"c": jnp.ones(2)}, "'c' is not in the graph"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(slim | wrong, x)
    with pytest.raises(ValueError, match=r"'a' has shape \(3, 3\), the kept units give \(3, 1\)"):
        respecialise(two_layers, graph, {"a": np.array([1, 0, 0, 0, 0])})(slim, x)
    with pytest.raises(ValueError, match="'b' is not in variables"):
        function({"a": slim["a"]}, x)


@pytest.mark.parametrize("scale", [np.arange(5, dtype=np.float32), None], ids=["constant", "iota"])
def test_what_depends_on_a_units_place_needs_the_gates(scale):
    def apply(v, x):
        places = jnp.arange(5.0) if scale is None else scale
        return (jnp.tanh(x @ v["a"]) * places) @ v["b"]

    graph, variables, x = graph_of(apply, a=(3, 5), b=(5, 2))
    slim = compact(graph, variables, GATES)
    with pytest.raises(ValueError, match=r"respecialise\(apply, graph, gates\)"):
        respecialise(apply, graph)(slim, x)
    assert_masked_equals_slim(apply, graph, variables, GATES, x)


def test_constants_that_do_not_tell_units_apart_need_no_gates():
    def apply(v, x):
        return (jnp.tanh(x @ v["a"]) * np.full((4, 5), 2.0, np.float32)) @ v["b"]

    graph, variables, x = graph_of(apply, a=(3, 5), b=(5, 2))
    masked = gated(apply, graph)(variables, GATES, x)
    assert_close(respecialise(apply, graph)(compact(graph, variables, GATES), x), masked)


def test_custom_derivatives_survive_on_slim_arrays():
    @jax.custom_vjp
    def straight_through(h):
        return jnp.sign(h)

    straight_through.defvjp(lambda h: (jnp.sign(h), None), lambda _, g: (g * 7,))

    @jax.custom_jvp
    def relu(h):  # not jax.nn.relu, whose name it has
        return jnp.maximum(h, 0)

    relu.defjvps(lambda g, answer, h: 3 * g)

    def apply(v, x):
        return (straight_through(x @ v["a"]) + relu(x @ v["a"]) + jax.nn.relu(x @ v["a"])) @ v["b"]

    graph, variables, x = graph_of(apply, a=(3, 5), b=(5, 2))
    assert_masked_equals_slim(apply, graph, variables, GATES, x)
    slim = compact(graph, variables, GATES)
    gradient = jax.grad(lambda v: respecialise(apply, graph)(v, x).sum())(slim)["a"]
    slope = 7 + 3 + (x @ slim["a"] > 0)
    assert_close(gradient, x.T @ (slope * slim["b"].sum(1)), 1e-5)


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "chain": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(1e-2, 20)),
    "masked": optax.masked(
        optax.adam(1e-2), lambda params: {**dict.fromkeys(params, True), "head": False}
    ),
    "accumulating": optax.MultiSteps(optax.adam(1e-2), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slim_training_follows_masked_training(name):
    optimizer = OPTIMIZERS[name]
    functions = model_functions(TrainedNetwork())
    x, labels = images(6), jnp.arange(6) % 3
    variables = functions.init(jax.random.key(0), x)
    graph = trace_graph(functions.apply, variables, x)
    gates = random_gates(graph, 0)

    def train(network, variables, state):
        def step(carry, _):
            variables, state = carry

            def loss(params):
                logits, updates = network({**variables, "params": params}, x)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), updates

            gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
            change, state = optimizer.update(gradient, state, variables["params"])
            params = optax.apply_updates(variables["params"], change)
            return ({**variables, **updates, "params": params}, state), None

        def run(*carry):
            return jax.lax.scan(step, carry, length=20)[0][0]

        return compile_quickly(run, variables, state)(variables, state)

    def masked(variables, x):
        return gated(functions.apply_train, graph)(variables, gates, x)

    # Moments that are not zero, so that a wrong cut would be felt.
    state = jax.tree.map(
        lambda leaf: (
            0.01 + 0.01 * jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) / leaf.size
            if leaf.ndim
            else leaf
        ),
        optimizer.init(variables["params"]),
    )
    slim, slim_state = compact(graph, variables, gates, opt_state=state)
    wanted = jax.tree.map(np.shape, optimizer.init(slim["params"]))
    assert jax.tree.map(np.shape, slim_state) == wanted
    masked_end = train(masked, variables, state)
    slim_end = train(respecialise(functions.apply_train, graph), slim, slim_state)
    assert_close(compact(graph, masked_end, gates), slim_end, 1e-5)
    assert (
        np.abs(slim_end["params"]["head"]["kernel"] - slim["params"]["head"]["kernel"]).max() > 1e-3
    )


def test_factored_moments_are_refused_not_left_dense(small):
    graph, variables, _ = small
    state = {"v_row": {"a": jnp.ones(3), "b": jnp.ones(5)}}
    with pytest.raises(ValueError, match=r"opt_state leaf 'v_row/a' has shape \(3,\)"):
        compact(graph, variables, GATES, opt_state=state)
    kept = {"count": jnp.zeros(()), "other": jnp.ones(7)}
    assert_close(compact(graph, variables, GATES, opt_state=kept)[1], kept, 0)


def test_the_state_of_another_network_is_refused(small):
    graph, variables, _ = small
    other = optax.adam(0.1).init({"c": jnp.ones((4, 6)), "bias": jnp.ones(6)})
    with pytest.raises(ValueError, match=r"leaf '0/mu/c' of shape \(4, 6\) goes with none of the"):
        compact(graph, variables, GATES, opt_state=other)


def test_histories_are_cut_like_the_variables_they_remember(small):
    graph, variables, _ = small
    optimizer = optax.scale_by_lbfgs(memory_size=3)
    slim = compact(graph, variables, GATES)
    gradient = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    _, state = optimizer.update(gradient, optimizer.init(variables), variables)
    _, slim_state = compact(graph, variables, GATES, opt_state=state)
    assert jax.tree.map(np.shape, slim_state) == jax.tree.map(np.shape, optimizer.init(slim))
    np.testing.assert_array_equal(
        slim_state.diff_params_memory["a"], state.diff_params_memory["a"][:, :, [1, 3, 4]]
    )


def test_units_that_do_not_lie_side_by_side_need_the_gates():
    def apply(variables, x):
        narrow = jax.nn.relu(x @ variables["a"])
        wide = jax.nn.relu(narrow @ variables["b"])
        return (wide + jnp.pad(narrow, ((0, 0), (2, 2)))) @ variables["c"]

    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (3, 4), "b": (4, 8), "c": (8, 2)}
    variables = {
        name: jax.random.normal(key, shape)
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }
    x = jax.random.normal(keys[3], (5, 3))
    graph = trace_graph(apply, variables, x)
    # Of the units that the padding adds, two before and two after, one before and two after stay.
    gates = {"a": jnp.array([0.0, 1, 1, 0]), "b": jnp.array([0.0, 1, 1, 1])}
    slim = compact(graph, variables, gates)
    masked = gated(apply, graph)(variables, gates, x)
    np.testing.assert_allclose(respecialise(apply, graph, gates)(slim, x), masked, atol=1e-5)
    with pytest.raises(ValueError, match=r"a, b cannot be told from widths alone.*pass the gates"):
        respecialise(apply, graph)(slim, x)
