"""A study in its run directory: files, finished runs, extension, Optuna."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from rlprune_jax.runs import RunDirectoryError, config_hash
from rlprune_jax.sealed import write_sealed
from rlprune_jax.workflow.studies import BudgetStudy, ProxyStudy, SapStudy, SearchStudy
from rlprune_jax.workflow.studies.base import EXTENDS
from rlprune_jax.workflow.studies.conduct import NOT_HASHED, conduct

TINY = {"widths": (6, 8), "dense_steps": 30, "reward_images": 64, "budget": "params=0.5"}


def read(file):
    return list(csv.DictReader(file.read_text().splitlines()))


@pytest.mark.slow
def test_a_search_study_is_found_finished_and_extended(tmp_path, capsys):
    study = SearchStudy(
        **TINY,
        seeds=2,
        num_settings=2,
        chunk=2,
        vary=("unit_learning_rate", "sharpness"),
        evaluations=8,
        candidates=4,
        strategy="map",
        runs_dir=tmp_path,
    )
    path = conduct(study)
    result = json.loads((path / "result.json").read_text())
    assert result["settings"] == 2 and result["seeds"] == [0, 1]
    assert len(result["gain_over_defaults"]["by_seed"]) == 2
    rows = read(path / "table.csv")
    assert len(rows) == 4
    assert all(0 <= float(row["area"]) <= float(row["reward"]) <= 1 for row in rows)
    assert all(float(row["cost"]) <= 0.5 for row in rows)
    assert min(int(row["rank"]) for row in read(path / "summary.csv")) == 1
    page = (path / "report.html").read_text()
    assert "interactive" in page and "<svg" in page
    assert {file.stem for file in (path / "figures").iterdir()} == {
        "effect-of-each-hyper-parameter"
    }

    assert conduct(study) == path
    assert "finished before" in capsys.readouterr().err

    assert conduct(dataclasses.replace(study, num_settings=4)) == path
    result = json.loads((path / "result.json").read_text())
    assert result["settings"] == 4
    assert result["cells_run"] == 4  # of two settings; the others were there
    longer = read(path / "table.csv")
    assert [row["area"] for row in longer[:4]] == [row["area"] for row in rows]
    assert json.loads((path / "result-1.json").read_text())["settings"] == 2

    with pytest.raises(ValueError, match="settings=3 is below the 4 that the study"):
        conduct(dataclasses.replace(study, num_settings=3))
    assert conduct(dataclasses.replace(study, num_settings=4)) == path  # still finished


@pytest.mark.slow
def test_optuna_chooses_and_more_trials_go_on(tmp_path):
    pytest.importorskip("optuna")
    study = BudgetStudy(
        **TINY,
        seeds=1,
        limits=(0.4, 0.8),
        methods=("uniform",),
        optuna=str(tmp_path / "journal"),
        trials=2,
        batch=2,
        evaluations=8,
        candidates=4,
        runs_dir=tmp_path,
    )
    path = conduct(study)
    few = read(path / "table.csv")
    assert len(few) == 2 and path.parent.name == "worker-0"
    assert conduct(dataclasses.replace(study, trials=3, batch=1)) == path
    rows = read(path / "table.csv")
    assert len(rows) == 3 and [row["params"] for row in rows[:2]] == [row["params"] for row in few]
    for row in rows:
        assert 0.4 <= float(row["params"]) <= 0.8 and float(row["cost"]) <= float(row["params"])
    figures = {file.stem for file in (path / "figures").iterdir()}
    assert figures == {"front-of-reward", "effect-of-each-hyper-parameter"}


@pytest.mark.slow
def test_a_grid_of_adaptive_pruning(tmp_path):
    study = SapStudy(
        widths=(6,), seeds=2, iterations=1, epochs=1, strategy="vmap", runs_dir=tmp_path
    )
    rows = read(conduct(study) / "table.csv")
    # (1, 1) is no pair of norms.
    assert {(row["p"], row["q"]) for row in rows} == {("0.5", "1"), ("0.5", "2"), ("1", "2")}
    assert len(rows) == 6 and all(0 < float(row["density"]) < 1 for row in rows)


@pytest.mark.slow
def test_a_proxy_study_correlates(tmp_path):
    study = ProxyStudy(
        **TINY, model="mlp", candidates=3, finetune_steps=5, strategy="map", runs_dir=tmp_path
    )
    path = conduct(study)
    result = json.loads((path / "result.json").read_text())
    assert set(result["correlations"]) == {
        *("no_recalibration", "recalibration", "finetune_32", "finetune_128")
    }
    accuracy = [float(row["accuracy"]) for row in read(path / "table.csv")]
    assert np.isclose(max(accuracy), result["best"]["mean"])
    assert [file.stem for file in (path / "figures").iterdir()] == [
        "reward-against-finetuned-accuracy"
    ]


def test_a_directory_of_something_else_is_refused(tmp_path):
    study = SearchStudy(**TINY, runs_dir=tmp_path)
    digits = config_hash(study.record(), exclude=(*NOT_HASHED, *EXTENDS))
    folder = tmp_path / f"study-search-{digits}"
    folder.mkdir()
    write_sealed(folder / "config.json", {"seed": 0}, "config")
    with pytest.raises(RunDirectoryError, match="other settings"):
        conduct(study)
