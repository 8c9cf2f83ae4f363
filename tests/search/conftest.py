"""A small pruning problem with params-like and units-like costs, and rewards with a closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.search import Environment, make_environment

SIZES = (8, 16, 5)


def bilinear_costs(masks):
    """Costs f32[2] of masks f32[3, 16]: sum of products of neighbours, and units, over dense."""
    kept = masks.sum(-1)
    pairs = jnp.sum(kept[:-1] * kept[1:]) / (8 * 16 + 16 * 5)
    return jnp.stack([pairs, masks.sum() / sum(SIZES)])


@pytest.fixture(scope="session")
def env() -> Environment:
    rng = np.random.default_rng(0)
    scores = [rng.uniform(size=size) for size in SIZES]
    features = rng.uniform(size=(3, 2))
    return make_environment(SIZES, scores, features, limits=[0.3, 0.5], cost_fn=bilinear_costs)


@pytest.fixture(scope="session")
def units_reward():
    """Rewards f32[N]: a fixed value for each unit, so that which units are kept matters."""
    values = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 16)), jnp.float32)

    def evaluate(masks, key):
        return jnp.sum(masks * values, axis=(1, 2))

    return evaluate
