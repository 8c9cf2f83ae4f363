"""The table's machinery; what times come out is the machine's affair."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw

from rlprune_jax import ones_gates, trace_graph
from rlprune_jax.costs import latency_table
from rlprune_jax.costs.latency import Latency
from rlprune_jax.costs.latency_table import measure_latency_table
from rlprune_jax.costs.measured import MeasuredLatency, first_units

APPLY, GRAPH, VARIABLES, X = branching()


@pytest.fixture
def sizes_as_times(monkeypatch):
    """Replace the clock: a call takes as many milliseconds as its outputs have entries."""
    calls = []

    def count(function, *arrays, repeats):
        calls.append([array.shape for array in arrays])
        entries = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(function, *arrays)))
        return Latency(float(entries), 0.9 * entries, 1.2 * entries)

    monkeypatch.setattr(latency_table, "measure_latency", count)
    return calls


def table(**options):
    return measure_latency_table(APPLY, GRAPH, VARIABLES, X, **options)


def test_times_linear_in_channels_are_interpolated_exactly(sizes_as_times):
    found = table(levels=(0.0, 0.5, 1.0))
    assert found.overhead == 8
    assert len(found.names) == len(GRAPH.layers) == 6
    for seed in range(3):
        gates = draw(GRAPH, seed)
        kept = {name: float(np.asarray(gate).sum()) for name, gate in gates.items()}
        # Two images: maps of 8x8 after the first convolutions, 4x4 after the strided ones.
        trunk, wide, narrow = kept["Conv_0"], kept["Conv_3"], kept["Conv_4"]
        outputs = [2 * 64 * trunk] * 3 + [2 * 16 * wide, 2 * 16 * narrow, 2 * 10]
        expected = 8 + sum(max(each - 8, 0) for each in outputs)
        assert found.exact(gates) == pytest.approx(expected)
        assert float(jax.jit(found.traced())(gates)) == pytest.approx(found.exact(gates), rel=1e-5)
    np.testing.assert_allclose(found.noise, 0.3)


def test_timings_are_kept_by_kind_of_layer(sizes_as_times, tmp_path):
    first = table(cache=tmp_path)
    assert sizes_as_times
    count = len(sizes_as_times)
    files = sorted(tmp_path.iterdir())
    again = table(cache=tmp_path)
    assert len(sizes_as_times) == count
    np.testing.assert_array_equal(first.milliseconds, again.milliseconds)
    assert first.overhead == again.overhead
    stored = json.loads(files[0].read_text())
    assert f"jax {jax.__version__}" in stored["device"]
    table(cache=tmp_path, repeats=7)
    assert len(sizes_as_times) == 2 * count
    # Files that are damaged, or of other layers under this name, are measured again.
    for file, content in zip(files, ["{", json.dumps(stored | {"layer": []}), "[]"], strict=False):
        file.write_text(content)
    again = table(cache=tmp_path)
    np.testing.assert_array_equal(first.milliseconds, again.milliseconds)
    assert 2 * count < len(sizes_as_times) < 3 * count


def test_a_cache_that_cannot_be_written_only_warns(sizes_as_times, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        table(cache=tmp_path / "file", levels=(1.0,))


def test_more_units_never_cost_more_time(monkeypatch):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(
        latency_table, "measure_latency", lambda *a, repeats: Latency(*noise.uniform(1, 2, 3))
    )
    found = table()
    order = np.random.default_rng(0).permutation(GRAPH.units)
    kept = np.stack([np.isin(np.arange(GRAPH.units), order[:n]) for n in range(GRAPH.units)])
    gates = {
        group.name: jnp.asarray(kept[:, group.first : group.first + group.size], jnp.float32)
        for group in GRAPH.groups
    }
    assert (np.diff(jax.vmap(found.traced())(gates)) >= -1e-4).all()


def test_a_dot_of_activations_over_units_is_a_layer_too(sizes_as_times):
    """Attention without weights in its dots: units that both operands carry are contracted."""

    def apply(v, x):
        q, k = x @ v["q"], x @ v["k"]
        scores = jnp.einsum("bqc,bkc->bqk", q, k)
        return jnp.einsum("bqk,bkc->bqc", scores, x @ v["v"]) @ v["o"]

    shapes = {"q": (4, 6), "k": (4, 6), "v": (4, 8), "o": (8, 4)}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    x = jnp.ones((2, 5, 4))
    graph = trace_graph(apply, variables, x)
    found = measure_latency_table(apply, graph, variables, x)
    gates = {group.name: jnp.arange(group.size) < 3 for group in graph.groups}
    # 10 positions of 3 queries, keys and values; 2 x 5 x 5 scores; 10 x 3 mixed; 10 x 4 outputs.
    expected = 8 + 3 * (30 - 8) + (50 - 8) + (30 - 8) + (40 - 8)
    assert found.exact(gates) == pytest.approx(expected)
    assert float(found.traced()(gates)) == pytest.approx(expected, rel=1e-5)


def test_wrong_levels_are_refused():
    for levels in [(), (0.5,), (0.5, 0.25, 1.0), (-0.5, 1.0)]:
        with pytest.raises(ValueError, match="must rise"):
            table(levels=levels)


def test_really_timed_on_this_device():
    found = table(levels=(0.5, 1.0), repeats=2)
    assert np.isfinite(found.milliseconds).all() and found.exact(ones_gates(GRAPH)) > 0


def test_measured_latency_compiles_each_width_once(monkeypatch):
    from rlprune_jax.costs import measured

    seen = []

    def count(function, variables, x, repeats):
        seen.append(jax.tree.map(jnp.shape, variables))
        assert jax.eval_shape(function, variables, x).shape == (2, 10)
        size = sum(leaf.size for leaf in jax.tree.leaves(variables))
        return Latency(size, size, size)

    monkeypatch.setattr(measured, "measure_latency", count)
    latency = MeasuredLatency(APPLY, GRAPH, VARIABLES, X, levels=2, programs=2)
    gates = draw(GRAPH, 0)
    assert latency.exact(gates) == latency.exact(gates)
    assert len(seen) == 1
    narrow = first_units(GRAPH, dict.fromkeys(GRAPH.names, 1))
    half = first_units(
        GRAPH, {name: size // 2 for name, size in zip(GRAPH.names, GRAPH.sizes, strict=True)}
    )
    # Rounded up to halves, one unit and a half are the same network.
    assert latency.in_search(narrow) == latency.in_search(half)
    assert len(seen) == 2
    # No further program is compiled: the nearest answers, scaled by MACs.
    wide = latency.in_search(ones_gates(GRAPH))
    assert len(seen) == 2 and wide > latency.in_search(half)
    for option in ("levels", "programs", "repeats", "time_limit"):
        with pytest.raises(ValueError, match=f"{option}=0 must be"):
            MeasuredLatency(APPLY, GRAPH, VARIABLES, X, **{option: 0})


def test_latency_that_fails_or_hangs_names_the_widths(monkeypatch):
    import time

    from rlprune_jax.costs import measured
    from rlprune_jax.costs.host import CostError, CostTimeout

    def failing(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measured, "measure_latency", failing)
    with pytest.raises(CostError, match=r"'latency' .*'Conv_0': 8.*out of memory"):
        MeasuredLatency(APPLY, GRAPH, VARIABLES, X).exact(ones_gates(GRAPH))
    monkeypatch.setattr(measured, "measure_latency", lambda *a, **k: time.sleep(20))
    with pytest.raises(CostTimeout, match="'latency'"):
        MeasuredLatency(APPLY, GRAPH, VARIABLES, X, time_limit=0.3).exact(ones_gates(GRAPH))
