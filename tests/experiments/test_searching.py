from pathlib import Path

import jax
import numpy as np
import pytest

from rlprune_jax.search import HParams, masks_to_gates, ratios_to_masks
from rlprune_jax.units.descriptors import FEATURES
from rlprune_jax.units.scores import magnitude_scores
from rlprune_jax.units.structured_sap import group_sparsity


@pytest.mark.parametrize("informed", [False, True])
def test_sparsity_enters_the_agents_state_and_start(informed, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    from prune_rl import build
    from searching import make_search_environment
    from settings import BASELINES, Config, resolve

    options = {"model": "mlp", "widths": (24, 12), "budget": ("params=0.4",)}
    config = resolve(Config(sparsity_informed=informed, **options))
    problem, budgets = build(config)
    variables = jax.tree.map(
        # The first half of every layer's units is ten times as strong: sparse norms.
        lambda leaf: leaf * np.where(np.arange(leaf.shape[-1]) < leaf.shape[-1] // 2, 1.0, 0.1),
        problem.variables,
    )
    scores = magnitude_scores(problem.graph, variables)
    env = make_search_environment(config, problem, budgets, scores, variables)
    assert env.descriptors.shape == (2, len(FEATURES) + 2 * informed)
    if informed:
        sparsity = group_sparsity(problem.graph, variables)
        np.testing.assert_allclose(env.descriptors[:, -2], sparsity.pq_index, rtol=1e-6)
        np.testing.assert_allclose(env.descriptors[:, -1], sparsity.keep_ratio, rtol=1e-6)
    assert env.cost_fn is not None
    masks = ratios_to_masks(env, env.initial_keep)
    assert float(env.cost_fn(masks)[0]) <= 0.4
    if informed:
        return
    # The same agent beside the plain one, and structured SAP down to the budget.
    for method in ("agent_sparsity_informed", "structured_sap"):
        searcher = BASELINES[method](config, problem.graph, variables)(env)
        candidates, _ = searcher.ask(searcher.init(HParams(), jax.random.key(0)), jax.random.key(1))
        assert candidates.masks.shape == (config.candidates, 2, 24)
        costs = jax.vmap(env.cost_fn)(candidates.masks)[:, 0]
        assert (costs <= 0.4).all() and costs.max() > 0.3
    # Half of the units cost more than the budget: none of the weak half is left.
    for gate in masks_to_gates(env, candidates.masks).values():
        assert (gate[:, gate.shape[1] // 2 :] == 0).all()
