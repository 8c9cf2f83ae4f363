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
    return SimpleNamespace(metric_name="accuracy", methods=methods, dense=dense)


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
    text = compare.text_of(table, 0.9, "accuracy", 2)
    assert "| agent | 70.00 % ± 14.14 % | 0.3500 ± 0.3536 | 2 (1/2) |" in text
    compare.draw(tmp_path / "front.svg", curves, "title")
    assert (tmp_path / "front.svg").stat().st_size > 0 and json.dumps(table)
