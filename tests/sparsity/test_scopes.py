import jax
import jax.numpy as jnp
import pytest

from rlprune_jax.sparsity.scopes import count_dtype, count_live, spread

MASK = {"a": jnp.array([[True, False, True], [True, False, False]]), "b": jnp.array(True)}


def test_live_weights_are_counted_in_every_scope():
    assert int(count_live(MASK)) == 3
    assert {path: int(n) for path, n in count_live(MASK, "layer").items()} == {"a": 3}
    assert count_live(MASK, "neuron")["a"].tolist() == [2, 0, 1]
    assert count_live(MASK, "neuron", 0)["a"].tolist() == [2, 1]


def test_a_value_per_unit_broadcasts_over_its_leaf():
    leaves = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    units = {"a": jnp.arange(2.0), "b": jnp.arange(2.0)}
    back = spread(units, leaves, "neuron", 0)
    assert back["a"].shape == back["b"].shape == (2, 1)
    assert spread(jnp.array(1.0), leaves, "global")["b"].shape == ()


def test_counts_that_overflow_are_refused():
    leaves = {
        "a": jax.ShapeDtypeStruct((2**15, 2**15), bool),
        "b": jax.ShapeDtypeStruct((2**15, 2**15), bool),
    }
    assert count_dtype(leaves, "layer") == jnp.int32
    with pytest.raises(ValueError, match=r"holds 2,147,483,648 weights.*enable jax_enable_x64"):
        count_dtype(leaves, "global")
    with jax.enable_x64(True):
        assert count_dtype(leaves, "global") == jnp.int64


def test_bad_input():
    with pytest.raises(ValueError, match="scope='all' is unknown; choose from global"):
        count_live(MASK, "all")
    with pytest.raises(ValueError, match="no prunable leaf"):
        count_live({"b": jnp.array(True)})
