import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.training.recalibration import recalibrate


class TwoNorms(nn.Module):
    """Batch norm on the input and, with another momentum, on what a layer makes of it."""

    momenta: tuple[float, float] = (0.9, 0.9)

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momenta[0], name="first")(x)
        x = nn.relu(nn.Dense(5)(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momenta[1], name="second")(x)
        return nn.Dense(3)(x)


def functions_and_variables(momenta=(0.9, 0.9), seed=0):
    functions = model_functions(TwoNorms(momenta))
    variables = functions.init(jax.random.key(seed), jnp.ones((2, 4)))
    # Old statistics that would show if they were let in.
    old = jax.tree.map(lambda leaf: leaf + 7.0, variables["batch_stats"])
    return functions, {**variables, "batch_stats": old}


def features(count, seed=0):
    return 3 + 2 * jax.random.normal(jax.random.key(seed), (count, 4))


@pytest.mark.parametrize("momenta", [(0.9, 0.99), (0.5, 0.0), (0.999, 0.1)])
def test_statistics_are_those_of_the_batch_whatever_the_momentum(momenta):
    functions, variables = functions_and_variables(momenta)
    x = features(64)
    result = recalibrate(functions.apply_train, variables, x)
    first = result["batch_stats"]["first"]
    tolerance = 1e-4 if max(momenta) > 0.99 else 1e-5
    np.testing.assert_allclose(first["mean"], np.mean(x, 0), rtol=tolerance)
    np.testing.assert_allclose(first["var"], np.var(x, 0), rtol=tolerance)
    # With momentum 0 the running statistics after one step are the batch's, by definition.
    reference = model_functions(TwoNorms((0.0, 0.0)))
    expected = reference.apply_train(variables, x)[1]["batch_stats"]
    chex.assert_trees_all_close(result["batch_stats"], expected, rtol=tolerance, atol=1e-6)
    chex.assert_trees_all_equal(result["params"], variables["params"])


def test_evaluation_then_equals_training_mode_on_the_batch():
    functions, variables = functions_and_variables()
    x = features(32)
    recalibrated = recalibrate(functions.apply_train, variables, x)
    training_logits, _ = functions.apply_train(variables, x)
    np.testing.assert_allclose(functions.apply(recalibrated, x), training_logits, atol=1e-4)


def test_several_batches_are_averaged():
    functions, variables = functions_and_variables()
    batches = features(60).reshape((3, 20, 4))
    result = recalibrate(functions.apply_train, variables, batches)
    singles = [recalibrate(functions.apply_train, variables, batch) for batch in batches]
    expected = jax.tree.map(
        lambda *leaves: sum(leaves) / 3, *[single["batch_stats"] for single in singles]
    )
    chex.assert_trees_all_close(result["batch_stats"], expected, rtol=1e-5)
    one = recalibrate(functions.apply_train, variables, batches[:1])
    chex.assert_trees_all_equal(one, singles[0])


def test_twice_is_once():
    functions, variables = functions_and_variables()
    once = recalibrate(functions.apply_train, variables, features(32))
    twice = recalibrate(functions.apply_train, once, features(32))
    chex.assert_trees_all_equal(once, twice)


def test_it_maps_over_networks_and_compiles():
    functions, _ = functions_and_variables()
    singles = [functions_and_variables(seed=seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    x = features(16)
    mapped = jax.jit(jax.vmap(lambda v: recalibrate(functions.apply_train, v, x)))(stacked)
    for index, single in enumerate(singles):
        expected = recalibrate(functions.apply_train, single, x)
        found = jax.tree.map(lambda leaf, index=index: leaf[index], mapped)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_zoos_convolutional_network():
    functions = model_functions(create_model("cnn", 3, widths=(4, 6)))
    images = 2 + jax.random.normal(jax.random.key(0), (16, 6, 6, 1))
    variables = functions.init(jax.random.key(1), images)
    recalibrated = jax.jit(lambda v, x: recalibrate(functions.apply_train, v, x))(variables, images)
    logits, _ = functions.apply_train(variables, images)
    np.testing.assert_allclose(functions.apply(recalibrated, images), logits, atol=1e-4)


def test_one_forward_pass_only():
    functions, variables = functions_and_variables()
    program = jax.make_jaxpr(lambda v, x: recalibrate(functions.apply_train, v, x))(
        variables, features(8)
    )
    assert str(program).count("dot_general[") == 2  # one per Dense


def test_networks_without_running_statistics_are_returned_as_they_are():
    functions = model_functions(create_model("mlp", 3, widths=(4,)))
    variables = functions.init(jax.random.key(0), jnp.ones((2, 4)))
    assert recalibrate(functions.apply_train, variables, features(8)) is variables


def test_statistics_that_never_move_are_kept():
    frozen = nn.BatchNorm(use_running_average=True)
    variables = frozen.init(jax.random.key(0), features(8))
    variables = {
        "params": variables["params"],
        "batch_stats": {"mean": jnp.full(4, 2.0), "var": jnp.full(4, 5.0)},
    }

    def apply_train(variables, x):
        return frozen.apply(variables, x, mutable=["batch_stats"])

    chex.assert_trees_all_equal(recalibrate(apply_train, variables, features(8)), variables)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.ones((8, 4), np.uint8), TypeError, "images are uint8"),
        (np.ones(4, np.float32), ValueError, "give one batch"),
        (np.ones((1,) * 6, np.float32), ValueError, "give one batch"),
        (np.ones((0, 4), np.float32), ValueError, "nothing to take statistics of"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    functions, variables = functions_and_variables()
    with pytest.raises(error, match=message):
        recalibrate(functions.apply_train, variables, images)


def test_variables_must_be_a_dictionary():
    functions, variables = functions_and_variables()
    with pytest.raises(TypeError, match="not a dictionary"):
        recalibrate(functions.apply_train, tuple(variables.values()), features(8))
