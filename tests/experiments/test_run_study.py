"""The study experiments as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = (
    *("--seeds", "2", "--widths", "6", "8", "--dense-steps", "30", "--reward-images", "64"),
    *("--budget", "params=0.5", "--evaluations", "8", "--candidates", "4", "--strategy", "map"),
)


def run(script, *options):
    done = subprocess.run(
        [sys.executable, str(EXPERIMENTS / script), *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COLUMNS": "200"},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_best_of_all_studies_are_chosen(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    from confirm_study import chosen

    first = np.array([[0.5, 0.5], [0.9, 0.7], [0.6, 0.6], [np.nan, 1.0]])
    second = np.array([[5.0, 5.0], [4.0, 4.0], [9.0, 9.0], [8.0, 8.0]])
    assert chosen([first], 2) == [0, 1, 2]
    assert chosen([second], 2) == [0, 2, 3]
    assert chosen([first, second], 1) == [0, 2]  # one that failed somewhere is never chosen


@pytest.mark.slow
def test_the_best_are_confirmed_on_fresh_seeds(tmp_path):
    options = ("--settings", "2", "--vary", "unit_learning_rate", "--runs-dir", str(tmp_path))
    code, out, err = run("run_study.py", "search", *TINY, *options)
    assert code == 0, err
    study = Path(out.strip().splitlines()[-1])
    options = (str(study), "--top", "1", "--seeds", "2", "--runs-dir", str(tmp_path))
    code, out, err = run("confirm_study.py", *options)
    assert code == 0, err
    result = json.loads((Path(out.strip().splitlines()[-1]) / "result.json").read_text())
    assert [row["setting"] for row in result["settings"]] == [0, 1]
    assert result["seeds"] == [1000, 1001]
    (gains,) = result["gains"].values()
    assert gains["gain"][0] == 0 and gains["low"][1] <= gains["gain"][1] <= gains["high"][1]
    code, _, err = run("confirm_study.py", *options)
    assert code == 0 and "finished before" in err
    code, _, err = run("confirm_study.py", str(tmp_path))
    assert code == 2 and "not a finished search study" in err
