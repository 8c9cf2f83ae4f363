"""One registry of methods, each of which keeps to the budgets."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn, small_pruning

from rlprune_jax.costs import limits, satisfies
from rlprune_jax.search import (
    check_archive,
    gates_to_masks,
    project_priorities,
    start_search,
)
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores
from rlprune_jax.units.weight_scores import magnitude_scores
from rlprune_jax.workflow.config import AGENT, LIBRARIES, MethodName
from rlprune_jax.workflow.delivery import deliver
from rlprune_jax.workflow.fitting import deliverable
from rlprune_jax.workflow.methods import METHODS, agent_config, informed, with_minimum
from rlprune_jax.workflow.pruning import make_pruning
from rlprune_jax.workflow.searches import search


def test_the_registry_and_the_settings_name_the_same_methods():
    assert set(METHODS) == {AGENT, *get_args(MethodName)}
    assert next(iter(METHODS)) == AGENT


MEASURING = ("fastnas", "dynamic_programming")

ELSEWHERE = ("agent_sparsity_informed", "network_slimming", "iterative_fisher")
"""Methods whose tests are their own: of a network with norms, or of other evaluations."""

ONE = ("uniform", "uniform_magnitude")
"""Methods that evaluate one candidate."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ELSEWHERE])
def test_every_method_gives_candidates_within_the_budgets(name):
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    pruning = small_pruning("params=0.5")
    strategy = METHODS[name](pruning)
    found = search(pruning, name)
    assert found.method == name
    count = 1 if name in ONE else pruning.config.candidates
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


def test_uniform_by_norm_keeps_the_greatest_norms_of_each_group():
    pruning = small_pruning("params=0.5")
    strategy = METHODS["uniform_magnitude"](pruning)
    assert not strategy.fill
    norms = magnitude_scores(pruning.graph, pruning.network.variables)
    kept = search(pruning, "uniform_magnitude").archive.feasible.masks[0]
    for row, (name, number) in zip(kept, {"a": 5, "b": 3}.items(), strict=True):
        greatest = np.sort(np.argsort(-np.asarray(norms[name]))[:number])
        np.testing.assert_array_equal(np.flatnonzero(row), greatest)


OF_SCORES = (
    *("global_magnitude", "uniform_magnitude", "isomorphic_magnitude", "isomorphic_fisher"),
    "iterative_fisher",
)


@pytest.mark.parametrize("name", OF_SCORES)
def test_methods_of_scores_can_be_traced(name):
    """A study makes them inside of its program, of weights and limits that are not known."""
    pruning = small_pruning("params=0.5")

    def masks(variables, limits):
        problem = dataclasses.replace(
            pruning,
            network=pruning.network.replace(variables),
            env=dataclasses.replace(pruning.env, limits=limits),
        )
        strategy = METHODS[name](problem)
        searcher = strategy.method(strategy.env)
        state = searcher.init(None, jax.random.key(0))
        return searcher.ask(state, jax.random.key(1))[0].masks

    found = jax.eval_shape(masks, pruning.network.variables, pruning.env.limits)
    assert found.shape[1:] == (2, 8)


def test_another_order_of_units_is_as_an_environment_would_have_it():
    pruning = small_pruning("params=0.5")
    env = METHODS["uniform_magnitude"](pruning).env
    wanted = small_pruning("params=0.5", score="magnitude").env
    np.testing.assert_array_equal(env.ranks, wanted.ranks)
    np.testing.assert_allclose(env.scores, wanted.scores, rtol=1e-6)
    np.testing.assert_allclose(env.raw_scores, wanted.raw_scores, rtol=1e-6)


def test_minimums_go_from_none_to_the_uniform_widths():
    """Norms that favour one group: without a minimum the other keeps 2, with all of it its 3."""
    pruning = small_pruning("params=0.5")
    weak = dict(pruning.network.variables)
    weak["b"] = 1e-3 * weak["b"]
    problem = make_pruning(
        pruning.network.replace(weak), pruning.task, "params=0.5", pruning.config
    )
    scores = magnitude_scores(problem.graph, weak, normaliser="none")
    masks = np.asarray(project_priorities(problem.env, with_minimum_masks(problem, scores)))
    counts = masks.sum(-1)
    np.testing.assert_array_equal(counts[0][1], 2)
    np.testing.assert_array_equal(counts[-1], [5, 3])
    assert (np.diff(counts[:, 1]) >= 0).all()


def with_minimum_masks(pruning, scores):
    raised = with_minimum(pruning.env, scores, pruning.config.candidates)
    return gates_to_masks(pruning.env, raised)


def test_isomorphic_methods_compare_groups_of_one_kind_alone():
    """The two groups are scopes of their own, so scaling one changes nothing."""
    pruning = small_pruning("params=0.5")
    scaled = dict(pruning.network.variables)
    scaled["a"] = 100 * scaled["a"]
    other = make_pruning(
        pruning.network.replace(scaled), pruning.task, "params=0.5", pruning.config
    )
    one, two = (
        METHODS["isomorphic_magnitude"](each).method.arrays["scores"] for each in (pruning, other)
    )
    for name in one:
        np.testing.assert_allclose(one[name], two[name])


def test_network_slimming_cuts_by_the_scales_of_norms():
    small = small_cnn()
    params = dict(small.variables["params"])
    for number in range(1, 5):
        size = len(params[f"norm{number}"]["scale"])
        scale = jnp.where(jnp.arange(size) % 2, 1.0, 1e-3)
        params[f"norm{number}"] = {**params[f"norm{number}"], "scale": scale}
    network = small.network.replace({**small.variables, "params": params})
    config = dataclasses.replace(small_pruning().config, score="random")
    pruning = make_pruning(network, small.task, "params=0.4", config)
    scores = METHODS["network_slimming"](pruning).method.arrays["scores"]
    for rows in scores.values():
        assert (np.asarray(rows[0, 1::2]).min() > np.asarray(rows[0, ::2]).max()).all()
    with pytest.raises(ValueError, match="score='norm_scale' needs norms"):
        METHODS["network_slimming"](small_pruning("params=0.5"))


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
