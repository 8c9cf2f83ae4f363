import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_cnn

from rlprune_jax import compact, count_params, gated, ones_gates, pq_index, respecialise
from rlprune_jax.units.gates import widths
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap, structured_sap_scores
from rlprune_jax.units.weight_scores import magnitude_scores


def uneven(variables):
    """Variables whose filters differ in norm, so that the index has something to say."""
    leaves, structure = jax.tree.flatten(variables)
    scaled = [
        leaf * jnp.linspace(0.02, 1.0, leaf.shape[-1]) ** 3 if leaf.ndim > 1 else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(structure, scaled)


def test_masked_equals_slim():
    network, _, data = small_cnn()
    graph, variables = network.graph, uneven(network.variables)
    images = data.batch[0]
    gates = structured_sap(graph, variables, ones_gates(graph), gamma=1.5)
    kept = {name: int(gate.sum()) for name, gate in gates.items()}
    assert all(1 <= kept[group.name] <= group.size for group in graph.groups)
    assert sum(kept.values()) < graph.units
    masked = jax.jit(gated(network.apply, graph))(variables, gates, images)
    slim = compact(graph, variables, gates)
    np.testing.assert_allclose(
        jax.jit(respecialise(network.apply, graph))(slim, images), masked, atol=1e-5
    )
    assert count_params(graph, gates) == sum(leaf.size for leaf in jax.tree.leaves(slim["params"]))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_follow_the_index_of_the_norms(scope):
    variables, graph = small_cnn().variables, small_cnn().graph
    variables = uneven(variables)
    norms = magnitude_scores(graph, variables)
    gates = jax.jit(lambda variables, gates: structured_sap(graph, variables, gates, scope=scope))(
        variables, ones_gates(graph)
    )
    if scope == "layer":
        # With (0.5, 1) the share that goes is the index itself.
        for name, norm in norms.items():
            index = float(pq_index(norm))
            assert int((gates[name] == 0).sum()) == int(len(norm) * index)
            lowest = np.argsort(norm)[: int(len(norm) * index)]
            assert (np.asarray(gates[name])[lowest] == 0).all()
    else:
        together = jnp.concatenate(list(norms.values()))
        gone = int(graph.units * float(pq_index(together)))
        assert sum(int((gate == 0).sum()) for gate in gates.values()) == gone
    again = structured_sap(graph, variables, gates, scope=scope)
    assert all((again[name] <= gates[name]).all() for name in gates)


def test_soft_gates_open_no_more_units_than_they_count_for():
    variables, graph = small_cnn().variables, small_cnn().graph
    soft = {
        name: jnp.where(jnp.arange(gate.size) < 2, 1.0, 0.3)
        for name, gate in ones_gates(graph).items()
    }
    hard = {name: jnp.where(gate >= 0.5, 1.0, 0.0) for name, gate in soft.items()}
    assert widths(graph, soft) == dict.fromkeys(graph.names, 2)
    for given in (soft, hard):
        found = structured_sap(graph, uneven(variables), given, gamma=1e-6)
        assert widths(graph, found) == dict.fromkeys(graph.names, 2)
    ratio = [group_sparsity(graph, variables, given).keep_ratio for given in (soft, hard)]
    np.testing.assert_array_equal(*ratio)


def test_every_group_keeps_its_least():
    variables, graph = small_cnn().variables, small_cnn().graph
    for scope in ("layer", "global"):
        gates = structured_sap(
            graph, uneven(variables), ones_gates(graph), gamma=100.0, min_keep=3, scope=scope
        )
        assert min(int(gate.sum()) for gate in gates.values()) == 3


def test_sparsity_of_groups():
    variables, graph = small_cnn().variables, small_cnn().graph
    variables = uneven(variables)
    found = group_sparsity(graph, variables)
    assert found.pq_index.shape == found.keep_ratio.shape == (len(graph.groups),)
    np.testing.assert_allclose(found.keep_ratio, 1 - found.pq_index, atol=1e-6)
    gates = structured_sap(graph, variables, ones_gates(graph))
    less = group_sparsity(graph, variables, gates)
    assert (less.pq_index < found.pq_index).any()


def test_bad_input():
    variables, graph = small_cnn().variables, small_cnn().graph
    gates = ones_gates(graph)
    with pytest.raises(ValueError, match="min_keep=0 must be at least 1"):
        structured_sap(graph, variables, gates, min_keep=0)
    with pytest.raises(ValueError, match="scope='neuron' is unknown for units"):
        structured_sap(graph, variables, gates, scope="neuron")
    with pytest.raises(ValueError, match="gates"):
        structured_sap(graph, variables, {})
    with pytest.raises(ValueError, match=r"p=2.0 must be below"):
        structured_sap(graph, variables, gates, p=2.0, q=1.0)


def test_scores_cut_where_the_steps_do():
    variables, graph = small_cnn().variables, small_cnn().graph
    variables = uneven(variables)
    norms = magnitude_scores(graph, variables)
    scores = jax.jit(lambda v, p, q: structured_sap_scores(graph, v, p=p, q=q, steps=4))(
        variables, 0.5, 1.0
    )
    gates = ones_gates(graph)
    for number in range(1, 5):
        gates = structured_sap(graph, variables, gates)
        for name in graph.names:
            np.testing.assert_array_equal(scores[name] >= number, gates[name] > 0)
    for name in graph.names:
        assert (np.argsort(scores[name]) == np.argsort(norms[name])).all()
        assert float(scores[name].min()) >= 0 and float(scores[name].max()) < 5
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        structured_sap_scores(graph, variables, steps=0)
