"""Steps of Fisher pruning against a loop in Python, and the limits that they keep to."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn, small_mlp, small_pruning

from rlprune_jax.costs import limits, satisfies
from rlprune_jax.search import masks_to_gates
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.iterative_fisher import (
    Comparison,
    FisherData,
    FisherSteps,
    iterative_fisher_priorities,
    step_cost,
)
from rlprune_jax.workflow.methods import METHODS
from rlprune_jax.workflow.pruning import make_pruning
from rlprune_jax.workflow.searches import search

MLP = small_mlp()
DEFINITION, OBJECTIVE = MLP.network.definition, MLP.task.objective
POOL = jax.tree.map(lambda leaf: jnp.asarray(leaf)[6:7], MLP.task.train)
"""One example, so that every draw is the same."""


def priorities(pruning, steps, comparisons=("none",)):
    how = FisherSteps(
        definition=pruning.network.definition,
        objective=pruning.task.objective,
        steps=steps,
        examples=8,
        comparisons=comparisons,
    )
    data = FisherData(calibration=(), pool=POOL)
    return iterative_fisher_priorities(
        how, pruning.network.variables, pruning.env, data, jax.random.key(0)
    )


def params(kept):
    first, second = kept["a"].sum(), kept["b"].sum()
    return 4 * first + first + first * second + 3 * second


def fisher(gates):
    def loss(gates):
        return MLP.task.loss(DEFINITION.masked(MLP.variables, gates, POOL[0]), POOL)

    return {name: np.asarray(slope) ** 2 for name, slope in jax.grad(loss)(gates).items()}


def loop(steps, limit=0.35, least=2):
    """The method in plain Python: the lowest score goes while the step's limit is passed."""
    kept = {"a": np.ones(8), "b": np.ones(6)}
    taken = {name: np.full(len(row), float(steps)) for name, row in kept.items()}
    for step in range(1, steps + 1):
        bound = 106 * limit ** (step / steps)
        scores = fisher({name: jnp.asarray(row, jnp.float32) for name, row in kept.items()})
        while params(kept) > bound:
            free = [
                (scores[name][unit], -unit - 8 * (name == "b"), name, unit)
                for name, row in kept.items()
                if row.sum() > least
                for unit in np.flatnonzero(row)
            ]
            _, _, name, unit = min(free)
            kept[name][unit], taken[name][unit] = 0, step - 1
    return kept, taken


@pytest.mark.parametrize("steps", [1, 6])
def test_steps_are_those_of_a_loop_in_python(steps):
    found = {
        name: rows[0] for name, rows in priorities(small_pruning("params=0.35"), steps).items()
    }
    kept, taken = loop(steps)
    for name, row in kept.items():
        np.testing.assert_array_equal(np.asarray(found[name]) > 0, row > 0, err_msg=name)
        gone = row == 0
        went = np.floor(np.asarray(found[name])[gone])
        np.testing.assert_array_equal(went, (taken[name] - steps)[gone])


def test_many_steps_are_not_one():
    one, many = (loop(steps)[0] for steps in (1, 6))
    assert any((one[name] != many[name]).any() for name in one)


def test_several_budgets_rounding_and_minima_are_kept_at_once():
    pruning = small_pruning("params=0.6", "macs=0.5", round_to=2, min_keep=4)
    found = priorities(pruning, 5, get_args(Comparison))
    for number in range(len(get_args(Comparison))):
        gates = {name: (rows[number] > 0).astype(jnp.float32) for name, rows in found.items()}
        assert satisfies(pruning.constraints, gates)
        for row in gates.values():
            assert row.sum() >= 4 and row.sum() % 2 == 0


def test_comparisons_are_made_anew_at_each_step():
    """Of one step by each comparison: what it takes are the lowest of what is compared."""
    pruning = small_pruning("params=0.7")
    found = priorities(pruning, 1, ("root_cost", "cost", "mean"))
    raw = fisher(MLP.ones)
    for number, divisor in enumerate(
        # A unit of the first group owns 4 + 1 + 6 parameters, one of the second 8 + 3.
        ({"a": 11**0.5, "b": 11**0.5}, {"a": 11, "b": 11}, {n: v.mean() for n, v in raw.items()})
    ):
        scores = {name: values / divisor[name] for name, values in raw.items()}
        kept = {name: np.asarray(rows[number]) > 0 for name, rows in found.items()}
        free = [name for name in kept if kept[name].sum() > 2]
        gone = [scores[name][~kept[name]].max() for name in kept if (~kept[name]).any()]
        assert max(gone) <= min(scores[name][kept[name]].min() for name in free)


def test_statistics_are_recalibrated_at_each_step():
    """One step from a first mask: the scores are those with statistics of the masked network."""
    small = small_cnn()
    config = PruneConfig(evaluations=16, candidates=8)
    pruning = make_pruning(small.network, small.task, "params=0.5", config)
    definition = small.network.definition
    how = FisherSteps(definition, small.task.objective, 1, 4, ("none",))
    pool = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:1], small.data.batch)
    data = FisherData(small.data.calibration, pool)
    found = iterative_fisher_priorities(how, small.variables, pruning.env, data, jax.random.key(0))
    found = {name: rows[0] for name, rows in found.items()}
    masked = masked_training(definition, small.ones)
    own = recalibrate(masked, small.variables, *small.data.calibration)

    def scores(variables):
        def loss(gates):
            return small.task.loss(definition.masked(variables, gates, pool[0]), pool)

        return {name: np.square(slope) for name, slope in jax.grad(loss)(small.ones).items()}

    def agrees(scores):
        """Every unit kept scores above every unit of its group that is gone."""
        return all(
            values[found[name] > 0].min() >= values[found[name] < 0].max(initial=0)
            for name, values in scores.items()
        )

    assert any((found[name] < 0).any() for name in found)
    assert agrees(scores(own)) and not agrees(scores(small.variables))


def test_what_the_method_costs_is_counted():
    """Without batch norm a step of 48 examples is 144 / 24 evaluations of 24 held-out examples."""
    pruning = small_pruning("params=0.5", evaluations=64)
    strategy = METHODS["iterative_fisher"](pruning)
    assert strategy.spent == 60  # ten steps, and one candidate
    found = search(pruning, "iterative_fisher")
    assert found.evaluations == 61 <= pruning.config.evaluations
    assert found.feasible_fraction(limits(pruning.constraints)) == 1
    more = METHODS["iterative_fisher"](small_pruning("params=0.5", evaluations=1000))
    assert more.spent == 900  # two runs of 75 steps
    assert jax.tree.leaves(more.method.arrays["scores"])[0].shape[0] == 2


def test_the_mask_that_is_evaluated_is_the_one_that_was_found():
    pruning = small_pruning("params=0.5", evaluations=64)
    strategy = METHODS["iterative_fisher"](pruning)
    masks = (
        strategy.method(pruning.env)
        .ask(strategy.method(pruning.env).init(None, jax.random.key(0)), jax.random.key(1))[0]
        .masks
    )
    gates = masks_to_gates(pruning.env, masks)
    for name, row in strategy.method.arrays["scores"].items():
        np.testing.assert_array_equal(gates[name], row > 0)


def test_examples_through_the_network_are_what_a_step_costs():
    assert step_cost(calibration=0, examples=48, candidate=24) == 6
