import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import (
    AgentConfig,
    HParams,
    archive_init,
    ppo_lagrangian,
    run_search,
)
from rlprune_jax.search.config import check_hparams

PROJECTED = {"constraint": "projection"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "finest"}, "granularity='finest'"),
        ({"constraint": "wall"}, "constraint='wall'"),
        ({"dual": "sgd"}, "dual='sgd'"),
        ({"shaping": "best"}, "shaping='best'"),
        ({"candidates": 0}, "candidates=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"minibatches": 5}, "minibatches=5"),
        ({"candidates": 1}, "candidates=1 must be at least 2"),
        ({"candidates": 2.5}, "candidates=2.5 must be an integer"),
        ({"hidden_sizes": (8, -3)}, "hidden_sizes=-3"),
        ({"hidden_sizes": (0,)}, "hidden_sizes=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"critic": True, "shaping": "rank"}, "critic=False"),
        ({"policy": "tree"}, "policy='tree'"),
        (
            {**PROJECTED, "dual": "adam_clip"},
            "dual='adam_clip' must be left out",
        ),
        ({**PROJECTED, "standardise_cost": False}, "standardise_cost=False must be left out"),
        ({"normalise_observations": True}, "normalise_observations=True must be left out"),
        ({"normalise_returns": False}, "normalise_returns=False must be left out"),
    ],
)
def test_bad_configurations_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        AgentConfig(**changes)


def test_a_list_of_widths_makes_the_same_hashable_configuration():
    assert hash(AgentConfig(hidden_sizes=[8, 8])) == hash(AgentConfig(hidden_sizes=(8, 8)))
    assert AgentConfig(hidden_sizes=()).hidden_sizes == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("nan")}, "hparams.learning_rate=nan"),
        ({"learning_rate": -1.0}, "hparams.learning_rate=-1.0"),
        ({"learning_rate": np.ones(3)}, "hparams.learning_rate=.* must be a scalar"),
        ({"unit_learning_rate": jnp.float32(-0.5)}, "hparams.unit_learning_rate=-0.5"),
        ({"clip_epsilon": -1}, "hparams.clip_epsilon=-1"),
        ({"clip_epsilon": 0}, "hparams.clip_epsilon=0.0 must be above 0"),
        ({"gamma": 7}, "hparams.gamma=7 must be a number from 0 to 1"),
        ({"initial_std": -1}, "hparams.initial_std=-1"),
        ({"sharpness": "text"}, "hparams.sharpness='text'"),
        ({"multiplier_max": -1}, "hparams.multiplier_max=-1"),
        ({"entropy_coef": None}, "hparams.entropy_coef=None"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        check_hparams(HParams(**changes))


def test_something_else_than_hparams_is_refused():
    with pytest.raises(ValueError, match="hparams=None must be HParams"):
        check_hparams(None)


def test_good_numbers_become_float32_scalars_also_where_they_are_traced():
    found = check_hparams(HParams(action_clip_slope=-0.5, entropy_coef=0))
    assert all(leaf.dtype == jnp.float32 and leaf.shape == () for leaf in found)
    rates = jax.jit(lambda rate: check_hparams(HParams(learning_rate=rate)).learning_rate)
    assert jax.vmap(rates)(jnp.array([0.1, 0.2])).tolist() == pytest.approx([0.1, 0.2])


STRUCTURES = [
    {"granularity": "fine", **PROJECTED},
    {"granularity": "coarse", **PROJECTED},
    {"granularity": "fine", "constraint": "both"},
    {"constraint": "multiplier", "dual": "softplus_adam", "iterations": 12},
    {"policy": "network", "critic": True, **PROJECTED},
]
EXTREME = {
    "entropy_coef": 0.05,
    "action_clip_start": 0.2,
    "action_clip_slope": -0.4,
    "multiplier_max": 0.01,
    "max_grad_norm": 0.01,
    "target_kl": 1e-3,
    "minimum_std": 1.0,
    "clip_epsilon": 0.01,
    "value_coef": 1e4,
    "dual_kp": 50.0,
}
"""Other values of the numbers that half of their default might not show."""


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_the_numbers_that_change_anything_are_those_called_live(env, units_reward, structure):
    config = AgentConfig(candidates=8, hidden_sizes=(4,), **structure)
    agent = ppo_lagrangian(env, config)

    @jax.jit
    def run(hparams):
        state, archive = agent.init(hparams, jax.random.key(1)), archive_init(env, 1)
        found = run_search(agent, units_reward, None, state, archive, 6, jax.random.key(0))
        return found.history.rewards

    before = np.asarray(run(HParams()))
    changing = []
    for name, default in HParams._field_defaults.items():
        other = HParams(**{name: EXTREME.get(name, default * 0.5)})
        if not np.array_equal(np.asarray(run(other)), before):
            changing.append(name)
    assert tuple(changing) == config.live_numbers


def test_a_number_that_does_nothing_is_refused(env):
    agent = ppo_lagrangian(env, AgentConfig(granularity="fine", **PROJECTED))
    with pytest.raises(ValueError, match=r"hparams\.dual_kp=0\.5 must be left at 1\.0"):
        agent.init(HParams(dual_kp=0.5), jax.random.key(0))
    agent.init(HParams(dual_kp=1.0, unit_learning_rate=0.2), jax.random.key(0))
