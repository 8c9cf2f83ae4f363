import jax.numpy as jnp
import pytest
from costs_networks import branching

from rlprune_jax import ones_gates
from rlprune_jax.costs.interpolation import interpolate_uniform

GRAPH = branching()[1]


def uniform(kept):
    return {
        name: jnp.arange(size) < kept(size)
        for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)
    }


def test_an_estimate_meets_uniform_networks_and_never_falls():
    # At keep ratios 0, 1/8, 1/4, 1/2, 3/4, 1; the fall to 4 is lifted to 5.
    values = iter([5.0, 4.0, 6.0, 10.0, 12.0, 20.0])
    estimate = interpolate_uniform(GRAPH, lambda gates: next(values), 20.0)
    assert float(estimate(ones_gates(GRAPH))) == 1
    assert float(estimate(uniform(lambda size: 1))) == 0.25
    assert float(estimate(uniform(lambda size: size // 2))) == pytest.approx(0.5)


def test_a_cost_of_nothing_is_estimated_as_it_is():
    estimate = interpolate_uniform(GRAPH, lambda gates: 0.0, 0.0)
    assert float(estimate(ones_gates(GRAPH))) == 0
