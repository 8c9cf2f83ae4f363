from functools import partial

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.training.recalibration import (
    find_statistics,
    recalibrate,
    untold_statistics,
)


class TwoNorms(nn.Module):
    """Batch norm on the input and, with another momentum, on what a layer makes of it."""

    momenta: tuple[float, float] = (0.9, 0.9)
    frozen: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        frozen = self.frozen or not train
        x = nn.BatchNorm(use_running_average=frozen, momentum=self.momenta[0], name="first")(x)
        x = nn.relu(nn.Dense(5)(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momenta[1], name="second")(x)
        return nn.Dense(3)(x)


def functions_and_variables(momenta=(0.9, 0.9), seed=0, **options):
    functions = model_functions(TwoNorms(momenta, **options))
    variables = jax.jit(functions.init)(jax.random.key(seed), jnp.ones((2, 4)))
    # Old statistics that would show if they were let in.
    old = jax.tree.map(lambda leaf: leaf + 7.0, variables["batch_stats"])
    return functions, {**variables, "batch_stats": old}


def features(count, seed=0):
    return 3 + 2 * jax.random.normal(jax.random.key(seed), (count, 4))


def mean_and_variance(x):
    """In float64, over all axes but the last."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return x.mean(0), x.var(0)


def moving(momentum, statistic):
    """Train mode of a network whose only leaf moves as running statistics do."""

    def apply_train(variables, x):
        old = variables["state"]["s"]
        return x, {"state": {"s": momentum * old + (1 - momentum) * statistic}}

    return apply_train


def compiled(apply_train, variables, *inputs, **options):
    """As `recalibrate`, but faster here: one compilation instead of one an operation."""
    return eqx.filter_jit(partial(recalibrate, apply_train, **options))(variables, *inputs)


# Statistics, against NumPy in float64 and closed forms.


@pytest.mark.parametrize("momenta", [(0.99, 0.0), (0.999, 0.1)])
def test_statistics_are_those_of_the_batch_whatever_the_momentum(momenta):
    functions, variables = functions_and_variables(momenta)
    x = features(64)
    result = compiled(functions.apply_train, variables, x)
    mean, variance = mean_and_variance(x)
    np.testing.assert_allclose(result["batch_stats"]["first"]["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(result["batch_stats"]["first"]["var"], variance, rtol=2e-6)
    # With momentum 0 the running statistics after one step are the batch's, by definition.
    reference = model_functions(TwoNorms((0.0, 0.0)))
    expected = jax.jit(reference.apply_train)(variables, x)[1]["batch_stats"]
    chex.assert_trees_all_close(result["batch_stats"], expected, rtol=5e-7)
    chex.assert_trees_all_equal(result["params"], variables["params"])


@settings(deadline=None, max_examples=60)
@given(
    thousandths=st.integers(0, 999),
    statistic=st.floats(1e-6, 1e6),
    old=st.floats(-1e3, 1e3),
)
def test_closed_form_for_any_decimal_momentum(thousandths, statistic, old):
    momentum, statistic = thousandths / 1000, np.float32(statistic)
    variables = {"params": {}, "state": {"s": jnp.full(2, old)}}
    result = recalibrate(moving(momentum, statistic), variables, jnp.ones(1))
    np.testing.assert_allclose(result["state"]["s"], statistic, rtol=4e-7)


@pytest.mark.parametrize("momentum", [1 / 3, 0.987654321])
def test_other_momenta_keep_the_documented_error(momentum):
    variables = {"params": {}, "state": {"s": jnp.zeros(1)}}
    result = recalibrate(moving(momentum, 12.5), variables, jnp.ones(1))
    np.testing.assert_allclose(result["state"]["s"], 12.5, rtol=2e-7 + 3e-8 / (1 - momentum))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_in_half_precision(dtype):
    variables = {"params": {}, "state": {"s": jnp.full(2, 3, dtype)}}
    result = recalibrate(moving(0.99, 2.5), variables, jnp.ones(1))["state"]["s"]
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(float), 2.5, rtol=3 * float(jnp.finfo(dtype).eps))


def test_evaluation_then_equals_training_mode_on_the_batch():
    functions, variables = functions_and_variables((0.99, 0.9))
    x = features(32)
    recalibrated = compiled(functions.apply_train, variables, x)
    training_logits, _ = functions.apply_train(variables, x)
    np.testing.assert_allclose(functions.apply(recalibrated, x), training_logits, atol=1e-5)


def test_twice_is_once_even_after_nan():
    functions, variables = functions_and_variables()
    once = recalibrate(functions.apply_train, variables, features(32))
    twice = recalibrate(functions.apply_train, once, features(32))
    chex.assert_trees_all_equal(once, twice)
    nan = {**variables, "batch_stats": jax.tree.map(lambda s: s * jnp.nan, once["batch_stats"])}
    chex.assert_trees_all_equal(recalibrate(functions.apply_train, nan, features(32)), once)


def test_nan_in_the_data_shows_in_the_statistics():
    functions, variables = functions_and_variables()
    result = recalibrate(functions.apply_train, variables, features(8).at[0].set(jnp.nan))
    assert bool(jnp.all(jnp.isnan(result["batch_stats"]["first"]["mean"])))


# Inputs.


@pytest.mark.parametrize("shape", [(32, 3), (8, 5, 3), (4, 5, 2, 3), (2, 3, 2, 2, 3)])
def test_one_batch_of_any_rank(shape):
    norm = nn.BatchNorm(momentum=0.99)
    x = 1 + jax.random.normal(jax.random.key(0), shape)
    variables = norm.init(jax.random.key(1), x, True)
    apply_train = partial(norm.apply, use_running_average=False, mutable=["batch_stats"])
    found = compiled(apply_train, variables, x)["batch_stats"]
    mean, variance = mean_and_variance(x)
    np.testing.assert_allclose(found["mean"], mean, rtol=2e-6)
    np.testing.assert_allclose(found["var"], variance, rtol=2e-6)


class Embedded(nn.Module):
    """Tokens and a dictionary of features."""

    @nn.compact
    def __call__(self, tokens, extra, train=False):
        x = nn.Embed(7, 4)(tokens) + extra["shift"][:, None]
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)


@pytest.mark.parametrize("batches", [False, True])
def test_tokens_and_dictionaries(batches):
    network = Embedded()
    tokens = jax.random.randint(jax.random.key(0), (3, 8, 5), 0, 7)
    shift = jax.random.normal(jax.random.key(1), (3, 8, 4))
    variables = network.init(jax.random.key(2), tokens[0], {"shift": shift[0]})
    apply_train = partial(network.apply, train=True, mutable=["batch_stats"])
    inputs = (tokens, {"shift": shift})
    if not batches:
        inputs = jax.tree.map(lambda leaf: leaf[0], inputs)
    found = compiled(apply_train, variables, *inputs, batches=batches)["batch_stats"]["norm"]
    embedding = np.asarray(variables["params"]["Embed_0"]["embedding"])
    each = [
        mean_and_variance(embedding[tokens[i]] + np.asarray(shift)[i][:, None])
        for i in range(3 if batches else 1)
    ]
    mean, variance = np.mean(each, 0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["var"], variance, rtol=1e-5)


def test_several_batches_are_averaged():
    functions, variables = functions_and_variables()
    batches = features(60).reshape((3, 20, 4))
    result = compiled(functions.apply_train, variables, batches, batches=True)
    singles = [compiled(functions.apply_train, variables, batch) for batch in batches]
    expected = jax.tree.map(
        lambda *leaves: sum(leaves) / 3, *[single["batch_stats"] for single in singles]
    )
    chex.assert_trees_all_close(result["batch_stats"], expected, rtol=1e-6)
    one = compiled(functions.apply_train, variables, batches[:1], batches=True)
    chex.assert_trees_all_close(one, singles[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "batches", "message"),
    [
        ((), False, "inputs hold no array"),
        ((np.ones((0, 4)),), False, "holds no example"),
        ((np.ones((2, 3)), np.ones((3, 3))), True, "same number of batches"),
        ((np.ones((2, 3)), np.ones(())), True, "same number of batches"),
    ],
)
def test_bad_inputs_are_refused(inputs, batches, message):
    functions, variables = functions_and_variables()
    with pytest.raises(ValueError, match=message):
        recalibrate(functions.apply_train, variables, *inputs, batches=batches)


# Containers and what is kept.


def test_containers_and_other_leaves_stay():
    functions, variables = functions_and_variables()
    key = jax.random.key(5)
    variables = freeze({**variables, "rng": {"key": key, "count": jnp.array(3)}})

    def apply_train(variables, x):
        logits, updates = functions.apply_train(variables, x)
        return logits, {**updates, "rng": {"key": jax.random.split(key)[0], "count": 4}}

    result = recalibrate(apply_train, variables, features(16))
    assert isinstance(result, FrozenDict)
    assert result["rng"]["key"] == key and result["rng"]["count"] == 3
    assert not np.allclose(
        result["batch_stats"]["first"]["mean"], variables["batch_stats"]["first"]["mean"]
    )


def test_networks_without_running_statistics_are_returned_as_they_are():
    functions = model_functions(create_model("mlp", 3, widths=(4,)))
    variables = functions.init(jax.random.key(0), jnp.ones((2, 4)))
    assert recalibrate(functions.apply_train, variables, features(8)) is variables
    functions, variables = functions_and_variables()
    bare = tuple(variables.values())
    assert recalibrate(functions.apply_train, bare, features(8)) is bare
    unmoved = {"dense": {"kernel": jnp.ones((4, 2))}}
    assert recalibrate(lambda v, x: (x, {}), unmoved, features(8)) is unmoved


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_frozen_batch_norm_is_kept_and_used(wrap):
    functions, variables = functions_and_variables((0.9, 0.99), frozen=True)
    x = features(32)
    apply_train = wrap(functions.apply_train)
    result = recalibrate(apply_train, variables, x)
    old = variables["batch_stats"]["first"]
    chex.assert_trees_all_equal(result["batch_stats"]["first"], old)
    training_logits, _ = functions.apply_train(variables, x)
    np.testing.assert_allclose(functions.apply(result, x), training_logits, atol=1e-5)
    assert find_statistics(apply_train, variables, x) == (
        "batch_stats/second/mean",
        "batch_stats/second/var",
    )


def test_sums_are_kept():
    def apply_train(variables, x):
        state = variables["state"]
        return x, {"state": {"sum": state["sum"] + x.sum(), "mean": 0.9 * state["mean"] + 0.2}}

    variables = {"params": {}, "state": {"sum": jnp.array(5.0), "mean": jnp.array(1.0)}}
    result = recalibrate(apply_train, variables, features(4))["state"]
    assert result["sum"] == 5 and result["mean"] == pytest.approx(2, rel=1e-6)


def test_other_updates_are_kept_with_a_warning_that_names_them():
    def apply_train(variables, x):
        u = variables["state"]["power"]["u"]
        mean = 0.9 * variables["state"]["mean"] + 0.1 * x.mean()
        return x, {"state": {"power": {"u": u / jnp.linalg.norm(u) + x.mean()}, "mean": mean}}

    variables = {"params": {}, "state": {"power": {"u": jnp.ones(3)}, "mean": jnp.zeros(())}}
    with pytest.warns(UserWarning, match="does not move state/power/u as"):
        result = recalibrate(apply_train, variables, features(4))["state"]
    chex.assert_trees_all_equal(result["power"]["u"], jnp.ones(3))
    np.testing.assert_allclose(result["mean"], features(4).mean(), rtol=1e-6)
    compiled = jax.jit(partial(recalibrate, apply_train))(variables, features(4))
    chex.assert_trees_all_close(compiled["state"], result)


def test_statistics_that_train_mode_normalises_with_are_not_guessed():
    def apply_train(variables, x):
        first = 0.9 * variables["state"]["first"] + 0.1 * x.mean()
        x = x / first  # what follows depends on the old statistic, so no single pass can tell
        second = 0.9 * variables["state"]["second"] + 0.1 * x.mean()
        return x, {"state": {"first": first, "second": second}}

    variables = {"params": {}, "state": {"first": jnp.array(1.0), "second": jnp.array(9.0)}}
    with pytest.warns(UserWarning, match="state/second"):
        result = recalibrate(apply_train, variables, features(4))["state"]
    np.testing.assert_allclose(result["first"], features(4).mean(), rtol=1e-6)
    assert result["second"] == 9


@pytest.mark.parametrize(
    ("update", "message"),
    [({"mean": jnp.ones(3)}, r"update of state/mean has shape \(3,\)"), ({"m": 1.0}, "none of")],
)
def test_updates_of_another_structure_are_refused(update, message):
    variables = {"params": {}, "state": {"mean": jnp.zeros(())}}
    with pytest.raises(ValueError, match=message):
        recalibrate(lambda v, x: (x, {"state": update}), variables, features(4))


# Transformations.


def test_it_maps_over_networks_and_compiles():
    functions, _ = functions_and_variables()
    singles = [functions_and_variables(seed=seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    x = features(16)
    mapped = jax.jit(jax.vmap(lambda v: recalibrate(functions.apply_train, v, x)))(stacked)
    for index, single in enumerate(singles):
        expected = compiled(functions.apply_train, single, x)
        found = jax.tree.map(lambda leaf, index=index: leaf[index], mapped)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outside", [False, True])
def test_statistics_over_a_vmapped_axis(outside):
    network = nn.BatchNorm(momentum=0.99, axis_name="shards")
    x = features(24).reshape((4, 6, 4))
    variables = network.init(jax.random.key(0), x[0], True)

    def of_shard(variables, x):
        return network.apply(variables, x, False, mutable=["batch_stats"])

    def of_all(variables, x):
        out, updates = jax.vmap(of_shard, (None, 0), axis_name="shards")(variables, x)
        return out, jax.tree.map(lambda leaf: leaf[0], updates)

    if outside:
        each = jax.vmap(lambda x: recalibrate(of_shard, variables, x), axis_name="shards")(x)
        found = jax.tree.map(lambda leaf: leaf[1], each["batch_stats"])
    else:
        found = recalibrate(of_all, variables, x)["batch_stats"]
    mean, variance = mean_and_variance(x)
    np.testing.assert_allclose(found["mean"], mean, rtol=2e-6)
    np.testing.assert_allclose(found["var"], variance, rtol=2e-6)


def test_psum_of_a_statistic():
    def apply_train(variables, x):
        mean = jax.lax.psum(x.mean(), "shards") / jax.lax.psum(1, "shards")
        return x, {"state": {"mean": 0.9 * variables["state"]["mean"] + (1 - 0.9) * mean}}

    variables = {"params": {}, "state": {"mean": jnp.ones(())}}
    x = features(8).reshape((4, 8))
    found = jax.vmap(lambda x: recalibrate(apply_train, variables, x), axis_name="shards")(x)
    np.testing.assert_allclose(found["state"]["mean"], [x.mean()] * 4, rtol=1e-6)


def test_one_forward_pass_only():
    functions, variables = functions_and_variables()
    program = jax.make_jaxpr(lambda v, x: recalibrate(functions.apply_train, v, x))(
        variables, features(8)
    )
    assert str(program).count("dot_general[") == 2  # one per Dense


# Frameworks.


def test_the_zoos_convolutional_network():
    functions = model_functions(create_model("cnn", 3, widths=(4, 6)))
    images = 2 + jax.random.normal(jax.random.key(0), (16, 6, 6, 1))
    variables = jax.jit(functions.init)(jax.random.key(1), images)
    recalibrated = compiled(functions.apply_train, variables, images)
    logits, _ = jax.jit(functions.apply_train)(variables, images)
    found = jax.jit(functions.apply)(recalibrated, images)
    np.testing.assert_allclose(found, logits, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_nnx(momentum):
    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.norm = nnx.BatchNorm(4, momentum=momentum, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(self.norm(x)))

    definition, params, stats, rest = nnx.split(Network(), nnx.Param, nnx.BatchStat, ...)
    variables = {"params": params, "batch_stats": stats, "rest": rest}

    def apply_train(variables, x):
        network = nnx.merge(definition, *variables.values())
        network.train()
        out = network(x)
        _, _, stats, rest = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
        return out, {"batch_stats": stats, "rest": rest}

    x = features(64)
    result = recalibrate(apply_train, variables, x)
    assert isinstance(result["batch_stats"], nnx.State)
    chex.assert_trees_all_equal(result["rest"], rest)
    mean, variance = mean_and_variance(x)
    norm = result["batch_stats"]["norm"]
    np.testing.assert_allclose(norm["mean"][...], mean, rtol=2e-6)
    np.testing.assert_allclose(norm["var"][...], variance, rtol=2e-6)
    assert len(find_statistics(apply_train, variables, x)) == 2
    assert len(untold_statistics(nnx.state(Network()))) == 2


class EquinoxNetwork(eqx.Module):
    first: eqx.nn.BatchNorm
    dense: eqx.nn.Linear
    spectral: eqx.nn.SpectralNorm
    second: eqx.nn.BatchNorm

    def __init__(self, mode, key):
        self.first = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode=mode)
        self.dense = eqx.nn.Linear(4, 3, key=key)
        head = eqx.nn.Linear(3, 3, key=key)
        self.spectral = eqx.nn.SpectralNorm(head, "weight", key=key)
        self.second = eqx.nn.BatchNorm(3, "batch", momentum=0.99, mode=mode)

    def __call__(self, x, state, inference):
        x, state = self.first(x, state, inference=inference)
        x = jax.nn.relu(self.dense(x))
        x, state = self.spectral(x, state, inference=True)
        return self.second(x, state, inference=inference)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_equinox(mode, steps):
    network, state = eqx.nn.make_with_state(EquinoxNetwork)(mode, jax.random.key(0))

    @eqx.filter_jit
    def apply(variables, x, inference):
        call = partial(variables["params"], inference=inference)
        return jax.vmap(call, (0, None), (0, None), axis_name="batch")(x, variables["state"])

    def apply_train(variables, x):
        out, state = apply(variables, x, False)
        return out, {"state": state}

    variables = {"params": network, "state": state}
    for seed in range(steps):
        variables = {**variables, **apply_train(variables, 5 * features(16, seed))[1]}
    x = features(64)
    result = recalibrate(apply_train, variables, x)
    assert type(result["state"]) is type(state)

    # Both norms by NumPy, each with the statistics of this batch.
    def normalised(x):
        mean, variance = mean_and_variance(x)
        return (x - mean) / np.sqrt(variance + 1e-5)

    hidden = jax.vmap(network.dense)(jnp.asarray(normalised(x), jnp.float32))
    call = partial(network.spectral, inference=True)
    hidden, _ = jax.vmap(call, (0, None), (0, None))(jax.nn.relu(hidden), variables["state"])
    found, _ = apply(result, x, True)
    np.testing.assert_allclose(found, normalised(hidden), atol=3e-5)
    names = untold_statistics((network, state))
    assert len(names) == 4 and names == untold_statistics((None, state))


@pytest.mark.parametrize("corrects_bias", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_moving_averages_as_haiku_keeps_them(corrects_bias, steps):
    # Written after haiku.ExponentialMovingAverage, which this environment does not have.
    decay = jnp.float32(0.99)

    def apply_train(variables, x):
        state = variables["state"]["norm/~/mean_ema"]
        counter = state["counter"] + 1
        hidden = state["hidden"] * decay + x.mean(0) * (1 - decay)
        average = hidden / (1 - decay**counter) if corrects_bias else hidden
        new = {"counter": counter, "hidden": hidden, "average": average}
        return x, {"state": {"norm/~/mean_ema": new}}

    empty = {"counter": jnp.array(0), "hidden": jnp.zeros(4), "average": jnp.zeros(4)}
    variables = {"params": {}, "state": {"norm/~/mean_ema": empty}}
    for seed in range(steps):
        variables = {**variables, **apply_train(variables, 5 * features(16, seed))[1]}
    x = features(64)
    result = recalibrate(apply_train, variables, x)
    found = result["state"]["norm/~/mean_ema"]
    mean, _ = mean_and_variance(x)
    # The framework subtracts the rounded decay from 1: 3e-8 / (1 - 0.99) without correction.
    rtol = 1e-6 if corrects_bias else 3e-6
    np.testing.assert_allclose(found["average"], mean, rtol=rtol)
    assert found["counter"] == steps
    after = apply_train(result, x)[1]["state"]["norm/~/mean_ema"]
    np.testing.assert_allclose(after["average"], mean, rtol=2e-5)
    assert untold_statistics(variables) == (
        "state/norm/~/mean_ema/average",
        "state/norm/~/mean_ema/hidden",
    )


# Names.


def test_untold_statistics_by_name():
    one = jnp.ones(3)
    tree = {
        "params": {"a": {"mean": one, "kernel": one}, "b": {"running_mean": one}},
        "batch_stats": {"n": {"whatever": one, "count": jnp.array(1)}},
        "other": [{"mean": one, "var": jnp.ones(2)}, {"moving_variance": one}],
    }
    expected = ("batch_stats/n/whatever", "other/1/moving_variance", "params/b/running_mean")
    assert untold_statistics(tree) == expected
    assert untold_statistics(jax.eval_shape(lambda: tree)) == expected
    assert untold_statistics(one) == ()


def test_find_statistics_needs_no_values():
    functions, variables = functions_and_variables()
    shapes, x = jax.eval_shape(lambda: (variables, features(8)))
    found = find_statistics(functions.apply_train, shapes, x)
    assert found == untold_statistics(variables) and len(found) == 4
