"""Iterative pruning as a user runs it: its files, refusals, resumption after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "prune_sap.py"
TINY = (
    *("--dataset", "digits", "--model", "mlp", "--widths", "12", "--seeds", "2"),
    *("--iterations", "3", "--epochs", "4", "--batch-size", "100", "--p", "0.5", "--q", "1"),
)


def start(*options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def run(*options: str) -> tuple[int, str, str]:
    process = start(*options)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    code, out, err = run(*TINY, "--runs-dir", str(runs))
    assert code == 0, err
    return Path(out.strip().splitlines()[-1])


@pytest.mark.slow
def test_files_and_result(finished):
    result = json.loads((finished / "result.json").read_text())
    assert set(result["curves"]) == {"SAP (0.5, 1)", "lottery ticket", "one-shot"}
    assert result["seeds"] == [0, 1] and result["epochs"] == 4
    assert result["train_images"] == 1437
    for name, curve in result["curves"].items():
        rows = curve["iterations"]
        assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
        total = rows[0]["live"][0]
        assert total == 64 * 12 + 12 * 10
        live = [total]
        for row in rows[1:]:
            live.append(live[-1] - live[-1] // 5)
            if not name.startswith("SAP"):
                assert row["live"] == [live[-1]] * 2
        for row in rows:
            assert np.shape(row["accuracy"]) == np.shape(row["pq_index"]) == (2,)
            assert np.shape(row["pq_grid"]) == (2, 10, 11)
            assert np.sum([layer["live"][0] for layer in row["layers"].values()]) == row["live"][0]
        # All methods train the same dense network first.
        first = result["curves"]["lottery ticket"]["iterations"][0]
        assert rows[0]["accuracy"] == first["accuracy"]
        assert min(rows[0]["accuracy"]) > 0.7
    matched = result["matched"]
    assert {row["method"] for row in matched} == {"SAP (0.5, 1)", "one-shot"}
    assert matched[0]["difference"] == 0.0
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 6 and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(finished, tmp_path):
    options = (*TINY, "--runs-dir", str(tmp_path))
    process = start(*options)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list(tmp_path.glob("*/metrics.jsonl"))
        if found and found[0].read_text().count('"stage": "lottery-ticket"') >= 1:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, out, err = run(*options)
    assert code == 0, err
    path = Path(out.strip())
    first, again = (json.loads((p / "result.json").read_text()) for p in (finished, path))
    for curve in (*first["curves"].values(), *again["curves"].values()):
        curve.pop("seconds")
    assert again["curves"] == first["curves"]
    code, out, err = run(*options)
    assert code == 0 and "finished" in err and out.strip() == str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": ("magnitude",)}, "method='magnitude' is unknown; choose from sap"),
        ({"method": ()}, "must be one or more"),
        ({"scope": "filter"}, "scope='filter' is unknown"),
        ({"p": (1.0,), "q": (1.0,)}, "p=1.0 must be below q=1.0"),
        ({"p": (0.5,)}, "go in pairs"),
        ({"eta_r": -1.0}, "eta_r=-1.0 must be at least 0"),
        ({"beta": 1.5}, "beta=1.5 must be above 0 and at most 1"),
        ({"gamma": 0.0}, "gamma=0.0 must be above 0"),
        ({"rate": 2.0}, "rate=2.0 must be"),
        ({"iterations": 0}, "iterations=0"),
        ({"seeds": 0}, "seeds=0"),
        ({"epochs": 0}, "epochs=0 must be above rewind_epoch=0"),
        ({"batch_size": 2000}, "batch_size=2000 is above the 1437"),
        ({"train_images": 0}, "train_images=0 must be at least 1"),
        ({"train_images": 2000}, "train_images=2000 is above the 1437"),
        ({"decayed": "biases"}, "decayed='biases' is unknown; choose from kernels, all"),
        ({"batch_statistics": "drop"}, "batch_statistics='drop'"),
        ({"model": "transformer"}, "'transformer' is unknown"),
        ({"dataset": "mnist", "data_dir": "/nowhere"}, "/nowhere"),
        ({"runs_dir": SCRIPT}, "--runs-dir"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(options, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import prune_sap

    def never(*args, **kwargs):
        raise AssertionError("training started")

    monkeypatch.setattr(prune_sap, "run_stage", never)
    with pytest.raises((ValueError, OSError), match=message):
        prune_sap.prune(prune_sap.Config(**{"runs_dir": tmp_path} | options))


def test_fewer_training_images_are_some_of_all(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import prune_sap

    few, _ = prune_sap.load(prune_sap.Config(train_images=100))
    everything, _ = prune_sap.load(prune_sap.Config())
    assert few.labels.shape == (100,) and few.test_labels.shape == everything.test_labels.shape
    known = {image.tobytes() for image in np.asarray(everything.images)}
    assert all(image.tobytes() in known for image in np.asarray(few.images))


def test_matched_density_interpolates_in_its_logarithm(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from sap_page import matched_rows

    def curve(densities, accuracies):
        names = ("accuracy_pruned", "pq_index", "pq_index_pruned", "gini")
        return {
            "iterations": [
                {"density": [d], "accuracy": [a], **{key: [0.0] for key in names}}
                for d, a in zip(densities, accuracies, strict=True)
            ]
        }

    curves = {"base": curve([1.0, 0.01], [0.9, 0.5]), "ours": curve([1.0, 0.1], [0.9, 0.8])}
    curves["ours"]["iterations"].append(curve([0.001], [0.4])["iterations"][0])
    rows = matched_rows(curves, "base")
    assert [row["iteration"] for row in rows] == [0, 1]
    assert rows[1]["difference"] == pytest.approx(0.1)
    assert matched_rows({"ours": curves["ours"]}, "base") == []


def test_running_mean_shows_what_the_paper_plotted():
    from rlprune_jax.report.sparsity_figures import running_mean

    np.testing.assert_allclose(running_mean([[1.0, 0.0, 0.5]]), [[1.0, 0.5, 0.5]])
