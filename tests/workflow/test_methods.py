"""One registry of methods, each of which keeps to the budgets."""

from typing import get_args

import jax
import numpy as np
import pytest
from small import small_pruning

from rlprune_jax.costs import limits, satisfies
from rlprune_jax.search import check_archive, start_search
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores
from rlprune_jax.workflow.config import AGENT, LIBRARIES, MethodName
from rlprune_jax.workflow.delivery import deliver
from rlprune_jax.workflow.fitting import deliverable
from rlprune_jax.workflow.methods import METHODS, agent_config, informed
from rlprune_jax.workflow.searches import search


def test_the_registry_and_the_settings_name_the_same_methods():
    assert set(METHODS) == {AGENT, *get_args(MethodName)}
    assert next(iter(METHODS)) == AGENT


NAMES = [name for name in METHODS if name != "agent_sparsity_informed"]
MEASURING = ("fastnas", "dynamic_programming")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_candidates_within_the_budgets(name):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    pruning = small_pruning("params=0.5")
    strategy = METHODS[name](pruning)
    found = search(pruning, name)
    assert found.method == name
    count = 1 if name == "uniform" else pruning.config.candidates
    assert found.rewards.shape == (strategy.iterations, count)
    assert found.evaluations == found.rewards.size <= pruning.config.evaluations
    check_archive(found.archive)
    # Projection is the default: no candidate is over the budgets, but those that measure groups.
    fraction = found.feasible_fraction(limits(pruning.constraints))
    assert (0 < fraction < 1) if name in MEASURING else fraction == 1
    entries = found.archive.feasible
    assert (np.asarray(entries.costs)[np.asarray(entries.valid)] <= 0.5).all()
    for gates in deliverable(pruning.env, pruning.constraints, found.archive, 3):
        assert satisfies(pruning.constraints, gates)


def test_what_uniform_delivers_is_uniform_and_not_filled():
    pruning = small_pruning("params=0.5")
    assert not METHODS["uniform"](pruning).fill
    kept = deliver(pruning, search(pruning, "uniform")).kept
    # Of 8 and 6 units, ratios up to 7 / 12 round to 5 and 3, which make 4 * 5 + 5 + 5 * 3 + 3 * 3 =
    # 49 of 106 parameters; beyond, 5 and 4 make 57, more than the half.
    assert list(kept.values()) == [5, 3]


def test_structured_sap_goes_from_the_papers_norms_to_the_other_end():
    pruning = small_pruning("params=0.5")
    scores = METHODS["structured_sap"](pruning).method.arrays["scores"]
    for row, p in ((0, 0.5), (-1, 1.0)):
        expected = structured_sap_scores(pruning.graph, pruning.network.variables, p=p, q=2 * p)
        for group, score in expected.items():
            assert scores[group].shape[0] == pruning.config.candidates
            np.testing.assert_allclose(scores[group][row], score, rtol=1e-5)


def test_the_informed_agent_sees_the_pq_index_and_starts_within_the_budgets():
    pruning = small_pruning("params=0.5")
    env = informed(pruning)
    sparsity = group_sparsity(pruning.graph, pruning.network.variables)
    np.testing.assert_allclose(env.descriptors[:, -2], sparsity.pq_index)
    np.testing.assert_allclose(env.descriptors[:, -1], sparsity.keep_ratio)
    assert env.descriptors.shape[1] == pruning.env.descriptors.shape[1] + 2
    assert ((env.initial_keep > 0) & (env.initial_keep <= 1)).all()
    # It differs from the agent in what it sees, so its first candidates are enough.
    strategy = METHODS["agent_sparsity_informed"](pruning)
    state = start_search(strategy.method, strategy.env, strategy.hparams, 1, jax.random.key(0))
    searcher = strategy.method(strategy.env)
    candidates, _ = jax.jit(searcher.ask)(state.state, jax.random.key(1))
    costs = jax.vmap(strategy.env.cost_fn)(candidates.masks)
    assert costs.shape == (8, 1) and (costs <= 0.5).all()
    given = small_pruning("params=0.5", sparsity_informed=True)
    assert METHODS[AGENT](given).env.descriptors.shape == env.descriptors.shape


def test_the_agent_is_as_the_settings_say():
    pruning = small_pruning("params=0.5", granularity="coarse", constraint="both", dual="adam_clip")
    config = agent_config(pruning.config)
    assert (config.granularity, config.constraint, config.dual) == ("coarse", "both", "adam_clip")
    assert (config.candidates, config.iterations) == (8, 2)


def test_rivals_that_measure_leave_the_rest_of_the_evaluations():
    pruning = small_pruning("params=0.5", evaluations=64)
    # Two groups of 8 and 6 units: 11 levels below each fit into half of the 64 evaluations, of
    # which 6 (of 2 to 7 units) and 4 (of 2 to 5) are different; with the dense 11 in 2 iterations.
    for name in MEASURING:
        assert METHODS[name](pruning).iterations == 2 + 1
    assert METHODS["spdy"](pruning).iterations == METHODS["evopress"](pruning).iterations == 8
    assert METHODS["knapsack"](pruning).iterations == 1
