"""The table's machinery; what times come out is the machine's affair."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from costs_networks import branching, draw, joining, work

from rlprune_jax import ones_gates, trace_graph
from rlprune_jax.costs import latency_table
from rlprune_jax.costs.latency import Latency
from rlprune_jax.costs.latency_table import measure_latency_table
from rlprune_jax.costs.segments import cut_into_segments
from rlprune_jax.graph.matching import match
from rlprune_jax.graph.slim import compact, respecialise

APPLY, GRAPH, VARIABLES, X = branching()


@pytest.fixture
def work_as_time(monkeypatch):
    """Replace the clock: a call takes a millisecond per MAC and per entry of other arithmetic."""
    calls = []

    def count(function, *arrays, repeats):
        calls.append(jax.tree.map(jnp.shape, arrays))
        entries = work(function, *arrays)
        return Latency(entries, 0.9 * entries, 1.2 * entries)

    def in_turn(networks, repeats):
        return [count(each.func, *each.args, repeats=0) for each in networks]

    monkeypatch.setattr(latency_table, "measure_latency", count)
    monkeypatch.setattr(latency_table, "measure_in_turn", in_turn)
    return calls


def table(**options):
    return measure_latency_table(APPLY, GRAPH, VARIABLES, X, **options)


def counted(network, gates):
    """What the clock would say of the slim network itself."""
    apply, graph, variables, x = network
    slim = compact(graph, variables, gates)
    return work(respecialise(apply, graph, gates), slim, x)


def test_a_known_cost_is_predicted(work_as_time):
    """Exactly: norms, a sum and a concatenation lie between the contractions."""
    apply, graph, variables, x = joining()
    found = measure_latency_table(apply, graph, variables, x)
    for seed in range(3):
        gates = draw(graph, seed, 0.3 + 0.2 * seed)
        expected = counted(joining(), gates)
        assert found.exact(gates) == pytest.approx(expected, rel=1e-6)
        assert float(jax.jit(found.traced())(gates)) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.noise, 0.3)
    # Here a convolution reads the very units that it makes: a square, linear between levels.
    found = table(levels=(0.0, 0.25, 0.5, 0.75, 1.0))
    for seed in range(2):
        gates = draw(GRAPH, seed)
        assert found.exact(gates) == pytest.approx(counted(branching(), gates), rel=0.02)


def test_whole_networks_tell_what_the_sum_stands_for(work_as_time, monkeypatch):
    def overlapped(networks, repeats):
        times = [work(each.func, *each.args) for each in networks]
        return [Latency(*[3 + 0.5 * each] * 3) for each in times]

    monkeypatch.setattr(latency_table, "measure_in_turn", overlapped)
    apply, graph, variables, x = joining()
    found = measure_latency_table(apply, graph, variables, x)
    for seed in range(3):
        gates = draw(graph, seed)
        expected = 3 + 0.5 * counted(joining(), gates)
        assert found.exact(gates) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("network", [branching, joining])
def test_every_equation_that_depends_on_the_input_is_in_a_segment(network):
    apply, graph, variables, x = network()
    matched = match(apply, graph, variables, (x,))
    segments = cut_into_segments(graph, matched)
    made = set(matched.program.inputs[len(graph.variables) :])
    inside = {number for segment in segments for number in segment.equations}
    for number, equation in enumerate(matched.program.equations):
        if any(not hasattr(a, "value") and a in made for a in equation.inputs):
            made |= set(equation.outputs)
            assert number in inside, equation.name
    known = set(matched.program.inputs) | set(matched.program.constants)
    for segment in segments:
        assert set(segment.inputs) <= known
        known |= set(segment.outputs)
    assert set(matched.program.outputs) <= known
    heads = [matched.program.equations[segment.head].name for segment in segments]
    assert len([name for name in heads if name.startswith(("conv", "dot"))]) == len(graph.layers)


def test_timings_are_kept_by_kind_of_layer(work_as_time, tmp_path):
    first = table(cache=tmp_path)
    assert work_as_time
    count = len(work_as_time)
    files = sorted(tmp_path.iterdir())
    again = table(cache=tmp_path)
    assert len(work_as_time) == count
    np.testing.assert_array_equal(first.milliseconds, again.milliseconds)
    assert first.overhead == again.overhead
    stored = json.loads(files[0].read_text())
    assert f"jax {jax.__version__}" in stored["device"]
    table(cache=tmp_path, repeats=7)
    assert len(work_as_time) == 2 * count
    # Files that are damaged, or of other layers under this name, are measured again.
    for file, content in zip(files, ["{", json.dumps(stored | {"timed": []}), "[]"], strict=False):
        file.write_text(content)
    with pytest.warns(RuntimeWarning, match="do not count .* measured again"):
        again = table(cache=tmp_path)
    np.testing.assert_array_equal(first.milliseconds, again.milliseconds)
    assert 2 * count < len(work_as_time) < 3 * count


def test_a_cache_that_cannot_be_written_only_warns(work_as_time, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        table(cache=tmp_path / "file", levels=(0.5, 1.0))


def test_more_units_never_cost_more_time(monkeypatch):
    noise = np.random.default_rng(0)

    def in_turn(networks, repeats):
        return [Latency(*noise.uniform(1, 2, 3)) for _ in networks]

    monkeypatch.setattr(
        latency_table, "measure_latency", lambda *a, repeats: Latency(*noise.uniform(1, 2, 3))
    )
    monkeypatch.setattr(latency_table, "measure_in_turn", in_turn)
    found = table()
    order = np.random.default_rng(0).permutation(GRAPH.units)
    kept = np.stack([np.isin(np.arange(GRAPH.units), order[:n]) for n in range(GRAPH.units)])
    gates = {
        group.name: jnp.asarray(kept[:, group.first : group.first + group.size], jnp.float32)
        for group in GRAPH.groups
    }
    assert (np.diff(jax.vmap(found.traced())(gates)) >= -1e-4).all()


def test_a_dot_of_activations_over_units_is_a_layer_too(work_as_time):
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
    # 10 positions; 3 queries, keys and values of 4 inputs; 2 x 5 x 5 scores; 3 mixed; 4 outputs.
    expected = 3 * 10 * 3 * 4 + 50 * 3 + 10 * 3 * 5 + 10 * 4 * 3
    assert found.exact(gates) == pytest.approx(expected)
    assert float(found.traced()(gates)) == pytest.approx(expected, rel=1e-5)


def test_wrong_levels_are_refused():
    for levels in [(), (1.0,), (0.5,), (0.5, 0.25, 1.0), (-0.5, 1.0)]:
        with pytest.raises(ValueError, match="must rise"):
            table(levels=levels)


def test_really_timed_on_this_device():
    found = table(levels=(0.5, 1.0), repeats=2)
    assert np.isfinite(found.milliseconds).all() and found.exact(ones_gates(GRAPH)) > 0
