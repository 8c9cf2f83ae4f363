"""Names of scores, random scores, scores of groups, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn

from rlprune_jax.units.scores import UNIT_SCORES, check_scores, group_scores, random_scores


def test_random_scores_depend_on_the_key_alone():
    small = small_cnn()
    first = random_scores(small.graph, jax.random.key(0))
    again = random_scores(small.graph, jax.random.key(0))
    other = random_scores(small.graph, jax.random.key(1))
    name = small.graph.names[0]
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_group_scores_reduce_each_group():
    small = small_cnn()
    scores = {
        name: jnp.arange(1.0, size + 1)
        for name, size in zip(small.graph.names, small.graph.sizes, strict=True)
    }
    np.testing.assert_allclose(group_scores(small.graph, scores), [10, 21, 36, 36])


def test_what_is_not_finite_is_refused_by_name():
    for value, text in ((np.nan, "nan"), (np.inf, "inf")):
        with pytest.raises(ValueError, match=f"score='mine' gives {text} to unit 1 of group 'b'"):
            check_scores("mine", {"a": jnp.zeros(2), "b": jnp.array([0.0, value])})
    check_scores("mine", {"a": jnp.zeros(2)})


def test_names_are_told_apart():
    assert len(set(UNIT_SCORES)) == len(UNIT_SCORES)
