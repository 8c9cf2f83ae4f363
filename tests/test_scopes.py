import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.scopes import count_dtype, count_live, reduce_scopes, spread

MASK = {"a": jnp.array([[True, False, True], [True, False, False]]), "b": jnp.array(True)}


def test_live_weights_are_counted_in_every_scope():
    assert int(count_live(MASK)) == 3
    assert {path: int(n) for path, n in count_live(MASK, "layer").items()} == {"a": 3}
    assert count_live(MASK, "neuron")["a"].tolist() == [2, 0, 1]
    assert count_live(MASK, "neuron", 0)["a"].tolist() == [2, 1]


def test_reductions_and_their_way_back():
    leaves = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((2, 2))}
    assert float(reduce_scopes(leaves, "global")) == 19
    units = reduce_scopes(leaves, "neuron", 0)
    np.testing.assert_array_equal(units["a"], [3, 12])
    back = spread(units, leaves, "neuron", 0)
    assert back["a"].shape == (2, 1)


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
