import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    archive_init,
    candidate_costs,
    cross_entropy,
    feasible,
    global_threshold,
    random_search,
    ranked,
    run_search,
    uniform,
)


def by_first_units(env):
    """Units score by their place, over two scales."""
    scores = {
        name: -jnp.arange(float(size)) for name, size in zip(env.names, env.sizes, strict=True)
    }
    return jax.tree.map(lambda each: jnp.linspace(1, 2, 8)[:, None] * each, scores)


BASELINES = {
    "ranked": lambda env: ranked(env, by_first_units(env)),
    "uniform": lambda env: uniform(env, 8),
    "global_threshold": lambda env: global_threshold(env, 8),
    "random_coarse": lambda env: random_search(env, 8),
    "random_fine": lambda env: random_search(env, 8, "fine"),
    "cross_entropy_coarse": lambda env: cross_entropy(env, 8),
    "cross_entropy_fine": lambda env: cross_entropy(env, 8, granularity="fine"),
}


@pytest.mark.parametrize("name", BASELINES)
def test_every_candidate_is_feasible(env, units_reward, name):
    searcher = BASELINES[name](env)

    @jax.jit
    def run(key):
        state = searcher.init(None, key)
        archive = archive_init(env, 4)
        return run_search(
            searcher, units_reward, env.limits, state, archive, 4, key, cost_fn=env.cost_fn
        )

    result = jax.vmap(run)(jax.random.split(jax.random.key(0), 3))
    assert (result.metrics["feasible_fraction"] == 1.0).all()
    assert bool(feasible(result.history.costs, env.limits).all())
    assert result.archive.feasible.valid[:, 0].all()


@pytest.mark.parametrize("name", BASELINES)
def test_host_costs_leave_candidates_unprojected_but_valid(env, name):
    host = dataclasses.replace(env, cost_fn=None)
    searcher = BASELINES[name](host)
    candidates, state = jax.jit(searcher.ask)(
        searcher.init(None, jax.random.key(0)), jax.random.key(1)
    )
    masks = candidates.masks
    assert masks.shape == (8, 3, 16) and (masks.sum(-1) >= 1).all()
    assert not (masks * ~env.alive).any() and set(np.unique(masks)) <= {0.0, 1.0}
    costs = candidate_costs(env, masks)
    searcher.tell(state, candidates, jnp.ones(8), costs)


def test_uniform_uses_one_ratio_and_the_whole_budget(env):
    searcher = uniform(env, 3)
    masks = searcher.ask(searcher.init(None, jax.random.key(0)), jax.random.key(1))[0].masks
    kept = masks.sum(-1)
    wanted = np.round(np.asarray(env.initial_keep[0]) * np.array(env.sizes))
    assert kept[0].tolist() == wanted.tolist()
    assert (kept[1:] <= kept[:-1]).all()


def test_global_threshold_compares_raw_scores_first(env):
    searcher = global_threshold(env, 2)
    masks = searcher.ask(searcher.init(None, jax.random.key(0)), jax.random.key(1))[0].masks
    kept = np.where(np.asarray(masks[0]) > 0.5, env.raw_scores, np.inf)
    dropped = np.where(np.asarray((masks[0] < 0.5) & env.alive), env.raw_scores, -np.inf)
    assert kept.min() >= dropped.max()


def test_random_candidates_differ(env):
    searcher = random_search(env, 8)
    masks = searcher.ask(searcher.init(None, jax.random.key(0)), jax.random.key(1))[0].masks
    assert len({np.asarray(mask).tobytes() for mask in masks}) >= 5


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_cross_entropy_moves_to_its_elites(env, units_reward, granularity):
    searcher = cross_entropy(env, 16, granularity=granularity)

    @jax.jit
    def run(key):
        return run_search(
            searcher,
            units_reward,
            env.limits,
            searcher.init(None, key),
            archive_init(env, 2),
            20,
            key,
            cost_fn=env.cost_fn,
        )

    means = jax.vmap(run)(jax.random.split(jax.random.key(0), 4)).metrics["reward_mean"]
    assert (means[:, -3:].mean(1) > means[:, :3].mean(1)).all()


def test_cross_entropy_ranks_feasible_above_infeasible(env):
    searcher = cross_entropy(env, 4, elite_fraction=0.25)
    state = searcher.init(None, jax.random.key(0))
    candidates, state = searcher.ask(state, jax.random.key(1))
    rewards = jnp.array([9.0, jnp.nan, 1.0, 2.0])
    costs = jnp.array([[0.9, 0.9], [0.1, 0.1], [0.1, 0.1], [0.31, 0.1]])
    found, _ = searcher.tell(state, candidates, rewards, costs)
    # The NaN ties with the worst reward 1.0 and comes first; its action or the third's is followed.
    moved = found.mean - state.mean
    ways = [0.5 * (candidates.trajectory[i] - state.mean) for i in (1, 2)]
    assert any(bool(jnp.allclose(moved, way, atol=1e-5)) for way in ways)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda env: uniform(env, 0), "num_candidates=0"),
        (lambda env: global_threshold(env, -1), "num_candidates=-1"),
        (lambda env: random_search(env, 0), "num_candidates=0"),
        (lambda env: random_search(env, 2, "finest"), "granularity='finest'"),
        (lambda env: cross_entropy(env, 2, granularity=""), "granularity=''"),
        (lambda env: cross_entropy(env, 2, elite_fraction=0.0), "elite_fraction=0.0"),
        (lambda env: cross_entropy(env, 2, smoothing=1.5), "smoothing=1.5"),
        (lambda env: cross_entropy(env, 2, initial_std=-1.0), "initial_std=-1.0"),
        (lambda env: cross_entropy(env, 2, sharpness=float("nan")), "sharpness=nan"),
    ],
)
def test_bad_arguments_are_refused_by_name(env, make, message):
    with pytest.raises(ValueError, match=message):
        make(env)


def test_wrong_shapes_told_are_refused_by_name(env):
    searcher = uniform(env, 3)
    candidates, state = searcher.ask(searcher.init(None, jax.random.key(0)), jax.random.key(1))
    with pytest.raises(ValueError, match="rewards"):
        searcher.tell(state, candidates, jnp.ones(4), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="costs"):
        searcher.tell(state, candidates, jnp.ones(3), jnp.ones((3, 1)))
