"""Iterative pruning as a user runs it: its last line, its files, resumption after a kill."""

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
    *("--iterations", "2", "--epochs", "4", "--batch-size", "100", "--p", "0.5", "--q", "1"),
)


def start(*options):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )


def finish(*options):
    process = start(*options)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return Path(out.strip().splitlines()[-1]), err


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(tmp_path):
    whole, _ = finish(*TINY, "--runs-dir", str(tmp_path / "whole"))
    result = json.loads((whole / "result.json").read_text())
    assert result["seeds"] == [0, 1] and result["train_images"] == 1437
    for name, curve in result["curves"].items():
        rows = curve["iterations"]
        live = [64 * 12 + 12 * 10]
        for row in rows:
            assert np.shape(row["pq_grid"]) == (2, 10, 11)
            assert name.startswith("SAP") or row["live"] == [live[-1]] * 2
            live.append(live[-1] - live[-1] // 5)
        # All methods train the same dense network first.
        assert rows[0]["accuracy"] == result["curves"]["one-shot"]["iterations"][0]["accuracy"]
        assert min(rows[0]["accuracy"]) > 0.7
    page = (whole / "report.html").read_text()
    assert page.count("<svg") == 6 and "http://" not in page.replace("http://www.w3.org", "")

    options = (*TINY, "--runs-dir", str(tmp_path / "killed"))
    process = start(*options)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list(tmp_path.glob("killed/*/metrics.jsonl"))
        if found and found[0].read_text().count('"stage": "lottery-ticket"') >= 1:
            break
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    path, _ = finish(*options)
    again = json.loads((path / "result.json").read_text())
    for curve in (*result["curves"].values(), *again["curves"].values()):
        curve.pop("seconds")
    assert again["curves"] == result["curves"]
    same, err = finish(*options)
    assert same == path and "finished before" in err
