"""A result is a value: printed, stored, read back, refused where damaged."""

import dataclasses
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest

from rlprune_jax.costs import Latency
from rlprune_jax.sealed import write_sealed
from rlprune_jax.workflow.results import (
    NetworkResult,
    PruneResult,
    ResultError,
    history_arrays,
    of_latencies,
)

LATENCY = {
    count: {"median": 1.0 * count, "lower_quartile": 0.9, "upper_quartile": 1.1}
    for count in (1, 128)
}


def make(metric_name="accuracy", **changes):
    dense = NetworkResult(metric=0.95, params=1000, macs=5000, latency_ms=LATENCY, file_bytes=4100)
    pruned = NetworkResult(
        metric=0.93,
        params=90,
        macs=700,
        kept={"conv": 3},
        latency_ms=LATENCY,
        file_bytes=400,
        evaluations=16,
        best_held_out_reward=0.5,
    )
    rival = NetworkResult(0.9, 95, 800, {"conv": 4}, evaluations=1, best_held_out_reward=0.25)
    row = {"name": "params", "limit": 0.1, "achieved": 0.09, "unit": "fraction", "satisfied": True}
    given = {
        "metric_name": metric_name,
        "dense": dense,
        "pruned": pruned,
        "baselines": {"global_threshold": rival},
        "budgets": [row | {"count": 90}],
        "search": {"evaluations": 16, "seconds": 2.0, "feasible_fraction": 1.0},
        "max_abs_diff": 1e-7,
        "default_max_abs_diff": 2e-2,
        "groups": {"conv": 8},
        "seed": 3,
        "seconds": 4.5,
        "versions": {"jax": "0"},
        "device": {"platform": "cpu"},
    }
    return PruneResult(**given | changes)


@pytest.mark.parametrize("metric_name", ["accuracy", "negative_loss", "my_metric"])
def test_what_is_stored_reads_back_the_same(tmp_path, metric_name):
    result = make(metric_name, labels={"dataset": "digits", "model": "cnn"})
    write_sealed(tmp_path / "result.json", result.to_json(), "result")
    expected = dataclasses.replace(result, run_dir=tmp_path)
    assert PruneResult.read(tmp_path) == expected
    assert PruneResult.read(tmp_path / "result.json") == expected
    assert PruneResult.from_json(result.to_json()) == result


def test_results_of_earlier_versions_have_no_seal(tmp_path):
    stored = make().to_json()
    for version, refused in ((2, False), (3, True)):
        (tmp_path / "result.json").write_text(json.dumps(stored | {"version": version}))
        with pytest.raises(ResultError, match="no checksum") if refused else nullcontext():
            assert PruneResult.read(tmp_path).pruned == make().pruned


def test_the_keys_that_others_read():
    stored = make().to_json()
    assert {"accuracy", "params", "macs"} <= set(stored["dense"])
    assert {"accuracy", "params", "macs", "latency_ms"} <= set(stored["pruned"])
    assert stored["pruned"]["latency_ms"]["median"] == 128.0
    assert stored["equivalence"] == {
        "max_abs_diff": 1e-7,
        "default_max_abs_diff": 2e-2,
        "equal": True,
    }
    assert stored["baselines"]["global_threshold"]["accuracy"] == 0.9
    assert {"budgets", "search", "seed", "versions", "device"} <= set(stored)
    assert "loss" not in stored["dense"]
    named = make("token_accuracy").to_json()
    assert named["metric"] == "token_accuracy" and named["pruned"]["token_accuracy"] == 0.93


def test_latencies_of_other_numbers_of_examples_are_stored_too():
    one = NetworkResult(0.5, 1, 1, latency_ms={32: LATENCY[1]})
    stored = one.to_json("accuracy")
    assert stored["latency_ms"] == LATENCY[1]
    assert NetworkResult.from_json(stored, "accuracy") == one
    assert of_latencies({1: Latency(1.0, 0.9, 1.1)}) == {1: LATENCY[1]}


def test_a_metric_that_is_nan_is_stored_as_null_and_comes_back():
    broken = dataclasses.replace(make(), pruned=NetworkResult(math.nan, 1, 1))
    stored = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert stored["pruned"]["accuracy"] is None
    found = PruneResult.from_json(stored)
    assert math.isnan(found.pruned.metric)
    assert "–" in str(found)


def test_files_of_the_first_version_are_read():
    """It named no metric, for it was always the accuracy, and had no latencies by batch."""
    stored = make().to_json()
    del stored["version"], stored["metric"]
    for network in (stored["dense"], stored["pruned"]):
        del network["latency_ms_by_batch"], network["file_bytes"]
    found = PruneResult.from_json(stored | {"dataset": "digits", "model": "cnn"})
    assert found.metric_name == "accuracy" and found.pruned.metric == 0.93
    assert found.pruned.latency_ms is None
    assert found.labels == {"dataset": "digits", "model": "cnn"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"version": 4}, "has version 4; this package reads 1 to 3"),
        (lambda c: {k: v for k, v in c.items() if k != "budgets"}, "'budgets' is missing"),
        (lambda c: c | {"dense": {"params": 1}}, "'accuracy' is missing"),
        (lambda c: c | {"dense": 3}, "no whole result"),
        (lambda c: c | {"baselines": None}, "no whole result"),
        (lambda c: c | {"equivalence": []}, "no whole result"),
        (
            lambda c: c | {"dense": c["dense"] | {"latency_ms_by_batch": {"all": {}}}},
            "no whole result",
        ),
    ],
)
def test_damaged_results_are_refused(change, message):
    with pytest.raises(ResultError, match=message):
        PruneResult.from_json(change(make().to_json()), "there/result.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "holds a list, not an object"), ("", "is not JSON")],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ResultError, match=message):
        PruneResult.read(tmp_path)


def test_every_truncation_of_a_file_is_noticed(tmp_path):
    write_sealed(tmp_path / "result.json", make().to_json(), "result")
    text = (tmp_path / "result.json").read_text()
    for length in range(0, len(text) - 1, 97):
        (tmp_path / "result.json").write_text(text[:length])
        with pytest.raises(ResultError):
            PruneResult.read(tmp_path)


def test_a_run_that_is_not_finished_has_no_result(tmp_path):
    with pytest.raises(ResultError, match=r"cannot be read: No such file.*finished"):
        PruneResult.read(tmp_path)


def test_a_result_of_a_file_alone_has_no_network_to_save(tmp_path):
    with pytest.raises(ResultError, match="read from a file, and there is no"):
        make().save(tmp_path / "slim")


def test_a_result_of_a_run_directory_copies_its_network(tmp_path):
    (tmp_path / "run" / "slim").mkdir(parents=True)
    (tmp_path / "run" / "slim" / "plan.json").write_text("{}")
    result = make(run_dir=tmp_path / "run")
    assert result.save(tmp_path / "here") == tmp_path / "here"
    assert (tmp_path / "here" / "plan.json").read_text() == "{}"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        result.save(tmp_path / "file")


def test_it_prints_as_a_table():
    lines = str(make()).splitlines()
    assert lines[0].split() == ["accuracy", "parameters", "MACs"]
    assert lines[1].split() == ["dense", "95.00", "%", "1,000", "(100.0%)", "5,000", "(100.0%)"]
    assert lines[2].split() == ["agent", "93.00", "%", "90", "(9.0%)", "700", "(14.0%)"]
    assert lines[3].startswith("global threshold")
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4] == "budget params: 0.09 of 0.1 fraction"
    assert make().is_within_budgets
    over = make(budgets=[{**make().budgets[0], "satisfied": False}])
    assert not over.is_within_budgets
    assert str(over).endswith("NOT respected")


def test_the_agent_comes_first_among_the_methods():
    assert list(make().methods) == ["agent", "global_threshold"]


def test_the_history_is_flat():
    from rlprune_jax.workflow.searches import Search

    found = Search(None, np.arange(6.0).reshape(2, 3), np.zeros((2, 3, 2)), "uniform")
    arrays = history_arrays({"uniform": found})["uniform"]
    np.testing.assert_array_equal(arrays["rewards"], np.arange(6.0))
    assert arrays["costs"].shape == (6, 2)
