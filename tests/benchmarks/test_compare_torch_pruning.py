"""The comparison with Torch-Pruning: its tables, and, where torch is, twins and masks."""

import importlib.util
import sys

import compare_torch_pruning as compare
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import Network, count_params, ones_gates
from rlprune_jax.models import create_model

HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "torch_pruning"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch and torch-pruning are not installed")


def row(seed, side, method, accuracy, budget=0.1):
    found = {"seed": seed, "side": side, "method": method, "budget": budget}
    return found | {"accuracy": accuracy, "params": 0.1, "seconds": 1.0}


def test_the_agent_is_compared_with_the_best_criterion(capsys):
    rows = [row(0, "control", "dense", 0.9, 1.0)]
    for seed, (agent, one, two) in enumerate([(0.8, 0.7, 0.6), (0.9, 0.8, 0.9)]):
        rows += [row(seed, "ours", "agent", agent)]
        rows += [row(seed, "torch-pruning", "taylor_global", one)]
        rows += [row(seed, "torch-pruning", "magnitude_local", two - 0.1)]
    leads = compare.show(rows, compare.Options(budgets=(0.1,)), 100)
    # Means of theirs are 0.75 and 0.65; the agent leads the first by 0.1 with either seed.
    assert leads["0.1"] == pytest.approx({"mean": 10.0, "low": 10.0, "high": 10.0})
    text = capsys.readouterr().out
    assert "| ours | agent | 85.00 ± 7.07 | [76.7, 90.7] | +10.00 [+10.00, +10.00] |" in text
    assert "| torch-pruning | taylor global | 75.00 ± 7.07 | [65.7, 82.5] | best |" in text


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="torch is not installed; pip install"):
        compare.main(compare.Options())


def test_rows_of_an_earlier_call_are_read(tmp_path):
    assert compare.read_rows("") == compare.read_rows(str(tmp_path / "none")) == []
    (tmp_path / "rows").write_text('{"seed": 0}\n\n')
    assert compare.read_rows(str(tmp_path / "rows")) == [{"seed": 0}]


def network_of(model, options, images):
    module = create_model(model, 3, **options)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    # Statistics as of a trained network, so that they count.
    moved = jax.tree.map(
        lambda leaf: leaf + 0.01 * jax.random.uniform(next(keys), leaf.shape), variables
    )
    return Network.from_linen(module, moved, images)


@needs_torch
@pytest.mark.parametrize(
    ("model", "options"),
    [("cnn", {"widths": (4, 6)}), ("resnet20", {"width": 0.25, "shortcut": "projection"})],
)
def test_masks_of_the_twin_are_carried_back(model, options):
    from torch_rival import criteria, twins

    images = np.asarray(jax.random.normal(jax.random.key(2), (8, 8, 8, 2)))
    network = network_of(model, options, images)
    if model == "cnn":
        twin = twins.CNN(2, options["widths"], 3)
    else:
        twin = twins.ThinResNet(2, 20, options["width"], 3)
    twins.carry(network.variables, twin)
    assert twins.largest_difference(twin, images, network(images)) < 1e-4
    whole = count_params(network.graph)
    examples = criteria.Examples(images, np.arange(8) % 3)
    for name in ("magnitude_local", "hessian_summed_global", "taylor_isomorphic"):
        limits = [int(0.6 * whole), int(0.4 * whole)]
        found = criteria.cuts(
            twin, network.graph, criteria.CRITERIA[name], limits, examples, steps=8, seed=0, batch=4
        )
        for limit, cut in zip(limits, found, strict=True):
            slim = network.slim(cut.exact)
            assert twins.largest_difference(cut.slim, images, slim(images)) < 1e-4
            size = sum(p.numel() for p in cut.slim.parameters())
            assert size == count_params(network.graph, cut.exact) <= limit
            assert size <= count_params(network.graph, cut.gates) <= limit
    assert twins.largest_difference(twin, images, network(images)) < 1e-4  # the twin is as it was


@needs_torch
def test_a_wrong_twin_is_refused():
    from torch_rival import twins

    images = jnp.ones((2, 8, 8, 2))
    network = network_of("cnn", {"widths": (4, 6)}, images)
    with pytest.raises(RuntimeError, match=r"size mismatch|no twins"):
        twins.carry(network.variables, twins.CNN(2, (4, 5), 3))


@needs_torch
def test_the_last_step_is_undone_as_far_as_there_is_room():
    from torch_rival import criteria

    graph = network_of("cnn", {"widths": (4, 6)}, jnp.ones((2, 8, 8, 2))).graph
    before = ones_gates(graph)
    gates = {name: gate.at[2:].set(0.0) for name, gate in before.items()}
    limit = count_params(graph, before) - 1
    filled = criteria.fill(graph, gates, before, limit)
    assert count_params(graph, gates) < count_params(graph, filled) <= limit
    for name in graph.names:
        assert (filled[name] >= gates[name]).all()
