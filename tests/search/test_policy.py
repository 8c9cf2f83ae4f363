import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import AgentConfig, candidate_costs, feasible, make_environment
from rlprune_jax.search.environment import logit
from rlprune_jax.search.policy import (
    Normaliser,
    PolicySettings,
    coarse_policy,
    fine_policy,
    observation_size,
    observe_ratios,
    offset_by,
)

SETTINGS = PolicySettings(initial_std=0.5, minimum_std=0.05, sharpness=8.0, least_ratio=0.0)
MAKERS = {"coarse": coarse_policy, "fine": fine_policy}


def config(granularity, constraint="multiplier", count=6, **structure):
    return AgentConfig(
        granularity=granularity,
        constraint=constraint,
        candidates=count,
        policy="network",
        hidden_sizes=(8,),
        **structure,
    )


def acted(env, granularity, constraint, count=6, seed=0):
    policy = MAKERS[granularity](env, config(granularity, constraint, count))
    normaliser = Normaliser(jnp.zeros(observation_size(env)), jnp.ones(observation_size(env)))
    params = jax.jit(policy.init)(jax.random.key(seed))
    masks, trajectory = jax.jit(policy.act)(params, SETTINGS, normaliser, jax.random.key(seed + 1))
    return policy, params, normaliser, masks, trajectory


@pytest.mark.parametrize("constraint", ["multiplier", "projection", "both"])
@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_describing_again_gives_the_log_probs_of_acting(env, granularity, constraint):
    policy, params, normaliser, masks, trajectory = acted(env, granularity, constraint)
    again = jax.jit(policy.describe)(params, SETTINGS, normaliser, trajectory)
    for taken in (trajectory.executed, trajectory.proposed):
        moved = offset_by(again, taken.offset)
        log_probs = policy.log_prob(moved, taken.actions)
        np.testing.assert_allclose(log_probs, taken.log_probs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(policy.divergence(taken.behaviour, moved), 0.0, atol=1e-5)
    if constraint != "multiplier":
        assert bool(feasible(candidate_costs(env, masks), env.limits).all())
    else:
        np.testing.assert_array_equal(masks, trajectory.proposed_masks)
    assert (masks.sum(-1) >= 1).all() and not (masks * ~env.alive).any()


def test_coarse_policy_starts_at_the_initial_ratio_and_obeys_the_action_clip(env):
    count = 2000
    policy = coarse_policy(env, config("coarse", count=count))
    normaliser = Normaliser(jnp.zeros(observation_size(env)), jnp.ones(observation_size(env)))
    params, act = jax.jit(policy.init)(jax.random.key(0)), jax.jit(policy.act)
    _, trajectory = act(params, SETTINGS, normaliser, jax.random.key(1))
    actions = trajectory.proposed.actions[..., 0]
    # 0.5 / sqrt(2000) is 0.011; the untrained network adds less than 0.05.
    np.testing.assert_allclose(actions.mean(1), logit(env.initial_keep), atol=0.1)
    np.testing.assert_allclose(actions.std(1), 0.5, atol=0.03)
    clipped = SETTINGS._replace(least_ratio=0.6)
    masks, _ = act(params, clipped, normaliser, jax.random.key(1))
    assert (masks.sum(-1) >= np.round(0.6 * np.array(env.sizes))).all()


def test_fine_policy_samples_the_bernoulli_that_it_describes(env):
    _, _, _, masks, trajectory = acted(env, "fine", "multiplier", count=4000)
    probability = jax.nn.sigmoid(trajectory.proposed.behaviour[0].mean(1))
    # Rows with a unit forced by min_keep differ; with ratios near a half none is.
    expected = jnp.where(env.alive, probability, 0.0)
    np.testing.assert_allclose(masks.mean(0), expected, atol=0.04)


def test_fine_policy_prefers_better_scores_and_projection_centres_its_probabilities(env):
    _, _, _, masks, trajectory = acted(env, "fine", "projection", count=2000)
    probability = jax.nn.sigmoid(trajectory.executed.behaviour[0]).mean(1)
    order = jnp.argsort(env.ranks[1])
    assert float(probability[1, order[0]]) > 0.9 > 0.1 > float(probability[1, order[-1]])
    kept = float(masks.sum((1, 2)).mean())
    assert abs(float(jnp.where(env.alive, probability, 0.0).sum()) - kept) < 0.7


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_dead_padding_changes_nothing(granularity):
    """A group of 4 units beside one of 4, and beside one padded to 9: the same numbers for it."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=4)
    features = rng.uniform(size=(2, 3))
    found = []
    for other in (4, 9):
        env = make_environment(
            [4, other], [scores, np.arange(other)], features, 0.5, initial_keep=0.5
        )
        policy = MAKERS[granularity](env, config(granularity, count=5))
        params = jax.jit(policy.init)(jax.random.key(0))
        normaliser = Normaliser(jnp.zeros(observation_size(env)), jnp.ones(observation_size(env)))
        _, trajectory = jax.jit(policy.act)(params, SETTINGS, normaliser, jax.random.key(1))
        taken = trajectory.proposed
        units = taken.actions.shape[-1]
        actions = jnp.zeros((2, 5, units)).at[:, :, :4].set(1.0)
        described = jax.jit(policy.describe)(params, SETTINGS, normaliser, trajectory)
        found.append(policy.log_prob(described, actions)[0].sum(-1))
        if granularity == "fine":
            # Whatever stands in the padding, an action of 1 or wild logits, counts for nothing.
            wild = (jnp.where(env.alive[:, None], described[0], 7.0),)
            ones = jnp.ones_like(taken.actions)
            dead = jnp.where(env.alive[:, None], taken.actions, ones)
            np.testing.assert_array_equal(
                policy.log_prob(described, taken.actions), policy.log_prob(wild, dead)
            )
            assert policy.entropy(described) == policy.entropy(wild)
            assert float(policy.divergence(described, wild)) == pytest.approx(0.0, abs=1e-7)
    if granularity == "fine":
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_acting_observes_what_the_finished_episode_shows(env):
    _, _, _, _, trajectory = acted(env, "coarse", "multiplier")
    ratios = jax.nn.sigmoid(trajectory.proposed.actions[..., 0]).T
    np.testing.assert_allclose(
        trajectory.observations, observe_ratios(env, ratios), rtol=1e-5, atol=1e-6
    )
    assert trajectory.observations.shape == (3, 6, observation_size(env))


def test_the_learned_numbers_are_per_group_and_per_unit(env):
    key = jax.random.key(0)
    coarse = coarse_policy(env, AgentConfig(candidates=4)).init(key)
    fine = fine_policy(env, AgentConfig(granularity="fine", candidates=4)).init(key)
    assert set(coarse) == {"group_logit", "log_std"} and set(fine) == {"group_logit", "unit_logit"}
    assert coarse["group_logit"].shape == fine["group_logit"].shape == (3,)
    assert fine["unit_logit"].shape == (3, 16) and "unit_logit" not in coarse
