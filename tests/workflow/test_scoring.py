"""Scores by the settings of a run: every name, every option, what is refused."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.units import (
    UNIT_SCORES,
    fisher_scores,
    isomorphic_scores,
    magnitude_scores,
    normalise_scores,
)
from rlprune_jax.units.comparisons import Normaliser
from rlprune_jax.units.weight_scores import SlotReduction
from rlprune_jax.workflow.config import (
    PruneConfig,
    ScoreNormaliser,
    ScoreReduction,
    UnitScore,
    check_choices,
)
from rlprune_jax.workflow.pruning import make_pruning
from rlprune_jax.workflow.scoring import in_minibatches, score_units
from rlprune_jax.workflow.searches import search

CNN, MLP = small_cnn(), small_mlp()


def test_settings_and_functions_name_the_same():
    assert get_args(UnitScore) == UNIT_SCORES
    assert get_args(ScoreReduction) == ("usual", *get_args(SlotReduction))
    assert set(get_args(ScoreNormaliser)) == {"usual", *get_args(Normaliser), "cost"}


@pytest.mark.parametrize("score", UNIT_SCORES)
def test_every_score_gives_every_unit_a_number(score):
    found = score_units(CNN.network, CNN.task, PruneConfig(score=score))
    for name, size in zip(CNN.graph.names, CNN.graph.sizes, strict=True):
        values = np.asarray(found[name])
        assert values.shape == (size,) and np.isfinite(values).all()
        # The scales of fresh norms are all 1; every other score tells units apart.
        assert score == "norm_scale" or np.ptp(values) > 0


def test_fisher_is_that_of_the_tasks_loss_on_training_examples():
    def loss(gates, batch):
        return MLP.task.loss(MLP.network.definition.masked(MLP.variables, gates, batch[0]), batch)

    data = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], MLP.task.train)
    expected = fisher_scores(MLP.graph, loss, data)
    found = score_units(MLP.network, MLP.task, PruneConfig(score="fisher"))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-12)


def test_options_are_passed_on():
    first = score_units(
        MLP.network,
        MLP.task,
        PruneConfig(score="magnitude_l1", score_normaliser="standard", score_reduction="first"),
    )
    raw = magnitude_scores(MLP.graph, MLP.variables, norm=1, reduction="first", normaliser="none")
    for name, values in normalise_scores(MLP.graph, raw, "standard").items():
        np.testing.assert_allclose(first[name], values, rtol=1e-5, atol=1e-6)
    places = score_units(
        MLP.network, MLP.task, PruneConfig(score="magnitude", score_scope="isomorphic")
    )
    expected = isomorphic_scores(MLP.graph, magnitude_scores(MLP.graph, MLP.variables))
    for name, values in expected.items():
        np.testing.assert_allclose(places[name], values)


def test_scores_per_cost_divide_by_the_budgets():
    # A unit of the first group owns 4 + 1 + 6 parameters, one of the second 8 + 3.
    config = PruneConfig(score="magnitude", score_normaliser="cost")
    raw = magnitude_scores(MLP.graph, MLP.variables, normaliser="none")
    constraints = make_pruning(MLP.network, MLP.task, "params=0.5").constraints
    found = score_units(MLP.network, MLP.task, config, constraints)
    for name, values in raw.items():
        np.testing.assert_allclose(found[name], values / (11 / 106 / 0.5), rtol=1e-4)
    with pytest.raises(ValueError, match="score_normaliser='cost' divides by what a unit costs"):
        score_units(MLP.network, MLP.task, config)


def test_units_of_equal_scores_go_by_their_numbers():
    """Equal weights and no examples that tell units apart: every method still finds a mask."""
    equal = {name: jnp.ones_like(leaf) for name, leaf in MLP.variables.items()}
    network = MLP.network.replace(equal)
    settings = small_pruning().config
    for score in ("magnitude", "lamp", "fisher"):
        config = PruneConfig(**{**vars(settings), "score": score})
        pruning = make_pruning(network, MLP.task, "params=0.5", config)
        np.testing.assert_array_equal(pruning.env.ranks[0, :8], np.arange(8))
        kept = search(pruning, "uniform").archive.feasible.masks[0]
        np.testing.assert_array_equal(kept[0], [1, 1, 1, 1, 1, 0, 0, 0])
        assert search(pruning, "global_magnitude").best_reward >= 0


def test_a_loss_that_is_nan_is_refused_by_name():
    broken = rp.Task(
        lambda outputs, batch: jnp.log(-jnp.ones(())) * outputs.sum(),
        MLP.task.metric,
        *[MLP.task.train] * 3,
    )
    with pytest.raises(ValueError, match="score='fisher' gives nan to unit 0 of group 'a'"):
        score_units(MLP.network, broken, PruneConfig(score="fisher"))


def test_unknown_options_are_refused():
    for name in ("score", "score_normaliser", "score_reduction", "score_scope"):
        with pytest.raises(ValueError, match=f"{name}='best' must be one of"):
            check_choices(PruneConfig(**{name: "best"}))


def test_minibatches_hold_all_but_what_is_left_over():
    found = in_minibatches({"x": np.arange(10).reshape(5, 2)}, 2)["x"]
    np.testing.assert_array_equal(found, np.arange(8).reshape(2, 2, 2))
    assert in_minibatches(np.arange(3), 8).shape == (1, 3)
