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
    features, reshapes = nodes.fresh(6), Reshapes(nodes)
    heads, inside = reshapes.reshape((features,), (2, 3))
    # A contraction over the width of a head, for each head.
    reshapes.resolve([[inside]], [heads])
    roots = nodes.find(features)
    assert len(set(roots[:3])) == len(set(roots[3:])) == 1 and roots[0] != roots[3]
    np.testing.assert_array_equal(nodes.find(heads), roots[[0, 3]])
    assert nodes.frozen(inside).all() and not nodes.frozen(features).any()


def test_a_split_whose_outer_axis_is_summed_over_goes_with_the_inner_one(nodes):
    features, reshapes = nodes.fresh(6), Reshapes(nodes)
    parts, channels = reshapes.reshape((features,), (2, 3))
    reshapes.resolve([[parts]], [channels])
    np.testing.assert_array_equal(nodes.find(features[:3]), nodes.find(features[3:]))
    assert nodes.frozen(parts).all() and not nodes.frozen(features).any()


def test_a_split_that_nobody_reads_ties_nothing_and_joined_in_another_order_permutes(nodes):
    features, reshapes = nodes.fresh(6), Reshapes(nodes)
    first, second = reshapes.reshape((features,), (2, 3))
    (shuffled,) = reshapes.reshape((second, first), (6,), parts=reshapes.split_into(first))
    reshapes.resolve([], [shuffled])
    np.testing.assert_array_equal(shuffled, features[[0, 3, 1, 4, 2, 5]])
    assert len(set(nodes.find(features))) == 6 and not nodes.frozen(features).any()


def test_of_a_split_one_of_whose_axes_is_frozen_the_other_carries_the_units(nodes):
    features, reshapes = nodes.fresh(6), Reshapes(nodes)
    parts, channels = reshapes.reshape((features,), (2, 3))
    nodes.freeze(parts, "taken apart")
    reshapes.resolve([], [])
    np.testing.assert_array_equal(nodes.find(features), np.tile(nodes.find(channels), 2))
    assert not nodes.frozen(features).any()


def test_a_kernel_flattened_before_use_is_resolved_by_its_later_use(nodes):
    height, channels = nodes.fresh(3), nodes.fresh(4)
    reshapes = Reshapes(nodes)
    (flat,) = reshapes.reshape((height, channels), (12,))
    read = nodes.fresh(4)
    nodes.tie(flat, np.tile(read, 3))
    reshapes.resolve([], [flat])
    np.testing.assert_array_equal(nodes.find(channels), nodes.find(read))
    assert nodes.frozen(height).all() and not nodes.frozen(channels).any()


def test_of_a_join_of_two_prunable_axes_the_outer_one_is_pruned_unless_made_up(nodes):
    for made_up in (False, True):
        first = nodes.generate(3) if made_up else nodes.fresh(3)
        second, reshapes = nodes.fresh(4), Reshapes(nodes)
        (flat,) = reshapes.reshape((first, second), (12,), "'reshape' at here")
        reshapes.resolve([[flat]], [])
        pruned, kept = (second, first) if made_up else (first, second)
        assert nodes.frozen(kept).all() and not nodes.frozen(pruned).any()
        reason = "goes as a whole with another part of 'reshape' at here"
        assert nodes.reason(int(kept[0])) == reason
        spread = np.tile(pruned, 3) if made_up else np.repeat(pruned, 4)
        np.testing.assert_array_equal(nodes.find(flat), nodes.find(spread))


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
