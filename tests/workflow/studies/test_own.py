"""Studies of a user's network and data, in a package outside of this repository."""

import csv
import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.export import save_weights
from rlprune_jax.training.task import TaskError
from rlprune_jax.workflow.studies import BudgetStudy, ProxyStudy, SapStudy, SearchStudy, problem
from rlprune_jax.workflow.studies.conduct import conduct
from rlprune_jax.workflow.studies.problem import build, prepare
from rlprune_jax.workflow.studies.sap_job import sap_study_job

NETS = """
import flax.linen as nn, jax
from rlprune_jax import Network

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(6)(nn.relu(nn.Dense(12)(x)))))

def fresh():
    return Net()

def trained(example):
    return Net(), Net().init(jax.random.key(3), example)

def targets(example):
    keys = jax.random.split(jax.random.key(0))
    v = {"a": jax.random.normal(keys[0], (3, 8)), "b": jax.random.normal(keys[1], (8, 1))}
    return Network(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], v, example)
"""
DATA = """
import numpy as np
from rlprune_jax import regression, Task, classification

def points(seed, count=40):
    x = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int)

def arrays(seed):
    return points(seed), points(seed + 1), points(seed + 2)

def task():
    x, _ = points(0)
    y = 3 * np.maximum(x, 0).sum(1, keepdims=True)
    return regression((x, y), (x, y), (x, y))

def stream():
    return classification(lambda: iter([points(0)]), points(1), points(2))
"""
TINY = {"seeds": 1, "dense_steps": 5, "budget": "params=0.5", "strategy": "map"}
STREAMED = "train comes batch by batch"
SMALL = {"evaluations": 8, "candidates": 4}


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    folder = tmp_path / "studied_of_test"
    folder.mkdir()
    for name, text in (("__init__", ""), ("nets", NETS), ("data", DATA)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("studied_of_test")]:
        del sys.modules[name]


def own(network, data="arrays"):
    return {"model": f"studied_of_test.nets:{network}", "dataset": f"studied_of_test.data:{data}"}


@pytest.mark.slow
def test_a_front_of_an_own_regression_that_is_trained(tmp_path, capsys):
    study = BudgetStudy(
        **own("targets", "task") | TINY | SMALL | {"dense_steps": None},
        limits=(0.5, 0.8),
        methods=("uniform",),
        finetune_steps=2,
        metric="accuracy",
        chunk=9,
        runs_dir=tmp_path / "runs",
    )
    study.check()
    path = conduct(study)
    err = capsys.readouterr().err
    assert "note: reward_images=256: there are 40 examples, and all are taken" in err
    assert "note: chunk=9: there are 2 settings, and all are taken" in err
    result = json.loads((path / "result.json").read_text())
    assert result["task_metric"] == "negative_loss" and result["dense_accuracy"] < -1
    assert not (path / "checkpoints" / "dense").exists()  # what is trained is not trained again
    assert "dense test negative loss" in (path / "report.html").read_text()
    assert set(json.loads((path / "config.json").read_text())["code"]) == {"model", "dataset"}
    # Rewards are below 0, and so is the area under the best so far, of one evaluation its reward.
    for row in csv.DictReader((path / "table.csv").read_text().splitlines()):
        assert float(row["area"]) == pytest.approx(float(row["reward"])) and float(row["area"]) < 0


@pytest.mark.slow
def test_own_linen_module_and_arrays(tmp_path):
    study = ProxyStudy(
        **own("fresh") | TINY, candidates=3, finetune_steps=2, runs_dir=tmp_path / "runs"
    )
    study.check()
    path = conduct(study)
    result = json.loads((path / "result.json").read_text())
    assert result["task_metric"] == "accuracy" and 0 <= result["best"]["mean"] <= 1
    assert (path / "checkpoints" / "dense").exists()


def test_adaptive_pruning_starts_from_the_given_weights():
    study = SapStudy(**own("trained"), seeds=1, iterations=1, epochs=1, batch_size=20)
    study.check()
    job = sap_study_job(dataclasses.replace(study, ignore=("Dense_[01]",)))
    numbers = {"p": 0.5, "q": 1.0, "eta_r": 0.0, "gamma": 1.0, "beta": 0.5}
    hparams = {name: jnp.float32(value) for name, value in numbers.items()}
    found = jax.jit(job.job, static_argnums=3)(hparams, jax.random.key(0), job.shared, "global")
    # Dense_2 alone has weights that may go, at most half of which do.
    assert 0.5 <= float(found["density"]) < 1
    variables = build(study)[0].network.variables
    fresh = build(dataclasses.replace(study, **own("fresh")))[0].network.variables
    kernels = [each["params"]["Dense_0"]["kernel"] for each in (variables, fresh)]
    assert not np.array_equal(*kernels)


def test_pretrained_weights_are_not_trained_and_count_by_content(tmp_path):
    study = SearchStudy(**own("fresh") | TINY | SMALL | {"dense_steps": None})
    variables = jax.tree.map(lambda leaf: leaf + 1, build(study)[0].network.variables)
    save_weights(tmp_path / "one", variables)
    shutil.copy("one", "two")
    study, same = (dataclasses.replace(study, pretrained=name) for name in ("one", "two"))
    study.check()
    pruning = prepare(study, (study.budget,))
    np.testing.assert_array_equal(
        pruning.network.variables["params"]["Dense_1"]["bias"],
        variables["params"]["Dense_1"]["bias"],
    )
    assert study.identity() == same.identity()


def test_a_study_is_named_by_the_users_code(package):
    study = SearchStudy(**own("fresh"))
    before = study.identity()
    (package / "nets.py").write_text(NETS + "\n")
    assert study.identity() != before


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            BudgetStudy(**own("fresh", "stream"), limits=(0.5,), finetune_steps=1),
            STREAMED,
        ),
        (SapStudy(**own("fresh", "stream")), STREAMED),
        (SapStudy(**own("targets")), "the network tells 1 classes apart"),
        (SearchStudy(**own("absent")), "cannot be imported"),
        (SearchStudy(**own("fresh", "points")), "must return"),
    ],
)
def test_what_a_study_cannot_take_is_refused_before_training(study, message, monkeypatch):
    monkeypatch.setattr(problem, "train_dense", lambda *args: pytest.fail("training started"))
    study.check()
    with pytest.raises((ValueError, TaskError), match=message):
        study.job()
