import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search.multipliers import adam_clip, pid, projected_gradient, softplus_adam

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden" / "lagrange_golden.json").read_text()
)
# Parameters of the published codes that made the golden trajectories.
PUBLISHED = {
    "omnisafe_adam_clip": adam_clip(0.035, initial=0.001, relative=False),
    "omnisafe_pid": pid(
        0.1,
        0.01,
        0.01,
        initial=0.001,
        proportional_smoothing=0.95,
        derivative_smoothing=0.95,
        delay=10,
        relative=False,
    ),
    "icrl_softplus_adam_lr0.1": softplus_adam(0.1, initial=1.0, relative=False),
    "fsrl_pid": pid(0.05, 0.0005, 0.1, derivative_of_error=True, relative=False),
}
RULES = {
    "pid": pid(1.0, 0.1, 0.1, maximum=5.0),
    "projected_gradient": projected_gradient(0.1, maximum=5.0),
    "adam_clip": adam_clip(0.1, maximum=5.0),
    "softplus_adam": softplus_adam(0.1, maximum=5.0),
}


def trajectory(rule, costs, limits):
    """Multipliers f32[T, K] under costs f32[T, K]."""

    def step(state, cost):
        state = rule.update(state, cost, limits)
        return state, state.multiplier

    return jax.lax.scan(step, rule.init(limits.size), costs)[1]


@pytest.mark.parametrize("sequence", ["step", "sin", "sat"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_updates_are_reproduced(name, sequence):
    costs = jnp.asarray(GOLDEN["sequences"][sequence])[:, None]
    found = trajectory(PUBLISHED[name], costs, jnp.array([GOLDEN["cost_limit"]]))
    expected = GOLDEN["outputs"][f"{name}/{sequence}"]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_budgets_are_independent_and_relative_errors_ignore_the_unit(name):
    costs = jax.random.uniform(jax.random.key(0), (30, 3), minval=0.5, maxval=2.0)
    limits = jnp.array([1.0, 0.8, 1.5])
    together = trajectory(RULES[name], costs, limits)
    for k in range(3):
        alone = trajectory(RULES[name], 10.0 * costs[:, k : k + 1], 10.0 * limits[k : k + 1])
        np.testing.assert_allclose(together[:, k], alone[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_multiplier_rises_to_its_cap_and_comes_back_at_once(name):
    costs = jnp.concatenate([jnp.full((400, 1), 3.0), jnp.zeros((60, 1))])
    found = trajectory(RULES[name], costs, jnp.ones(1))[:, 0]
    assert (found >= 0.0).all() and (found <= 5.0 + 1e-5).all()
    np.testing.assert_allclose(found[399], 5.0, rtol=1e-4)
    # Without anti-windup an integral of 400 * 0.1 * 2 would hold the cap for hundreds of steps.
    assert found[-1] < 0.75 * found[399]


def test_adam_forgets_the_size_of_a_violation_and_pid_does_not():
    small, large = jnp.full((1, 1), 1.1), jnp.full((1, 1), 3.0)
    for name, forgets in (("adam_clip", True), ("pid", False)):
        first = trajectory(RULES[name], small, jnp.ones(1))
        second = trajectory(RULES[name], large, jnp.ones(1))
        assert bool(jnp.allclose(first, second, rtol=1e-3)) == forgets


def test_gains_may_be_traced_and_vmapped():
    costs, limits = jnp.full((5, 2), 1.5), jnp.ones(2)
    gains = jnp.array([0.1, 0.5])
    batched = jax.vmap(lambda gain: trajectory(pid(gain, gain), costs, limits))(gains)
    for index, gain in enumerate((0.1, 0.5)):
        np.testing.assert_allclose(
            batched[index], trajectory(pid(gain, gain), costs, limits), rtol=1e-6
        )


def test_costs_and_limits_of_different_shape_are_refused():
    rule = projected_gradient()
    with pytest.raises(AssertionError):
        rule.update(rule.init(2), jnp.ones(2), jnp.ones(3))
