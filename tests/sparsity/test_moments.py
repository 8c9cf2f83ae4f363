"""The moments through the PQ Index that is made of them; small leaves: tests/test_pqi.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.sparsity.moments import BLOCK
from rlprune_jax.sparsity.pqi import pq_index

PAIRS = [(0.5, 1.0), (1.0, 2.0), (0.2, 2.0), (0.5, 2.0)]


def index_of(w, p=0.5, q=1.0):
    """The definition, in NumPy float64."""
    powers = [np.mean(np.abs(w) ** exponent) ** (1 / exponent) for exponent in (p, q)]
    return 1 - powers[0] / powers[1]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_blocked_sums_equal_the_definition(dtype):
    """Two whole leaves, of which blocks leave a rest, and a small one; static and traced."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        tree = {
            name: jnp.asarray(rng.laplace(size=shape), dtype)
            for name, shape in {"a": (3, 3, 210, 100), "b": (1000, 177), "c": (7, 5)}.items()
        }
        assert [leaf.size >= 4 * BLOCK for leaf in tree.values()] == [True, True, False]
        mask = {name: jnp.asarray(rng.random(leaf.shape) < 0.6) for name, leaf in tree.items()}
        tree["b"] = jnp.where(mask["b"], tree["b"], jnp.nan)
        live = np.concatenate([np.asarray(tree[k], np.float64)[mask[k]] for k in tree])
        tolerance = 1e-9 if dtype == "float64" else 1e-5
        index = lambda tree, p=0.5, q=1.0: pq_index(tree, mask, p=p, q=q)  # noqa: E731
        static, layer = jax.jit(lambda tree: (index(tree), pq_index(tree, mask, scope="layer")))(
            tree
        )
        assert abs(float(static) - index_of(live)) < tolerance
        own = np.asarray(tree["a"], np.float64)[mask["a"]]
        assert abs(float(layer["a"]) - index_of(own)) < tolerance
        traced = jax.jit(jax.vmap(index, in_axes=(None, 0, 0)))
        expected = [index_of(live, p=p, q=q) for p, q in PAIRS]
        exponents = jnp.asarray(PAIRS, float).T
        np.testing.assert_allclose(traced(tree, *exponents), expected, atol=tolerance)
        bad = {**tree, "a": tree["a"].at[0, 0, 0].set(jnp.nan)}
        assert np.isnan(traced(bad, *exponents)).all()


def test_blocked_sums_have_the_gradient_of_plain_ones():
    w = np.random.default_rng(0).standard_normal((5 * BLOCK // 100, 100))
    with jax.enable_x64(True):
        gradient = jax.grad(lambda w: pq_index(w, p=0.5, q=1.0))(jnp.asarray(w))
        magnitudes, d = jnp.abs(jnp.asarray(w)), w.size
        # I = 1 - (sum of roots)^2 / (d sum).
        roots, total = jnp.sqrt(magnitudes).sum(), magnitudes.sum()
        expected = roots**2 / total**2 - roots / total / jnp.sqrt(magnitudes)
        np.testing.assert_allclose(gradient, expected / d * jnp.sign(w), rtol=1e-9, atol=1e-18)
