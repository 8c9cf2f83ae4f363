import numpy as np
import pytest

from rlprune_jax.graph.nodes import INPUT, Nodes
from rlprune_jax.graph.reshaping import Reshapes


def fixed(size):
    return np.full(size, INPUT)


@pytest.fixture
def nodes():
    return Nodes()


def test_flatten_repeats_the_channels(nodes):
    channels = nodes.fresh(3)
    batch, flat = Reshapes(nodes).reshape((fixed(2), fixed(4), channels), (2, 12))
    assert (batch == INPUT).all()
    np.testing.assert_array_equal(flat, np.tile(channels, 4))


def test_split_of_a_flatten_gives_the_channels_back(nodes):
    channels = nodes.fresh(3)
    reshapes = Reshapes(nodes)
    (flat,) = reshapes.reshape((fixed(4), channels), (12,))
    positions, again = reshapes.reshape((flat,), (4, 3))
    assert (positions == INPUT).all()
    np.testing.assert_array_equal(again, channels)


def test_split_into_heads_ties_each_head(nodes):
    features = nodes.fresh(6)
    heads, inside = Reshapes(nodes).reshape((features,), (2, 3))
    roots = nodes.find(features)
    assert len(set(roots[:3])) == len(set(roots[3:])) == 1 and roots[0] != roots[3]
    np.testing.assert_array_equal(nodes.find(heads), roots[[0, 3]])
    assert (inside == INPUT).all()


def test_a_kernel_flattened_before_use_is_resolved_by_its_later_use(nodes):
    height, channels = nodes.fresh(3), nodes.fresh(4)
    reshapes = Reshapes(nodes)
    (flat,) = reshapes.reshape((height, channels), (12,))
    read = nodes.fresh(4)
    nodes.tie(flat, np.tile(read, 3))
    reshapes.resolve()
    np.testing.assert_array_equal(nodes.find(channels), nodes.find(read))
    assert nodes.frozen(height).all() and not nodes.frozen(channels).any()


def test_a_join_of_two_prunable_axes_is_frozen_if_nothing_tells_them_apart(nodes):
    first, second = nodes.fresh(3), nodes.fresh(4)
    reshapes = Reshapes(nodes)
    (flat,) = reshapes.reshape((first, second), (12,))
    reshapes.resolve()
    for ids in (first, second, flat):
        assert nodes.frozen(ids).all()
        assert nodes.reason(int(ids[0])) == "several prunable axes joined by a reshape"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 3), (3,)),
        ((3,), (1, 3, 1)),
        ((2, 3, 4), (6, 4)),
        ((2, 6, 1), (2, 1, 2, 3)),
        ((0, 3), (3, 0)),
    ],
)
def test_sizes_follow_the_shape(nodes, before, after):
    axes = tuple(nodes.fresh(size) for size in before)
    output = Reshapes(nodes).reshape(axes, after)
    assert tuple(map(len, output)) == after


def test_size_one_axes_are_frozen_and_new_ones_are_free(nodes):
    one, features = nodes.fresh(1), nodes.fresh(3)
    kept, new = Reshapes(nodes).reshape((one, features), (3, 1))
    assert nodes.frozen(one).all() and not nodes.frozen(new).any()
    np.testing.assert_array_equal(kept, features)
