"""The comparison of methods, on results made by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlprune_jax.workflow.results import NetworkResult


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    import compare_methods

    return compare_methods


def result(agent, random):
    dense = NetworkResult(metric=0.9, params=100, macs=100)
    methods = {
        name: NetworkResult(metric=metric, params=10, macs=10)
        for name, metric in (("agent", agent), ("random_search", random))
    }
    controls = {
        name: {"metric": metric, "loss": 1.0, "steps": steps}
        for name, metric, steps in (("trained_on", 0.95, 5), ("scratch", agent - 0.1, 5))
    }
    return SimpleNamespace(
        metric_name="accuracy",
        methods=methods,
        dense=dense,
        pruned=methods["agent"],
        controls=controls,
        test_examples=100,
    )


def test_the_table_by_hand(compare, tmp_path):
    limits = np.array([0.5])
    costs = np.array([[0.4], [0.6], [0.4], [0.4]])
    curve = compare.best_so_far(np.array([0.1, 0.9, np.nan, 0.3]), costs, limits)
    np.testing.assert_array_equal(curve, [0.1, 0.1, 0.1, 0.3])
    curves = [
        {"agent": np.array([0.1, 0.5, 0.6]), "random_search": np.array([0.2, 0.2, 0.4])},
        {"agent": np.array([0.1, 0.1, 0.1]), "random_search": np.array([0.2, 0.2, 0.4])},
    ]
    table = compare.summarise([result(0.8, 0.7), result(0.6, 0.7)], curves)
    agent = table["agent"]
    assert agent["accuracy_mean"] == pytest.approx(0.7) and agent["params"] == 0.1
    assert agent["accuracy_std"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert agent["reached_random"] == "1/2" and agent["evaluations_to_random"] == 2
    # Pairs are +0.1 and -0.1, of rewards +0.2 and -0.3; a bootstrap of two draws one twice.
    np.testing.assert_allclose(agent["accuracy_gain"], [0.0, -0.1, 0.1], atol=1e-9)
    np.testing.assert_allclose(agent["reward_gain"], [-0.05, -0.3, 0.2], atol=1e-9)
    assert table["random_search"]["accuracy_gain"] is None  # the best rival itself
    # Wilson's interval of 70 in 100, from a table.
    np.testing.assert_allclose(agent["accuracy_interval"], [0.604, 0.781], atol=1e-3)
    text = compare.text_of({8: table}, 0.9, "accuracy", 2)
    assert (
        "| agent | 70.00 % ± 14.14 % [60.4, 78.1] | 0.3500 ± 0.3536 | +0.00 [-10.00, +10.00] | "
        "-0.05 [-0.3, +0.2] | 2 (1/2) |" in text
    )
    both = compare.text_of({8: table, 4: table}, 0.9, "accuracy", 2)
    assert "| test accuracy at 4 | test accuracy at 8 | best held-out reward at 4 |" in both
    compare.draw(tmp_path / "front.svg", curves, "title")
    assert (tmp_path / "front.svg").stat().st_size > 0 and json.dumps(table)


def test_controls_stand_beside_the_agent(compare):
    results = [result(0.8, 0.7), result(0.6, 0.7)]
    table = compare.controls_of(results)
    assert list(table) == ["dense", "agent", "trained_on", "scratch"]
    np.testing.assert_allclose(table["trained_on"]["agent_gain"], [-0.25, -0.35, -0.15], atol=1e-9)
    np.testing.assert_allclose(table["scratch"]["agent_gain"], [0.1] * 3, atol=1e-9)
    text = compare.controls_text(table, "accuracy")
    assert "| dense trained on | 5 | 95.00 % ± 0.00 % [88.8, 97.8] | -25.00 [-35.00" in text
    for each in results:
        each.controls = {}
    assert compare.controls_text(compare.controls_of(results), "accuracy") == ""


def test_one_seed_has_no_interval_over_seeds(compare):
    curves = [{"agent": np.array([0.5]), "random_search": np.array([0.4])}]
    table = compare.summarise([result(0.8, 0.7)], curves)
    assert table["agent"]["accuracy_gain"] == [pytest.approx(0.1), None, None]
    json.dumps(table, allow_nan=False)


def test_runs_of_several_lengths(compare):
    options = compare.CompareOptions(
        prune=compare.ComparedOptions(
            search=compare.ComparedSearch(evaluations=(64, 16, 64)),
        ),
        methods=("all",),
    )
    assert options.counts == (16, 64)
    short, long = (options.of_run(count, 3) for count in options.counts)
    assert (short.search.evaluations, long.search.evaluations) == (16, 64)
    assert (short.delivery.controls, long.delivery.controls) == (False, True)
    assert short.run.seed == 3 and "cross_entropy_coarse" in short.search.baselines
    assert not hasattr(short, "at")
