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


def test_each_part_moves_at_its_own_rate():
    params = {
        "policy": {"offset": jnp.zeros(2), "table": jnp.zeros(2), "network": jnp.zeros(2)},
        "critics": {"reward": jnp.zeros(2)},
    }
    hparams = HParams(0.1, 0.2, 0.3)
    transform = optimizer(hparams)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = transform.update(gradient, transform.init(params))
    # The first step of Adam is minus its rate.
    for part, rate in (("offset", 0.2), ("table", 0.3), ("network", 0.1)):
        np.testing.assert_allclose(updates["policy"][part], -rate, rtol=1e-3)
    np.testing.assert_allclose(updates["critics"]["reward"], -0.1, rtol=1e-3)
