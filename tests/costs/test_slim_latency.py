"""The slim network's own latency: what is compiled, what is remembered, and how it fails."""

import time

import jax
import jax.numpy as jnp
import pytest
from costs_networks import branching, draw

from rlprune_jax import ones_gates
from rlprune_jax.costs import slim_latency
from rlprune_jax.costs.counts import macs_ratio
from rlprune_jax.costs.host import CostError, CostTimeout
from rlprune_jax.costs.latency import Latency
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.costs.slim_latency import SlimLatency
from rlprune_jax.units.gates import keep_first

APPLY, GRAPH, VARIABLES, X = branching()


def slim(**options):
    return SlimLatency(APPLY, GRAPH, VARIABLES, X, options=CostOptions(**options))


def test_a_search_compiles_each_width_once(monkeypatch):
    seen = []

    def count(function, variables, x, repeats):
        seen.append(jax.tree.map(jnp.shape, variables))
        assert jax.eval_shape(function, variables, x).shape == (2, 10)
        size = sum(leaf.size for leaf in jax.tree.leaves(variables))
        return Latency(size, size, size)

    monkeypatch.setattr(slim_latency, "measure_latency", count)
    latency = slim(steps=2, programs=2)
    gates = draw(GRAPH, 0)
    assert latency.exact(gates) == latency.exact(gates)
    assert len(seen) == 1
    narrow = keep_first(GRAPH, dict.fromkeys(GRAPH.names, 1))
    half = keep_first(
        GRAPH, {name: size // 2 for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)}
    )
    estimate = macs_ratio(GRAPH)
    # Rounded up to halves, one unit and a half are the same network; the estimate tells them apart.
    at_half = latency.in_search(half, estimate)
    ratio = float(estimate(narrow)) / float(estimate(half))
    assert latency.in_search(narrow, estimate) == pytest.approx(at_half * ratio)
    assert len(seen) == 2
    # No further program is compiled: the nearest answers.
    wide = latency.in_search(ones_gates(GRAPH), estimate)
    assert len(seen) == 2 and wide == pytest.approx(at_half / float(estimate(half)))
    for option in ("steps", "programs", "repeats", "time_limit"):
        with pytest.raises(ValueError, match=f"{option}=0 must be"):
            slim(**{option: 0})


def test_latency_that_fails_or_hangs_names_the_widths(monkeypatch):
    def failing(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(slim_latency, "measure_latency", failing)
    with pytest.raises(CostError, match=r"'latency' .*'Conv_0': 8.*out of memory"):
        slim().exact(ones_gates(GRAPH))
    monkeypatch.setattr(slim_latency, "measure_latency", lambda *a, **k: time.sleep(20))
    with pytest.raises(CostTimeout, match="'latency'"):
        slim(time_limit=0.3).exact(ones_gates(GRAPH))
