"""Training in a run: resumable, stopped by NaN, over arrays and batches."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import in_batches, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.runs import DivergenceError, MemoryRun, open_run_at
from rlprune_jax.training.augmentation import AlternatingFlip, CropAndFlip
from rlprune_jax.training.loops import init_train_state, make_train_step
from rlprune_jax.workflow import learning
from rlprune_jax.workflow.learning import Training, run_training, steps_at_once, train_dense
from rlprune_jax.workflow.recipes import (
    DenseRecipe,
    FastRecipe,
    FinetuneRecipe,
    arrangement,
    finetune_recipe,
    trained_on,
)
from rlprune_jax.workflow.sources import DEFAULT_STEPS, OTHER_STEPS

SMALL = small_mlp()
KEY = jax.random.key(0)


def fresh():
    """The MLP with small weights, so that there is something to learn."""
    return SMALL.network.replace(jax.tree.map(lambda leaf: 0.3 * leaf, SMALL.variables))


def training(data=SMALL.task.train, steps=6, gates=None, recipe=None):
    return Training(
        name="stage",
        network=fresh(),
        objective=SMALL.task.objective,
        data=data,
        recipe=recipe or FinetuneRecipe(rate=1e-2, batch_size=16),
        steps=steps,
        gates=gates,
    )


def test_dense_training_lowers_the_loss_and_leaves_the_network_alone():
    network, run = fresh(), MemoryRun()
    recipe = DenseRecipe(steps=120, rate=0.1, batch_size=16)
    before = jax.tree.map(np.asarray, network.variables)
    trained = train_dense(network, SMALL.task, recipe, run=run)
    rows = run.metrics("dense")
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert set(rows[0]) == {"stage", "step", "loss", "accuracy"}
    assert trained.definition is network.definition
    jax.tree.map(np.testing.assert_array_equal, network.variables, before)


def test_transformers_are_trained_by_adam():
    """Its first step moves every weight by the rate, whatever its gradient is."""
    recipe = DenseRecipe(steps=1, rate=0.01, batch_size=64, weight_decay=0.0, rule="adam")
    network = fresh()
    trained = train_dense(network, SMALL.task, recipe)
    moved = np.abs(np.asarray(trained.variables["a"] - network.variables["a"]))
    np.testing.assert_allclose(moved[moved > 0], 0.01, rtol=0.02)
    assert (moved > 0).any()


def test_training_that_diverges_stops_and_leaves_no_checkpoint(tmp_path):
    def explosive(outputs, batch):
        return jnp.exp(jnp.square(outputs).sum())

    task = rp.Task(explosive, "negative_loss", *[SMALL.task.train] * 3)
    recipe = DenseRecipe(steps=120, rate=100.0, batch_size=16)
    with (
        open_run_at(tmp_path / "run", {}) as run,
        pytest.raises(DivergenceError, match=r"'dense' diverged: the loss is .*lower the learning"),
    ):
        train_dense(SMALL.network, task, recipe, run=run)
    kept = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    assert kept == []


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(learning, "STEPS_AT_ONCE", 2)
    data = in_batches(SMALL.task.train, 16) if streamed else SMALL.task.train
    whole = run_training(training(data), KEY)
    name, kill_at = ("_step", 5) if streamed else ("train_steps", 3)
    original, calls = getattr(learning, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(learning, name, killed)
    with pytest.raises(KeyboardInterrupt), open_run_at(tmp_path / "run", {}) as run:
        run_training(training(data), KEY, run, 0.0)
    with open_run_at(tmp_path / "run", {}) as run:
        resumed = run_training(training(data), KEY, run, 0.0)
        assert [row["step"] for row in run.metrics("stage")] == [2, 4, 6]
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_batches_of_a_source_are_stepped_through_in_their_order():
    """Against a loop by hand over the same batches."""
    source = in_batches(SMALL.task.train, 20)  # 20, 20 and 8 of 48
    recipe = FinetuneRecipe(rate=1e-2)
    found = run_training(training(source, steps=4, recipe=recipe), KEY)
    optimizer = recipe.optimizer(4)
    step = make_train_step(SMALL.network.definition.training_mode, optimizer, SMALL.task.objective)
    state = init_train_state(fresh().variables, optimizer)
    batches = list(source())
    for batch in (*batches, batches[0]):
        state, _ = step(state, batch, KEY)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state.variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_only_what_the_gates_keep_is_trained():
    gates = {name: gate.at[0].set(0.0) for name, gate in SMALL.ones.items()}
    before = fresh().variables
    recipe = FinetuneRecipe(rate=1e-2, batch_size=16, weight_decay=0.0)
    after = run_training(training(gates=gates, recipe=recipe), KEY)
    # The pruned units of the first group: their row of "b" is read by nobody.
    np.testing.assert_array_equal(after["b"][0], before["b"][0])
    assert not np.array_equal(after["b"][1:, 1:], before["b"][1:, 1:])


@pytest.mark.parametrize("total", [4, 20])
def test_the_rate_rises_and_falls_to_zero_over_a_traced_total(total):
    recipe = FinetuneRecipe(rate=0.5, weight_decay=0.0, clip_norm=None)
    params = {"w": jnp.ones(2)}

    @jax.jit
    def sizes(total):
        optimizer = recipe.optimizer(total)
        state, found = optimizer.init(params), []
        for _ in range(24):
            updates, state = optimizer.update({"w": jnp.ones(2)}, state, params)
            found.append(-updates["w"][0])
        return jnp.stack(found)

    # Adam's step for a constant gradient is the rate itself: a tenth of the total it rises, then
    # half a cosine.
    count, rise = np.arange(24), total // 10
    falling = 0.25 * (1 + np.cos(np.pi * np.clip((count - rise) / (total - rise), 0, 1)))
    expected = np.where(count < rise, 0.5 * (count + 1) / (rise + 1), falling)
    np.testing.assert_allclose(sizes(float(total)), expected, atol=1e-5)


def test_sgd_of_any_length_is_the_dense_recipe_of_that_length():
    """Against the optimizer of the dense training, whose length is no array."""
    params, slope = {"w": jnp.ones((2, 2))}, {"w": 0.1 * jnp.ones((2, 2))}
    dense = DenseRecipe(steps=20).optimizer(20)
    tuning = FinetuneRecipe(rate=0.1, rule="sgd", clip_norm=None).optimizer(jnp.float32(20))
    states = [dense.init(params), tuning.init(params)]
    for _ in range(20):
        one, states[0] = dense.update(slope, states[0], params)
        other, states[1] = tuning.update(slope, states[1], params)
        # The momentum of one is scaled by the rate, that of the other is not.
        np.testing.assert_allclose(one["w"], other["w"], rtol=1e-5, atol=1e-7)


def test_a_gradient_that_explodes_is_clipped():
    """A network without any norm and a steep loss: SGD at the default rate stays finite."""
    recipe = FinetuneRecipe(rate=0.1, rule="sgd", batch_size=16)
    steep = rp.Task(
        lambda outputs, batch: 1e12 * jnp.square(outputs - 1).mean(),
        "negative_loss",
        *[SMALL.task.train] * 3,
    )

    def last(recipe):
        made = training(recipe=recipe, steps=60)
        return run_training(dataclasses.replace(made, objective=steep.objective), KEY)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last(recipe)))
    with pytest.raises(DivergenceError):
        last(dataclasses.replace(recipe, clip_norm=None))


def test_short_and_long_finetunes_run_in_one_program():
    """For the usual numbers of steps of every data set."""
    for _, short, long in (*DEFAULT_STEPS.values(), OTHER_STEPS):
        found = {steps_at_once(steps, (short, long)) for steps in (short, long, 2 * long)}
        assert len(found) == 1 and short % found.pop() == 0
    # Without a common number each has its own.
    assert (steps_at_once(37, (41,)), steps_at_once(0, (0, 0))) == (37, 0)


def test_settings_become_the_recipe():
    assert finetune_recipe(small_pruning().config) == FinetuneRecipe(3e-3, 16, "adam")
    pruning = small_pruning(finetune_rule="sgd")
    assert finetune_recipe(pruning.config) == FinetuneRecipe(0.1, 16, "sgd")
    assert finetune_recipe(small_pruning(finetune_rate=0.5).config).rate == 0.5


def test_a_fast_recipe_changes_what_images_are_trained_on_and_nothing_else():
    fast, plain = FastRecipe(4), DenseRecipe(4)
    images = (np.zeros((8, 6, 6, 1), np.uint8), np.arange(8) % 3)
    task = rp.classification(*[images] * 3, augment=CropAndFlip(pad=2))
    own = task.objective
    assert (FastRecipe(100).decay, FastRecipe(8800).decay, fast.decay) == (0.9, 0.99, 0)
    assert trained_on(plain, own, True) is own and arrangement(plain, own) is None
    placed, streamed = (trained_on(fast, own, is_placed) for is_placed in (True, False))
    assert placed.loss.label_smoothing == 0.2 and placed.metric is own.metric
    assert placed.augment == CropAndFlip(2, False, "reflect", 12 / 32)
    assert streamed.augment == CropAndFlip(2, True, "reflect", 12 / 32)
    assert arrangement(fast, own) == AlternatingFlip()
    digits = dataclasses.replace(own, augment=CropAndFlip(pad=1, flip=False))
    assert arrangement(fast, digits) is None
    other = rp.regression(*[(np.ones((4, 1)), np.ones((4, 1)))] * 3).objective
    assert trained_on(fast, other, True) == other and arrangement(fast, other) is None


def test_a_fast_recipe_delivers_the_average():
    """Against a loop over the steps of a plain training by the same optimizer."""
    recipe = FastRecipe(steps=24, rate=0.05, batch_size=48, label_smoothing=0.0, average=0.5)
    network = fresh()
    found = train_dense(network, SMALL.task, recipe).variables
    step = jax.jit(
        make_train_step(
            network.definition.training_mode, recipe.optimizer(24), SMALL.task.objective
        )
    )
    state = init_train_state(network.variables, recipe.optimizer(24))
    average = network.variables

    def mix(a, b, kept):
        return kept * a + (1 - kept) * b

    for number in range(24):
        state, _ = step(state, SMALL.task.train, KEY)
        kept = min(0.5, (1 + number) / (10 + number))
        average = jax.tree.map(partial(mix, kept=kept), average, state.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, average)
    assert float(jnp.abs(average["a"] - state.variables["a"]).max()) > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutout": 1.5}, "cutout=1.5 must be"),
        ({"average": 1.0}, "average=1.0 must be below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be"),
        ({"precision": "tf32"}, "precision='tf32' must be"),
    ],
)
def test_wrong_fast_recipes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FastRecipe(steps=4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": 1, "rate": 0.0}, "rate=0.0 must be"),
        ({"steps": 1, "rate": float("inf")}, "rate=inf must be"),
        ({"steps": 1, "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"steps": 1, "weight_decay": -1.0}, "weight_decay=-1.0 must be"),
    ],
)
def test_wrong_recipes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DenseRecipe(**options)
