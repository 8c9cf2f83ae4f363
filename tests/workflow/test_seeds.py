"""Many seeds give the networks of each seed alone, whichever way is faster."""

import jax
import numpy as np
import pytest
from small import in_batches, small_mlp

import rlprune_jax as rp
from rlprune_jax.runs import DivergenceError
from rlprune_jax.workflow import seeds as module
from rlprune_jax.workflow.learning import train_dense
from rlprune_jax.workflow.recipes import DenseRecipe
from rlprune_jax.workflow.seeds import train_seeds

SMALL = small_mlp()
NETWORK = SMALL.network.replace(jax.tree.map(lambda leaf: 0.3 * leaf, SMALL.variables))
RECIPE = DenseRecipe(steps=160, rate=0.02, batch_size=16)


class Free:
    """A clock that no compilation moves."""

    seconds = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Ticks:
    """A second passes between any two looks."""

    now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


@pytest.fixture(scope="module")
def alone():
    return [train_dense(NETWORK, SMALL.task, RECIPE, seed) for seed in (3, 5)]


def check_same(found, alone):
    for one, other in zip(found.networks, alone, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (one.variables, other.variables)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.abs(found.networks[0].variables["a"] - found.networks[1].variables["a"]).max() > 1e-3


def test_seeds_together_are_the_same_networks(monkeypatch, alone):
    monkeypatch.setattr(module, "CompileClock", Free)
    monkeypatch.setattr(module, "time", Ticks())  # one program 1 s, two calls 2 s
    found = train_seeds(NETWORK, SMALL.task, RECIPE, (3, 5))
    assert found.way == "together"
    assert found.why == (
        "seeds were trained together: 40 steps of 2 seeds took 1.00 s in one program and 2.00 s "
        "one after the other"
    )
    check_same(found, alone)


def test_what_does_not_fit_together_goes_one_by_one(monkeypatch, alone):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(module, "CompileClock", Free)
    monkeypatch.setattr(module, "_together", full)
    found = train_seeds(NETWORK, SMALL.task, RECIPE, (3, 5))
    assert found.way == "one by one" and "took inf s in one program" in found.why
    check_same(found, alone)


def test_a_short_training_is_not_compiled_twice(monkeypatch, alone):
    monkeypatch.setattr(module, "_together", None)
    monkeypatch.setattr(Free, "seconds", 1e9)
    monkeypatch.setattr(module, "CompileClock", Free)
    found = train_seeds(NETWORK, SMALL.task, RECIPE, (3, 5))
    assert found.way == "one by one"
    check_same(found, alone)


def test_seeds_and_losses_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must be at least one"):
        train_seeds(NETWORK, SMALL.task, RECIPE, ())
    with pytest.raises(ValueError, match="must be all different"):
        train_seeds(NETWORK, SMALL.task, RECIPE, (1, 1))
    with pytest.raises(DivergenceError, match="lower the recipe's rate"):
        module.check_finite(np.array([1.0, np.nan]))


def test_batches_of_a_source_go_one_by_one():
    train = in_batches(SMALL.task.train, 16)
    task = rp.classification(train, SMALL.task.held_out, SMALL.task.test)
    found = train_seeds(NETWORK, task, DenseRecipe(steps=2, batch_size=16), (0, 1))
    assert found.way == "one by one" and "batch by batch" in found.why
