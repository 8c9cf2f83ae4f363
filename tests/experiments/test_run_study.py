"""The study experiment as a user runs it: files, refusals, resumption."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = (
    *("--seeds", "2", "--widths", "12", "16", "--dense-steps", "40", "--reward-images", "64"),
    *("--budget", "params=0.5", "--evaluations", "16", "--candidates", "8"),
)


def run(*options, script="run_study.py"):
    done = subprocess.run(
        [sys.executable, str(EXPERIMENTS / script), *options],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COLUMNS": "200"},
    )
    return done.returncode, done.stdout, done.stderr


def read(file):
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.slow
def test_a_search_study_writes_its_files_and_is_found_finished(tmp_path):
    options = ("search", *TINY, "--settings", "3", "--runs-dir", str(tmp_path))
    code, out, err = run(*options)
    assert code == 0, err
    path = Path(out.strip().splitlines()[-1])
    result = json.loads((path / "result.json").read_text())
    assert result["settings"] == 3 and result["seeds"] == [0, 1]
    assert len(result["gain_over_defaults"]["by_seed"]) == 2
    rows = read(path / "table.csv")
    assert len(rows) == 6
    assert {"unit_learning_rate", "seed", "area", "reward", "feasible_fraction"} <= set(rows[0])
    assert all(0 <= float(row["area"]) <= float(row["reward"]) <= 1 for row in rows)
    assert all(float(row["cost"]) <= 0.5 for row in rows)
    assert min(int(row["rank"]) for row in read(path / "summary.csv")) == 1
    page = (path / "report.html").read_text()
    assert "interactive" in page and "<svg" in page
    code, out, err = run(*options)
    assert code == 0 and out.strip() == str(path) and "finished before" in err


@pytest.mark.slow
def test_the_best_are_confirmed_on_fresh_seeds(tmp_path):
    options = ("--settings", "3", "--vary", "unit_learning_rate", "candidates")
    code, out, err = run("search", *TINY, *options, "--runs-dir", str(tmp_path))
    assert code == 0, err
    study = Path(out.strip().splitlines()[-1])
    assert len({row["candidates"] for row in read(study / "table.csv")}) > 1
    options = (str(study), "--top", "1", "--seeds", "2", "--runs-dir", str(tmp_path))
    code, out, err = run(*options, script="confirm_study.py")
    assert code == 0, err
    result = json.loads((Path(out.strip().splitlines()[-1]) / "result.json").read_text())
    best = max(read(study / "summary.csv")[1:], key=lambda row: float(row["mean"]))
    assert [row["setting"] for row in result["settings"]] == [0, int(best["setting"])]
    (gains,) = result["gains"].values()
    assert gains["gain"][0] == 0 and gains["low"][1] <= gains["gain"][1] <= gains["high"][1]
    code, _, err = run(*options, script="confirm_study.py")
    assert code == 0 and "finished before" in err
    code, _, err = run(str(tmp_path), script="confirm_study.py")
    assert code == 2 and "not a finished search study" in err


@pytest.mark.slow
def test_optuna_chooses_too(tmp_path):
    pytest.importorskip("optuna")
    options = ("--optuna", str(tmp_path / "journal"), "--trials", "3", "--batch", "2")
    options += ("--methods", "random_search", "--limits", "0.3", "0.5")
    code, out, err = run("budgets", *TINY, *options, "--runs-dir", str(tmp_path))
    assert code == 0, err
    path = Path(out.strip().splitlines()[-1])
    assert json.loads((path / "result.json").read_text())["settings"] == 3


@pytest.mark.slow
def test_a_grid_of_adaptive_pruning(tmp_path):
    pytest.importorskip("rlprune_jax.workflow.iterative", exc_type=ImportError)
    options = ("--seeds", "2", "--widths", "12", "16", "--iterations", "2", "--epochs", "2")
    code, out, err = run("sap", *options, "--runs-dir", str(tmp_path))
    assert code == 0, err
    path = Path(out.strip().splitlines()[-1])
    rows = read(path / "table.csv")
    # (1, 1) is no pair of norms.
    assert {(row["p"], row["q"]) for row in rows} == {("0.5", "1"), ("0.5", "2"), ("1", "2")}
    assert len(rows) == 6 and all(0 < float(row["density"]) < 1 for row in rows)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Search", {"settings": 0}, "settings=0 must be at least 1"),
        ("Search", {"seeds": 0}, "seeds=0"),
        ("Search", {"vary": ("depth",)}, r"vary=\['depth'\]: choose from"),
        ("Search", {"vary": ()}, "vary is empty"),
        ("Search", {"around": 1.0}, "around=1.0: a factor above 1"),
        ("Search", {"budget": "flops=1"}, "known budgets"),
        ("Budgets", {"methods": ("grid",)}, r"methods=\['grid'\]"),
        ("Budgets", {"limits": (2.0,)}, "must be a fraction"),
        ("Budgets", {"metric": "accuracy"}, "needs finetune_steps"),
        ("Sap", {"p": (2.0,), "q": (1.0,)}, "some p must be below some q"),
        ("Proxy", {"candidates": 2}, "at least 3"),
        ("Proxy", {"optuna": "x"}, "leave it out"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_training(name, options, message, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import run_study

    monkeypatch.setattr(run_study, "prepare", lambda *args: pytest.fail("training started"))
    with pytest.raises(ValueError, match=message):
        run_study.study(getattr(run_study, name)(**options))


def test_help_lists_the_studies():
    code, out, _ = run("--help")
    assert code == 0
    for word in ("search", "budgets", "proxy"):
        assert word in out
