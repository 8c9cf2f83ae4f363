"""Loops and choices: units inside, MACs times the length, and what stays frozen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_masked_equals_slim, random_gates, random_variables

from rlprune_jax import compact, count_macs, count_params, ones_gates, trace_graph

GENERATOR = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(GENERATOR.standard_normal(shape) / 2, jnp.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(10)(nn.LayerNorm()(x)))), None


class Scanned(nn.Module):
    length: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="in")(x)
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=self.length, **options)(name="layers")(x, None)
        return nn.Dense(3, name="out")(nn.LayerNorm()(x))


class Recurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(5), name="rnn")(nn.Dense(6, name="in")(x))
        return nn.Dense(3, name="out")(jnp.tanh(nn.Dense(4, name="mid")(x[:, -1])))


def test_layers_of_a_scan_share_their_units():
    module, x = Scanned(), draw(2, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x)
    assert dict(zip(graph.names, graph.sizes, strict=True)) == {"in": 6, "layers/Dense_1": 10}
    assert count_macs(graph) == 4 * 6 + 3 * 2 * 6 * 10 + 6 * 3
    for seed in range(2):
        assert_masked_equals_slim(module.apply, graph, variables, random_gates(graph, seed), x)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.SimpleCell])
def test_recurrent_cells_are_pruned_in_what_they_carry(cell):
    module, x = Recurrent(cell), draw(2, 7, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x)
    assert sorted(graph.sizes) == [4, 5, 6]
    gates = random_gates(graph, 0)
    assert_masked_equals_slim(module.apply, graph, variables, gates, x)
    slim = compact(graph, variables, gates)
    assert sum(leaf.size for leaf in jax.tree.leaves(slim)) == count_params(graph, gates)


def test_macs_of_an_lstm_are_those_of_every_step():
    module, x = Recurrent(nn.LSTMCell), draw(2, 7, 4)
    graph = trace_graph(module.apply, random_variables(module, x), x)
    by_hand = 7 * 4 * 6 + 7 * 4 * (6 * 5 + 5 * 5) + 5 * 4 + 4 * 3
    assert count_macs(graph) == by_hand


def test_map_and_loops_within_loops():
    variables = {"a": draw(4, 8), "b": draw(8, 6), "c": draw(6, 5), "d": draw(5, 3)}

    def apply(v, x):
        def row(r):
            def twice(h, _):
                return jnp.tanh(h + jax.nn.relu(h @ v["b"]) @ v["b"].T), None

            h, _ = jax.lax.scan(twice, r @ v["a"], None, length=2)
            return jnp.tanh(h) @ v["b"]

        return jnp.tanh(jax.lax.map(row, x) @ v["c"]) @ v["d"]

    x = draw(3, 4)
    graph = trace_graph(apply, variables, x)
    assert dict(zip(graph.names, graph.sizes, strict=True)) == {"a": 8, "b": 6, "c": 5}
    # Three rows, in each of which the inner loop runs twice.
    assert count_macs(graph) == 4 * 8 + 2 * 2 * 8 * 6 + 8 * 6 + 6 * 5 + 5 * 3
    assert_masked_equals_slim(apply, graph, variables, random_gates(graph, 0), x)


def test_a_fori_loop_of_known_length_and_a_reversed_scan():
    variables = {"a": draw(4, 8), "b": draw(8, 8), "c": draw(8, 3)}

    def apply(v, x):
        h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ v["b"]), jnp.tanh(x @ v["a"]))
        rows = jnp.stack([h, 2 * h, h * h])
        _, rows = jax.lax.scan(lambda c, r: (c + r, c * r), h, rows, reverse=True)
        return rows.sum(0) @ v["c"]

    x = draw(2, 4)
    graph = trace_graph(apply, variables, x)
    assert graph.sizes == (8,) and count_macs(graph) == 4 * 8 + 3 * 8 * 8 + 8 * 3
    assert_masked_equals_slim(apply, graph, variables, random_gates(graph, 0), x)


def test_a_carry_that_changes_meaning_ties_what_it_mixes():
    variables = {"a": draw(4, 6), "b": draw(6, 3)}

    def turned(v, x):
        def step(carry, _):
            first, second = carry
            return (second, jnp.roll(first, 1, axis=-1)), None

        carry, _ = jax.lax.scan(step, (x @ v["a"], jnp.tanh(x @ v["a"])), None, length=2)
        return carry[0] @ v["b"]

    # Every unit becomes its neighbour, so that all are one.
    with pytest.raises(ValueError, match=r"a\[1\] 6 units: one unit alone"):
        trace_graph(turned, variables, draw(2, 4))


def test_the_branches_of_a_choice_are_tied_and_the_dearer_one_counted():
    variables = {"a": draw(4, 8), "b": draw(8, 6), "c": draw(6, 8), "d": draw(8, 3)}

    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        dear = lambda h: jax.nn.relu(h @ v["b"]) @ v["c"]  # noqa: E731
        h = jax.lax.cond(x.sum() > 0, dear, lambda h: h * h.max(-1, keepdims=True), h)
        return h @ v["d"]

    for x in (draw(2, 4), -draw(2, 4)):
        graph = trace_graph(apply, variables, x)
        assert dict(zip(graph.names, graph.sizes, strict=True)) == {"a": 8, "b": 6}
        assert count_macs(graph) == 4 * 8 + 2 * 8 * 6 + 8 * 3
        (remark,) = graph.remarks
        assert "the dearer one is counted" in remark and "test_loops.py" in remark
        assert_masked_equals_slim(apply, graph, variables, random_gates(graph, 0), x)


def test_a_loop_of_unknown_length_is_frozen_and_counted_for_one_trip():
    variables = {"a": draw(4, 6), "b": draw(6, 6), "c": draw(6, 5), "d": draw(5, 3)}

    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        h = jax.lax.while_loop(lambda h: (h**2).sum() > 1, lambda h: jnp.tanh(h @ v["b"]) / 2, h)
        return jnp.tanh(h @ v["c"]) @ v["d"]

    x = draw(2, 4)
    graph = trace_graph(apply, variables, x)
    assert graph.names == ("c",) and count_macs(graph) == 4 * 6 + 6 * 6 + 6 * 5 + 5 * 3
    assert "MACs of one trip are counted of the 'while' at test_loops.py" in graph.remarks[0]
    reasons = {(each.path, each.axis): each.reason for each in graph.frozen}
    assert reasons["b", 1].startswith("passes through 'while', a loop of unknown length, at test_")
    assert_masked_equals_slim(apply, graph, variables, random_gates(graph, 0), x, gradient=False)


def test_every_axis_that_no_unit_owns_is_listed_with_its_reason():
    module, x = Recurrent(nn.LSTMCell), draw(2, 7, 4)
    graph = trace_graph(module.apply, random_variables(module, x), x)
    listed = {(each.path, each.axis): each.size for each in graph.frozen if each.reason}
    for path, axes in graph.owners.items():
        for axis, owners in enumerate(axes):
            left = int((owners < 0).sum()) if len(owners) > 1 else 0
            assert listed.get((path, axis), 0) == left
    assert 0.95 < graph.report().fraction <= 1


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_macs_per_example_do_not_depend_on_the_batch_traced(batch):
    variables = {"a": draw(6, 8), "l": draw(6, 2), "m": draw(2, 8), "c": draw(8, 5)}

    def adapted(v, x):
        return jax.nn.relu(x @ (v["a"] + v["l"] @ v["m"])) @ v["c"]

    graph = trace_graph(adapted, variables, draw(batch, 6))
    assert count_macs(graph) == 6 * 2 * 8 + 6 * 8 + 8 * 5


def test_layers_of_a_scan_are_units_where_asked():
    module, x = Scanned(length=4), draw(2, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x, depth_groups=True)
    assert graph.names == ("in", "layers/Dense_1", "depth") and graph.sizes == (6, 10, 4)
    gates = random_gates(graph, 0) | {"depth": jnp.array([1.0, 0.0, 0.0, 1.0])}
    assert_masked_equals_slim(module.apply, graph, variables, gates, x)
    slim = compact(graph, variables, gates)
    assert slim["params"]["layers"]["Dense_0"]["kernel"].shape[0] == 2
    assert sum(leaf.size for leaf in jax.tree.leaves(slim)) == count_params(graph, gates)
    halved = ones_gates(graph) | {"depth": gates["depth"]}
    assert count_macs(graph, halved) == 4 * 6 + 2 * 2 * 6 * 10 + 6 * 3
