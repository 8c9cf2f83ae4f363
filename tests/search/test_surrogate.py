import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.search.config import HParams
from rlprune_jax.search.surrogate import clipped_surrogate, optimizer


def test_surrogate_at_ratio_one_has_the_gradient_of_reinforce():
    log_prob = jax.random.normal(jax.random.key(0), (2, 3, 5))
    advantages = jax.random.normal(jax.random.key(1), (2, 3))

    def surrogate(new):
        return clipped_surrogate(new - log_prob, advantages, 0.2).sum()

    def reinforce(new):
        return (new * advantages[..., None]).sum()

    np.testing.assert_allclose(
        jax.grad(surrogate)(log_prob), jax.grad(reinforce)(log_prob), rtol=1e-6
    )


def test_surrogate_is_pessimistic():
    log_ratio = jnp.log(jnp.array([[0.5, 1.0, 1.5]]))
    # By hand: min(r A, clip(r, 0.8, 1.2) A).
    np.testing.assert_allclose(
        clipped_surrogate(log_ratio, jnp.array([1.0]), 0.2), [[0.5, 1.0, 1.2]], rtol=1e-6
    )
    np.testing.assert_allclose(
        clipped_surrogate(log_ratio, jnp.array([-1.0]), 0.2), [[-0.8, -1.0, -1.5]], rtol=1e-6
    )


def test_each_part_moves_at_the_rate_that_is_named_for_it():
    params = {
        "policy": {"group_logit": 0.0, "unit_logit": 0.0, "log_std": 0.0, "network": 0.0},
        "critics": {"reward": 0.0},
    }
    params = jax.tree.map(jnp.asarray, params)
    hparams = HParams(
        learning_rate=0.1,
        group_learning_rate=0.2,
        unit_learning_rate=0.3,
        std_learning_rate=0.4,
    )
    transform = optimizer(hparams)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = transform.update(gradient, transform.init(params))
    # The first step of Adam is minus its rate.
    rates = {"group_logit": 0.2, "unit_logit": 0.3, "log_std": 0.4, "network": 0.1}
    for part, rate in rates.items():
        np.testing.assert_allclose(updates["policy"][part], -rate, rtol=1e-3)
    np.testing.assert_allclose(updates["critics"]["reward"], -0.1, rtol=1e-3)
