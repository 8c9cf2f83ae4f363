import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search import AgentConfig
from rlprune_jax.search.critics import make_critics, running_init, running_std, running_update
from rlprune_jax.search.policy import observation_size


def test_running_statistics_of_parts_are_those_of_the_whole():
    sample = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype(np.float32)
    running = running_init(4)
    for part in (sample[:7], sample[7:8], sample[8:]):
        running = running_update(running, jnp.asarray(part))
    np.testing.assert_allclose(running.mean, sample.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running_std(running), sample.std(0), rtol=1e-4)


def test_deviation_is_one_where_nothing_varies():
    assert running_std(running_init(2)).tolist() == [1.0, 1.0]
    assert running_std(running_update(running_init(2), jnp.ones((5, 2)))).tolist() == [1.0, 1.0]


def test_critics_give_the_reward_and_one_value_per_budget(env):
    observations = jnp.ones((3, 4, observation_size(env)))
    for critic in (True, False):
        critics = make_critics(env, AgentConfig(critic=critic, hidden_sizes=(4,)))
        values = critics.values(critics.init(jax.random.key(0)), observations)
        assert values.shape == (3, 4, 3)
        assert bool(jnp.any(values != 0.0)) == critic
