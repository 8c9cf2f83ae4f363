import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw

from rlprune_jax import count_macs, trace_graph
from rlprune_jax.costs.options import Tile
from rlprune_jax.costs.tiles import count_tiled_macs, tiled_macs_ratio


def dots():
    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"]

    variables = {"a": jnp.ones((3, 20)), "b": jnp.ones((20, 10))}
    return trace_graph(apply, variables, jnp.ones((4, 3)))


def test_by_hand():
    graph = dots()
    # 3 inputs fill one tile of 8, 20 units three, 10 classes two.
    assert count_tiled_macs(graph) == 8 * 24 + 24 * 16
    keep = {"a": jnp.arange(20) < 9}
    assert count_tiled_macs(graph, keep) == 8 * 16 + 16 * 16
    assert count_tiled_macs(graph, keep, Tile(4, 16)) == 4 * 16 + 12 * 16
    assert count_tiled_macs(graph, keep, Tile(1, 1)) == count_macs(graph, keep)


def test_steps_where_a_tile_empties():
    graph = dots()
    ratio = jax.jit(tiled_macs_ratio(graph))
    values = [float(ratio({"a": jnp.arange(20) < kept})) for kept in range(1, 21)]
    steps = np.flatnonzero(np.diff(values) > 0) + 1
    np.testing.assert_array_equal(steps, [8, 16])
    assert values[-1] == pytest.approx(1)


@pytest.mark.parametrize("tile", [Tile(), Tile(1, 1), Tile(5, 3)])
def test_ratio_is_the_exact_count(tile):
    _, graph, _, _ = branching()
    for seed in range(3):
        gates = draw(graph, seed)
        exact = count_tiled_macs(graph, gates, tile) / count_tiled_macs(graph, None, tile)
        assert float(tiled_macs_ratio(graph, tile)(gates)) == pytest.approx(exact, rel=1e-6)
        if tile == Tile(1, 1):
            assert count_tiled_macs(graph, gates, tile) == count_macs(graph, gates)


def test_a_tile_below_one_is_refused():
    with pytest.raises(ValueError, match=r"tile=\(0, 8\) must be two integers of at least 1"):
        count_tiled_macs(dots(), None, Tile(0, 8))
