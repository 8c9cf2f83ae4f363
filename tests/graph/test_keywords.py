import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.keywords import split_keywords, with_keywords


def test_arrays_and_keys_are_traced_and_all_else_is_static():
    keywords = {
        "rngs": {"dropout": jax.random.key(0)},
        "x": np.ones(3),
        "train": True,
        "mutable": ["batch_stats"],
        "mask": None,
        "method": len,
        "rate": 0.5,
        "flag": np.bool_(True),
    }
    split = split_keywords(keywords)
    assert [np.shape(leaf) for leaf in split.arrays] == [(), (3,)]
    given = split.given(("key", "array"))
    assert given == keywords | {"rngs": {"dropout": "key"}, "x": "array"}


def test_equal_static_arguments_compare_equal():
    first, second = (
        split_keywords({"key": jax.random.key(seed), "train": True}) for seed in range(2)
    )
    assert (first.static, first.structure) == (second.static, second.structure)


def test_keywords_reach_the_function():
    def apply(variables, x, *, scale, negative):
        return (-x if negative else x) * scale + variables

    split = split_keywords({"scale": jnp.float32(3), "negative": True})
    assert float(with_keywords(apply, split)(1.0, (2.0,), split.arrays)) == -5
