import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.training import data
from rlprune_jax.training.augmentation import CropAndFlip, Standardise
from rlprune_jax.training.image_task import image_task
from rlprune_jax.training.loops import (
    TrainState,
    evaluate,
    init_train_state,
    make_train_step,
    train,
)
from rlprune_jax.training.metrics import SoftmaxCrossEntropy, accuracy
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.training.task import Objective, TaskError

FEATURES, CLASSES = 5, 3


def first(batch):
    return batch[0]


def objective(smoothing=0.0, prepare=None, augment=None):
    return Objective(
        loss=SoftmaxCrossEntropy(smoothing),
        metric=accuracy,
        metric_name="accuracy",
        inputs=first,
        prepare=prepare,
        augment=augment,
    )


OBJECTIVE = objective()


def apply(variables, x):
    return x @ variables["params"]["kernel"] + variables["params"]["bias"]


def apply_train(variables, x, key=None):
    seen = variables["batch_stats"]["seen"] + len(x)
    return apply(variables, x), {"batch_stats": {"seen": seen}}


def linear_variables(seed=0):
    kernel = 0.1 * jax.random.normal(jax.random.key(seed), (FEATURES, CLASSES))
    params = {"kernel": kernel, "bias": jnp.zeros(CLASSES)}
    constants = {"scale": jnp.array(2.0)}
    return {"params": params, "batch_stats": {"seen": jnp.zeros(())}, "constants": constants}


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, FEATURES)).astype(np.float32)
    return images, rng.integers(0, CLASSES, count).astype(np.int32)


OPTIMIZER = make_optimizer("sgd", learning_rate=0.3)
STEP = make_train_step(apply_train, OPTIMIZER, OBJECTIVE)


def linear_state(seed=0):
    return init_train_state(linear_variables(seed), OPTIMIZER)


def recording_step(state, batch, key):
    """Changes nothing; its metrics are the batch and the key it was given."""
    images, labels = batch
    metrics = {"labels": labels, "first": images[:, 0], "key": jax.random.key_data(key)}
    return state._replace(step=state.step + 1), metrics


def record(count, batch_size, num_steps, start=0, seed=0):
    images = np.arange(count, dtype=np.float32)[:, None]
    state = TrainState({}, (), jnp.asarray(start, jnp.int32))
    options = {"batch_size": batch_size, "num_steps": num_steps, "key": jax.random.key(seed)}
    state, metrics = train(recording_step, state, (images, np.arange(count)), **options)
    assert int(state.step) == start + num_steps
    return jax.tree.map(np.asarray, metrics)


def test_a_step_follows_the_gradient_of_the_cross_entropy():
    images, labels = examples(8)
    optimizer = optax.sgd(0.3)
    step = make_train_step(apply_train, optimizer, OBJECTIVE)
    state = init_train_state(linear_variables(), optimizer)
    after, metrics = step(state, (images, labels), jax.random.key(0))
    params = jax.tree.map(np.asarray, state.variables["params"])
    logits = images @ params["kernel"] + params["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    surplus = (probabilities - np.eye(CLASSES)[labels]) / 8
    found = after.variables["params"]
    np.testing.assert_allclose(
        found["kernel"], params["kernel"] - 0.3 * images.T @ surplus, atol=1e-6
    )
    np.testing.assert_allclose(found["bias"], params["bias"] - 0.3 * surplus.sum(0), atol=1e-6)
    losses = -np.log(probabilities[np.arange(8), labels])
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["metric"], (logits.argmax(-1) == labels).mean())


def test_a_step_takes_over_updates_and_keeps_everything_else():
    images, labels = examples(8)
    after, _ = STEP(linear_state(), (images, labels), jax.random.key(0))
    assert float(after.variables["batch_stats"]["seen"]) == 8
    assert float(after.variables["constants"]["scale"]) == 2
    assert int(after.step) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(after, linear_state())


def test_label_smoothing_enters_the_loss():
    images, labels = examples(8)
    smooth = make_train_step(apply_train, OPTIMIZER, objective(0.2))
    _, metrics = smooth(linear_state(), (images, labels), jax.random.key(0))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), 0.2)
    expected = optax.softmax_cross_entropy(apply(linear_variables(), images), targets).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_each_step_augments_with_its_own_key():
    def augment(batch, key):
        return batch[0] + jax.random.normal(key, batch[0].shape), batch[1]

    still = make_train_step(apply_train, optax.set_to_zero(), objective(augment=augment))
    state = init_train_state(linear_variables(), optax.set_to_zero())
    images, labels = examples(4)
    options = {"batch_size": 4, "num_steps": 3}
    _, metrics = train(still, state, (images, labels), **options, key=jax.random.key(0))
    assert len(np.unique(metrics["loss"])) == 3


def test_an_epoch_sees_every_image_once_but_for_the_remainder():
    metrics = record(count=11, batch_size=3, num_steps=8)
    np.testing.assert_array_equal(metrics["labels"], metrics["first"])
    epochs = metrics["labels"][:6].reshape(2, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
    assert list(epochs[0]) != list(epochs[1])
    assert len(np.unique(metrics["key"], axis=0)) == 8
    assert not np.array_equal(metrics["labels"], record(11, 3, 8, seed=1)["labels"])


def test_left_out_images_change_from_epoch_to_epoch():
    epochs = record(count=5, batch_size=4, num_steps=40)["labels"]
    assert set(epochs.ravel()) == set(range(5))


@pytest.mark.parametrize(("count", "batch_size"), [(11, 3), (6, 6)])
def test_resuming_continues_with_the_same_batches(count, batch_size):
    whole = record(count, batch_size, 8)
    start = record(count, batch_size, 4)
    rest = record(count, batch_size, 4, start=4)
    both = jax.tree.map(lambda *parts: np.concatenate(parts), start, rest)
    chex.assert_trees_all_equal(both, whole)


def test_training_in_two_calls_is_training_in_one_bit_for_bit():
    functions = model_functions(create_model("mlp", 10, widths=(8,)))
    digits = data.load("digits")
    images, labels = digits.train.images[:100], digits.train.labels[:100]
    prepare = Standardise(digits.mean, digits.std)
    optimizer = make_optimizer(learning_rate=0.1, num_steps=14, schedule="cosine", warmup=3)
    augment = CropAndFlip(pad=1, flip=False)
    step = make_train_step(functions.apply_train, optimizer, objective(0.0, prepare, augment))
    variables = functions.init(jax.random.key(0), prepare(images[:1]))
    start = init_train_state(variables, optimizer)

    def run(state, num_steps):
        options = {"batch_size": 16, "num_steps": num_steps, "key": jax.random.key(1)}
        return train(step, state, (images, labels), **options)

    whole, metrics = run(start, 14)
    half, first = run(start, 7)
    # As after a checkpoint: NumPy arrays.
    resumed, second = run(jax.tree.map(np.asarray, half), 7)
    chex.assert_trees_all_equal(resumed, whole)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)
    chex.assert_trees_all_equal(joined, metrics)


def test_no_steps_change_nothing():
    images, labels = examples(4)
    options = {"batch_size": 4, "num_steps": 0, "key": jax.random.key(0)}
    state, metrics = train(STEP, linear_state(), (images, labels), **options)
    chex.assert_trees_all_equal(state, linear_state())
    assert metrics["loss"].shape == metrics["metric"].shape == (0,)


def test_training_maps_over_seeds():
    images, labels = examples(12)
    options = {"batch_size": 5, "num_steps": 6}
    states = [linear_state(seed) for seed in range(3)]
    keys = jax.random.split(jax.random.key(9), 3)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def run(state, key):
        return train(STEP, state, (images, labels), **options, key=key)

    mapped = jax.jit(jax.vmap(run))(stacked, keys)
    for index, state in enumerate(states):
        found = jax.tree.map(lambda leaf, index=index: leaf[index], mapped)
        chex.assert_trees_all_close(found, run(state, keys[index]), rtol=1e-4, atol=1e-5)


def test_the_gradient_passes_through_training():
    images, labels = examples(8)

    def loss_after(rate):
        optimizer = make_optimizer(learning_rate=rate)
        step = make_train_step(apply_train, optimizer, OBJECTIVE)
        state = init_train_state(linear_variables(), optimizer)
        options = {"batch_size": 8, "num_steps": 2, "key": jax.random.key(0)}
        state, _ = train(step, state, (images, labels), **options)
        return evaluate(apply, state.variables, OBJECTIVE, (images, labels), batch_size=8)[0]

    losses, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss_after)))(jnp.array([0.09, 0.1, 0.11]))
    np.testing.assert_allclose(slopes[1], (losses[2] - losses[0]) / 0.02, rtol=2e-2)


def test_a_second_call_traces_nothing_and_nothing_leaks():
    images, labels = examples(12)
    options = {"batch_size": 5, "num_steps": 3, "key": jax.random.key(0)}
    traced = []

    def noting(function):
        def noted(variables, x, **options):
            traced.append(function)
            return function(variables, x, **options)

        return noted

    step, noted_apply = make_train_step(noting(apply_train), OPTIMIZER, OBJECTIVE), noting(apply)
    state = linear_state()

    def both(state):
        state, _ = train(step, state, (images, labels), **options)
        evaluate(noted_apply, state.variables, OBJECTIVE, (images, labels), batch_size=5)
        return state

    with jax.checking_leaks():
        both(state)
    state = both(state)
    first = len(traced)
    both(state)
    assert len(traced) == first > 0


def test_training_learns_digits():
    task = dataclasses.replace(image_task(data.load("digits")), augment=None)
    functions = model_functions(create_model("mlp", 10, widths=(32,)))
    optimizer = make_optimizer(learning_rate=0.1, num_steps=100, schedule="cosine")
    step = make_train_step(functions.apply_train, optimizer, task.objective)
    variables = functions.init(jax.random.key(0), *task.objective.network_inputs(task.train))
    state = init_train_state(variables, optimizer)
    options = {"batch_size": 64, "num_steps": 100, "key": jax.random.key(1)}
    state, metrics = train(step, state, task.train, **options)
    assert float(metrics["loss"][-10:].mean()) < 0.2 < float(metrics["loss"][0])
    found = evaluate(functions.apply, state.variables, task.objective, task.test, batch_size=128)
    assert float(found.metric) > 0.9


def test_a_source_of_batches_trains_like_the_arrays_it_is_cut_from():
    images, labels = examples(12)

    def source():
        for start in range(0, 12, 4):
            yield images[start : start + 4], labels[start : start + 4]

    options = {"batch_size": 4, "key": jax.random.key(0)}
    whole, metrics = train(STEP, linear_state(), source, num_steps=5, **options)
    by_hand = linear_state()
    for start in (0, 4, 8, 0, 4):
        batch = (images[start : start + 4], labels[start : start + 4])
        by_hand, _ = jax.jit(STEP)(by_hand, batch, jax.random.key(9))
    chex.assert_trees_all_close(whole, by_hand, rtol=1e-6)
    assert metrics["loss"].shape == (5,)
    half, _ = train(STEP, linear_state(), source, num_steps=3, **options)
    resumed, _ = train(STEP, half, source, num_steps=2, **options)
    chex.assert_trees_all_close(resumed, whole, rtol=1e-6)
    of_source = evaluate(apply, linear_variables(), OBJECTIVE, source, batch_size=4)
    of_arrays = evaluate(apply, linear_variables(), OBJECTIVE, (images, labels), batch_size=5)
    np.testing.assert_allclose(of_source, of_arrays, rtol=1e-6)


def test_a_source_without_batches_is_refused():
    with pytest.raises(ValueError, match="has no batch"):
        train(STEP, linear_state(), list, batch_size=4, num_steps=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no batch"):
        evaluate(apply, linear_variables(), OBJECTIVE, list, batch_size=4)


def test_dropout_draws_from_the_step_and_not_from_the_augmentation():
    keys = []

    def noisy(variables, x, key=None):
        keys.append(key)
        return apply(variables, x) + jax.random.normal(key, (len(x), CLASSES)), {}

    def augment(batch, key):
        keys.append(key)
        return batch

    step = make_train_step(noisy, OPTIMIZER, objective(augment=augment))
    step(linear_state(), examples(4), jax.random.key(0))
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 2


def test_a_diverged_network_gives_not_a_number_and_no_hits():
    images, labels = examples(8)
    optimizer = make_optimizer(learning_rate=1e38)
    step = make_train_step(apply_train, optimizer, OBJECTIVE)
    state = init_train_state(linear_variables(), optimizer)
    options = {"batch_size": 8, "num_steps": 20, "key": jax.random.key(0)}
    state, metrics = train(step, state, (images, labels), **options)
    assert bool(jnp.isnan(metrics["loss"][-1]))
    assert float(metrics["metric"][-1]) == 0
    loss, accuracy = evaluate(apply, state.variables, OBJECTIVE, (images, labels), batch_size=3)
    assert bool(jnp.isnan(loss)) and float(accuracy) == 0


def test_a_label_beyond_the_classes_makes_the_loss_not_a_number():
    images, labels = examples(8)
    labels[3] = CLASSES
    options = {"batch_size": 8, "num_steps": 1, "key": jax.random.key(0)}
    _, metrics = train(STEP, linear_state(), (images, labels), **options)
    assert bool(jnp.isnan(metrics["loss"][0]))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 3), (8, 4), (5, 1), (9, 8)])
def test_evaluation_counts_every_image_once(count, batch_size):
    images, labels = examples(count)
    variables = linear_variables()
    loss, accuracy = evaluate(apply, variables, OBJECTIVE, (images, labels), batch_size=batch_size)
    logits = np.asarray(apply(variables, images), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(count), labels]
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    hits = (logits.argmax(-1) == labels).sum()
    np.testing.assert_allclose(accuracy, hits / count, rtol=1e-6)


def test_evaluation_prepares_and_maps():
    images, labels = examples(7)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(linear_variables, range(3)))

    def run(variables, prepare=None, scale=1.0):
        data = (scale * images, labels)
        return evaluate(apply, variables, objective(prepare=prepare), data, batch_size=3)

    mapped = jax.vmap(run)(stacked)
    for index in range(3):
        single = run(linear_variables(index))
        np.testing.assert_allclose([m[index] for m in mapped], single, rtol=1e-5)
    prepared = run(linear_variables(), prepare=lambda x: 2 * x)
    np.testing.assert_allclose(prepared, run(linear_variables(), scale=2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 9}, ValueError, "batch_size=9 is above the 8 examples"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"num_steps": -1}, ValueError, "num_steps=-1"),
        ({"labels": np.zeros(7, np.int32)}, TaskError, "unequal lengths {'0': 8, '1': 7}"),
        ({"images": np.zeros((0, 5)), "labels": np.zeros(0, int)}, TaskError, "no examples"),
        ({"labels": np.int32(3)}, TaskError, "leaf '1' is a scalar"),
    ],
)
def test_train_refuses(changes, error, message):
    images, labels = examples(8)
    arguments = {"images": images, "labels": labels, "batch_size": 4, "num_steps": 2} | changes
    batch = (arguments.pop("images"), arguments.pop("labels"))
    with pytest.raises(error, match=message):
        train(STEP, linear_state(), batch, **arguments, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"labels": np.zeros((8, 3), int)}, ValueError, "one integer label per example"),
        ({"labels": np.zeros(8)}, ValueError, "labels are float"),
        ({"images": np.zeros((0, 5)), "labels": np.zeros(0, int)}, TaskError, "no examples"),
    ],
)
def test_evaluate_refuses(changes, error, message):
    images, labels = examples(8)
    arguments = {"images": images, "labels": labels, "batch_size": 4} | changes
    batch = (arguments.pop("images"), arguments.pop("labels"))
    with pytest.raises(error, match=message):
        evaluate(apply, linear_variables(), OBJECTIVE, batch, **arguments)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_must_be_a_fraction(smoothing):
    with pytest.raises(ValueError, match="label_smoothing="):
        SoftmaxCrossEntropy(smoothing)


def test_bare_parameters_are_trained_as_they_are():
    images, labels = examples(8)
    bare = linear_variables()["params"]
    step = make_train_step(
        lambda params, x, key=None: (x @ params["kernel"] + params["bias"], {}),
        OPTIMIZER,
        OBJECTIVE,
    )
    after, _ = step(init_train_state(bare, OPTIMIZER), (images, labels), jax.random.key(0))
    known, _ = STEP(linear_state(), (images, labels), jax.random.key(0))
    chex.assert_trees_all_close(after.variables, known.variables["params"])


def test_batches_are_arranged_by_the_places_of_their_examples_and_the_epoch():
    def step(state, batch, key):
        return state._replace(step=state.step + 1), batch

    def arrange(batch, places, epoch):
        return {"places": places, "epoch": epoch, "example": batch}

    start = TrainState(variables={}, opt_state=(), step=jnp.int32(1))
    data, options = 10 * jnp.arange(7), {"batch_size": 2, "key": jax.random.key(0)}
    _, found = train(step, start, data, num_steps=8, arrange=arrange, **options)
    assert found["epoch"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(found["example"], 10 * found["places"])
