"""The same small network in each framework: pruned, saved, loaded, trained."""

import functools
import os
import warnings
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from keras import layers

from rlprune_jax import classification, prune, trace_graph
from rlprune_jax.export import save_weights
from rlprune_jax.export.plan import make_plan, write_plan
from rlprune_jax.graph.slim import compact
from rlprune_jax.training.recalibration import find_statistics, recalibrate
from rlprune_jax.workflow.frameworks import training_mode
from rlprune_jax.workflow.network import CallError, Network, NetworkError
from rlprune_jax.workflow.tuning import MaskedFunction

X = jax.random.normal(jax.random.key(0), (8, 6, 6, 1))
FIRST = jnp.moveaxis(X, 3, 1)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9)(x))
        x = nn.Dropout(0.5, deterministic=not training)(x.mean((1, 2)))
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(1, 4, (3, 3), rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(4, momentum=0.9, rngs=rngs)])
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema", momentum=0.9)
        self.dropout, self.head = eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=keys[1])

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(x), state)
        return self.head(self.dropout(jax.nn.relu(x).mean((1, 2)), key=key)), state


@hk.transform_with_state
def haiku(x, training):
    x = hk.BatchNorm(True, True, decay_rate=0.9)(hk.Conv2D(4, 3)(x), training)
    x = jax.nn.relu(x).mean((1, 2))
    return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.5, x) if training else x)


def linen_network(key):
    return Network.from_linen(Linen(), Linen().init(jax.random.key(key), X[:1]), X[:2])


def nnx_network(key):
    return Network.from_nnx(Nnx(nnx.Rngs(key)), X[:2])


def equinox_network(key):
    model, state = eqx.nn.make_with_state(Equinox)(jax.random.key(key))
    return Network.from_equinox(model, FIRST[:2], state=state)


def haiku_network(key):
    def apply(variables, x):
        return haiku.apply(variables["params"], variables["state"], None, x, False)[0]

    def apply_train(variables, x, key=None):
        outputs, state = haiku.apply(variables["params"], variables["state"], key, x, True)
        return outputs, {"state": state}

    params, state = haiku.init(jax.random.key(key), X[:1], True)
    variables = {"params": params, "state": state}
    return Network(apply, variables, X[:2], apply_train=apply_train)


def keras_network(key):
    keras.utils.set_random_seed(key)
    keras.utils.clear_session()  # names count up from layer to layer of a process
    body = [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(momentum=0.9)]
    body += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *body], name="net")
    kinds = {"params": model.trainable_variables, "state": model.non_trainable_variables}
    names = {kind: [each.path.split("net/")[-1] for each in kinds[kind]] for kind in kinds}

    def call(variables, x, training):
        values = [[variables[kind][name] for name in names[kind]] for kind in kinds]
        outputs, state = model.stateless_call(*values, x, training=training)
        return outputs, {"state": dict(zip(names["state"], state, strict=True))}

    variables = {
        kind: {name: each.value for name, each in zip(names[kind], kinds[kind], strict=True)}
        for kind in kinds
    }
    return Network(
        lambda variables, x: call(variables, x, False)[0],
        variables,
        X[:2],
        apply_train=lambda variables, x, key=None: call(variables, x, True),
    )


class Case(NamedTuple):
    make: object
    inputs: jax.Array


CASES = {
    "linen": Case(linen_network, X),
    "nnx": Case(nnx_network, X),
    "equinox": Case(equinox_network, FIRST),
    "haiku": Case(haiku_network, X),
    "keras": Case(keras_network, X),
}


@functools.cache
def network_of(name):
    return CASES[name].make(0)


def first_gone(network):
    return {group.name: jnp.ones(group.size).at[0].set(0.0) for group in network.graph.groups}


every = pytest.mark.parametrize("name", CASES)


@every
def test_parameters_are_apart_from_everything_else(name):
    network = network_of(name)
    # Kernel 9 * 4 + 4, norm 2 * 4, dense 4 * 3 + 3.
    assert sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"])) == 63
    assert network.graph.sizes == (4,)


@every
def test_recalibration_finds_the_statistics(name):
    network, inputs = network_of(name), CASES[name].inputs
    found = find_statistics(network.apply_train, network.variables, inputs)
    assert len(found) == (4 if name == "haiku" else 2)
    renewed = recalibrate(network.apply_train, network.variables, inputs)
    flat = dict(zip(found, range(len(found)), strict=True))
    paths = jax.tree_util.tree_flatten_with_path(renewed)[0]
    after = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    params = jax.tree.leaves(network.variables["params"])
    kernel = next(leaf for leaf in params if leaf.ndim == 4)
    if name == "equinox":
        kernel = jnp.transpose(kernel, (2, 3, 1, 0))
    expected = jax.lax.conv_general_dilated(
        X, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).mean((0, 1, 2))  # biases are 0, but for Equinox's
    if name != "equinox":
        means = [after[path] for path in flat if after[path].ravel().shape == (4,)]
        assert any(np.allclose(mean.ravel(), expected, atol=1e-5) for mean in means)


@every
def test_a_slim_network_is_its_masked_twin_and_loads_from_other_weights(name, tmp_path):
    network, inputs = network_of(name), CASES[name].inputs
    gates = first_gone(network)
    slim = network.slim(gates)
    masked = network.definition.masked(network.variables, gates, inputs)
    np.testing.assert_allclose(slim(inputs), masked, atol=1e-6)
    save_weights(tmp_path / "weights.safetensors", slim.variables)
    write_plan(tmp_path / "plan.json", make_plan(gates, network.variables, slim.variables))
    loaded = CASES[name].make(1).load_slim(tmp_path)
    np.testing.assert_array_equal(loaded(inputs), slim(inputs))


@every
def test_training_draws_from_the_key_and_evaluation_does_not(name):
    network, inputs = network_of(name), CASES[name].inputs
    train = jax.jit(network.apply_train)
    one, updates = train(network.variables, inputs, key=jax.random.key(0))
    assert not np.allclose(one, network(inputs))
    variables = {**network.variables, **updates} if name == "keras" else network.variables
    # Keras keeps the seeds of its dropout in its state, which moves on from step to step.
    other, _ = train(variables, inputs, key=jax.random.key(1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(network(inputs), network(inputs))


@every
def test_training_runs_this_packages_convolution(name):
    network, inputs = network_of(name), CASES[name].inputs

    def loss(params):
        variables = {**network.variables, "params": params}
        return network.apply_train(variables, inputs, key=jax.random.key(0))[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(network.variables["params"]))
    assert "conv_general_dilated" not in program
    assert "rlprune_convolution" in program


# NNX and Equinox: modules again


def test_nnx_gives_a_module_for_the_users_own_loop():
    network = network_of("nnx")
    slim = network.slim(first_gone(network))
    module = slim.module
    assert isinstance(module, Nnx) and module.head.kernel.shape == (3, 3)
    np.testing.assert_allclose(module(X), slim(X), atol=1e-6)
    labels = jnp.arange(8) % 3

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            return optax.softmax_cross_entropy_with_integer_labels(module(X), labels).mean()

        value, gradient = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradient)
        return value

    module.train()
    optimizer = nnx.Optimizer(module, optax.adam(0.05), wrt=nnx.Param)
    losses = [float(step(module, optimizer)) for _ in range(30)]
    assert losses[-1] < losses[0]
    module.eval()
    again = Network.from_nnx(module, X[:2])
    np.testing.assert_allclose(again(X), module(X), atol=1e-6)
    np.testing.assert_allclose(network_of("nnx").module(X), network_of("nnx")(X), atol=1e-6)


def test_nnx_state_can_be_cut_and_merged_by_hand():
    model = Nnx(nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    graph = trace_graph(lambda state, x: nnx.merge(graphdef, state)(x), state, X[:2])
    gates = {group.name: jnp.ones(group.size).at[0].set(0.0) for group in graph.groups}
    merged = nnx.merge(graphdef, compact(graph, state, gates))
    network = network_of("nnx")
    np.testing.assert_allclose(merged(X), network.slim(first_gone(network))(X), atol=1e-6)


def test_nnx_models_are_not_changed_and_intermediates_are_left_out():
    class Sowing(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.seen = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x):
            x = nnx.relu(self.a(x))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self.sow(nnx.Intermediate, "hidden", x)
            self.seen[...] += 1
            return self.b(self.dropout(x))

    model = Sowing(nnx.Rngs(0))
    network = Network.from_nnx(model, jnp.ones((2, 3)))
    assert sorted(network.variables) == ["params", "state"]
    assert not model.dropout.deterministic and not hasattr(model, "hidden")
    _, updates = network.apply_train(network.variables, jnp.ones((2, 3)))
    assert jax.tree.leaves(updates) == [1]


def test_equinox_gives_a_module_and_its_state():
    network = network_of("equinox")
    slim = network.slim(first_gone(network))
    module, state = slim.module
    assert isinstance(module, Equinox) and module.head.weight.shape == (3, 3)
    batched = jax.vmap(eqx.nn.inference_mode(module), (0, None), (0, None), axis_name="batch")
    np.testing.assert_allclose(batched(FIRST, state)[0], slim(FIRST), atol=1e-6)


def test_equinox_parts_can_be_cut_and_combined_by_hand():
    model = eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    x = X.reshape(-1, 3)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    graph = trace_graph(apply, params, x[:1])
    gates = {group.name: jnp.ones(group.size).at[0].set(0.0) for group in graph.groups}
    combined = eqx.combine(compact(graph, params, gates), static)
    network = Network.from_equinox(model, x[:1])
    np.testing.assert_allclose(jax.vmap(combined)(x), network.slim(gates)(x), atol=1e-6)
    assert isinstance(network.slim(gates).module, eqx.nn.MLP)


def test_equinox_keys_that_are_required_are_always_given():
    class Keyed(eqx.Module):
        a: eqx.nn.Linear
        b: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x, key):
            first, _ = jax.random.split(key)
            return self.b(self.dropout(jax.nn.relu(self.a(x)), key=first))

    keys = jax.random.split(jax.random.key(0))
    model = Keyed(
        eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1]), eqx.nn.Dropout()
    )
    network = Network.from_equinox(model, jnp.ones((2, 3)))
    assert network.graph.sizes == (4,)
    np.testing.assert_array_equal(network(jnp.ones((2, 3))), network(jnp.ones((2, 3))))


def test_a_module_that_stands_on_a_dense_width_is_not_given():
    class Scaled(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.a(x))
            return self.b(x) / x.shape[-1]

    network = Network.from_nnx(Scaled(nnx.Rngs(0)), jnp.ones((2, 3)))
    slim = network.slim(first_gone(network))
    assert isinstance(network.module, Scaled)
    with pytest.raises(NetworkError, match="stands on a dense width"):
        _ = slim.module


# What is assumed of a module


@pytest.mark.parametrize(
    "call, given, expected",
    [
        (lambda x, train: x, None, {"train": True}),
        (lambda x, training=False: x, None, {"training": True}),
        (lambda x, use_running_average=True: x, None, {"use_running_average": False}),
        (lambda x, train, deterministic: x, None, {"train": True, "deterministic": False}),
        (lambda x: x, None, {}),
        (lambda x, learn: x, "learn", {"learn": True}),
        (lambda x, frozen: x, {"frozen": False}, {"frozen": False}),
        (lambda x, **options: x, "train", {"train": True}),
    ],
)
def test_keywords_that_tell_to_train(call, given, expected):
    assert training_mode(call, given) == expected


def test_a_keyword_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"train='learn'.* no keyword 'learn'; it takes x"):
        training_mode(lambda x: x, "learn")


def test_a_failing_guess_says_what_was_assumed():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, learn):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not learn)(nn.Dense(4)(x)))

    x = jnp.ones((2, 3))
    variables = Odd().init(jax.random.key(0), x, False)
    with pytest.raises(
        CallError, match=r"'learn'.*Assumed: .* no keyword .* say otherwise with tr"
    ):
        Network.from_linen(Odd(), variables, x)
    network = Network.from_linen(Odd(), variables, x, train="learn")
    assert network(x).shape == (2, 2)


def test_statistics_that_training_leaves_are_told_of():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))

    x = jnp.ones((2, 3))
    variables = Frozen().init(jax.random.key(0), x)
    with pytest.warns(UserWarning, match=r"leaves them as they are.*Assumed: .* no keyword"):
        Network.from_linen(Frozen(), variables, x)


class ByField(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(4)(x))
        x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape) if self.train else x
        self.sow("losses", "size", jnp.sum(x**2))
        return nn.Dense(2)(x)


def test_linen_fields_other_streams_frozen_dictionaries_and_sown_values():
    x = jax.random.normal(jax.random.key(1), (4, 3))
    variables = freeze(ByField().init(jax.random.key(0), x))
    network = Network.from_linen(ByField(), variables, x)
    outputs, updates = network.apply_train(network.variables, x, key=jax.random.key(0))
    assert sorted(updates) == ["batch_stats"]
    assert outputs.shape == network(x).shape == (4, 2)
    assert find_statistics(network.apply_train, network.variables, x)


def test_modules_of_another_framework_are_refused():
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match="is a Linear, not a Linen module"):
        Network.from_linen(model, {"params": {}}, X)
    with pytest.raises(TypeError, match=r"not an nnx\.Module"):
        Network.from_nnx(model, X)
    with pytest.raises(TypeError, match=r"not an eqx\.Module"):
        Network.from_equinox(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), X)
    with pytest.raises(ValueError, match="mapping with 'params'"):
        Network.from_linen(nn.Dense(2), {"kernel": X}, X)


# A finetune of the user's own


def test_own_finetune_steps_in_training_mode():
    for name in ("nnx", "equinox", "haiku"):
        network, inputs = network_of(name), CASES[name].inputs
        gates = first_gone(network)
        apply = MaskedFunction(network.definition, gates)
        outputs, updates = jax.jit(apply.train)(network.variables, inputs, key=jax.random.key(0))
        assert outputs.shape == (8, 3) and len(updates) == 1
        masked = network.definition.masked(network.variables, gates, inputs)
        np.testing.assert_array_equal(apply(network.variables, inputs), masked)


@pytest.mark.slow
def test_own_finetune_of_linen_takes_the_modules_own_keywords():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            x = nn.BatchNorm(use_running_average=not training, momentum=0.9)(nn.Dense(8)(x))
            return nn.Dense(3)(nn.Dropout(0.1, deterministic=not training)(nn.relu(x)))

    x = jax.random.normal(jax.random.key(0), (96, 4))
    y = jnp.argmax(x[:, :3], 1).astype(jnp.int32)
    optimizer, steps_done = optax.adam(1e-2), []

    def finetune(apply, variables, steps, key):
        @jax.jit
        def step(variables, state, key):
            def loss(params):
                logits, changed = apply(
                    {**variables, "params": params},
                    x,
                    training=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": key},
                )
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed

            gradient, changed = jax.grad(loss, has_aux=True)(variables["params"])
            updates, state = optimizer.update(gradient, state)
            return {"params": optax.apply_updates(variables["params"], updates), **changed}, state

        state = optimizer.init(variables["params"])
        for number in range(steps):
            variables, state = step(variables, state, jax.random.fold_in(key, number))
        steps_done.append(steps)
        return variables

    network = Network.from_linen(Net(), Net().init(jax.random.key(1), x[:1]), x[:1])
    data = (x, y)
    settings = {"evaluations": 16, "baselines": (), "rerank": 1, "finetune_steps": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = prune(
            network,
            classification(data, data, data),
            "params=0.7",
            finetune=finetune,
            **settings,
        )
    assert steps_done == [40]
    assert result.is_within_budgets
    assert result.pruned.metric > max(0.5, result.dense.metric)
    assert result.max_abs_diff < 1e-5
