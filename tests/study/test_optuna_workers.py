"""Optuna workers: every setting exactly once, whoever dies."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from study_jobs import job

from rlprune_jax.study import Choice, LogUniform, StudyError, Uniform, optuna_workers
from rlprune_jax.study.optuna_workers import run_worker

HERE = Path(__file__).parent
SPACE = {"scale": Uniform(0.5, 5.0), "rate": LogUniform(0.01, 1.0)}
OPTIONS = {"study_name": "s", "trials": 10, "batch": 3, "metric": "loss", "maximize": False}
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
from study_jobs import job
from test_optuna_workers import OPTIONS, SPACE
from rlprune_jax.study.optuna_workers import run_worker
def tick(count, note):
    print(count, flush=True)
    time.sleep(float(sys.argv[2]))
result = run_worker(job, SPACE, (0, 1), storage=sys.argv[1], tick=tick, **OPTIONS)
print("end", len(result.settings))
"""


def start(storage, pause):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, storage, str(pause)],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trials(storage):
    worker = optuna_workers.Worker(storage)
    with worker:
        return optuna.load_study(study_name="s", storage=worker.storage).get_trials()


def each_once(storage, count=10):
    found = trials(storage)
    done = [t for t in found if t.state == optuna.trial.TrialState.COMPLETE]
    assert Counter(t.user_attrs["slot"] for t in done) == Counter(range(count))
    assert not [t for t in found if not t.state.is_finished()]
    assert len({tuple(t.params.values()) for t in done}) == count
    return found


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_one_worker_does_every_trial_and_compiles_once(tmp_path, kind, recwarn):
    traced = []

    def counted(hparams, key):
        traced.append(1)
        return job(hparams, key)

    storage = str(tmp_path / "j") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    found = run_worker(counted, SPACE, (0, 1), storage=storage, **OPTIONS)
    assert found.metrics["loss"].shape == (10, 2)
    assert len(each_once(storage)) == 10
    # Four batches: each is checked, and the one program is traced once.
    assert len(traced) == 4 + 1
    alone = jax.jit(job)
    for index, setting in enumerate(found.settings):
        hparams = {name: jnp.float32(value) for name, value in setting.items()}
        expected = [float(alone(hparams, jax.random.key(seed))["loss"]) for seed in (0, 1)]
        np.testing.assert_allclose(found.metrics["loss"][index], expected, rtol=1e-4, atol=1e-5)
    again = run_worker(counted, SPACE, (0, 1), storage=storage, **OPTIONS)
    assert len(again.settings) == 10 and len(traced) == 5


@pytest.mark.slow
def test_one_of_two_workers_is_killed_and_the_other_takes_over(tmp_path):
    storage = str(tmp_path / "journal")
    first, second = start(storage, 60), start(storage, 0.2)
    assert first.stdout is not None
    first.stdout.readline()  # has told a batch; killed while it holds the next, or before
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert out.split()[-2:] == ["end", "10"]
    each_once(storage)


def test_trials_that_a_dead_worker_held_are_done_once_with_their_settings(tmp_path):
    storage = str(tmp_path / "journal")
    program = f"""
import os, sys
sys.path.insert(0, {str(HERE)!r})
import optuna
from test_optuna_workers import SPACE
from rlprune_jax.study import optuna_workers
worker = optuna_workers.Worker(sys.argv[1])
study = optuna.create_study(storage=worker.storage, study_name="s", direction="minimize")
optuna_workers._fill(study, 10)
taken = worker.ask(study, SPACE, 3)
print([t.params["scale"] for t in taken], flush=True)
os.kill(os.getpid(), 9)
"""
    dead = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, storage],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS)
    found = each_once(storage)
    held = sorted(eval(dead.stdout))
    failed = [t for t in found if t.state == optuna.trial.TrialState.FAIL]
    assert sorted(t.params["scale"] for t in failed) == held
    done = [t.params["scale"] for t in found if t.state == optuna.trial.TrialState.COMPLETE]
    assert set(held) <= set(done)


def test_slots_that_were_filled_twice_are_done_once(tmp_path):
    storage = str(tmp_path / "journal")
    with optuna_workers.Worker(storage) as worker:
        study = optuna.create_study(storage=worker.storage, study_name="s", direction="minimize")
        for slot in (0, 1, 2):
            study.enqueue_trial({}, user_attrs={"slot": slot})
            study.enqueue_trial({}, user_attrs={"slot": slot})
    run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS)
    assert len(each_once(storage)) == 13


def test_a_stale_trial_of_a_database_is_queued_again(tmp_path, monkeypatch, recwarn):
    storage = f"sqlite:///{tmp_path}/s.db"
    monkeypatch.setattr(optuna_workers, "GRACE_SECONDS", 1)
    monkeypatch.setattr(optuna_workers, "HEARTBEAT_SECONDS", 1)
    with optuna_workers.Worker(storage) as dead:
        study = optuna.create_study(storage=dead.storage, study_name="s", direction="minimize")
        optuna_workers._fill(study, 4)
        dead.ask(study, SPACE, 2)  # and is never heard of again
    options = OPTIONS | {"trials": 4}
    run_worker(job, SPACE, (0, 1), storage=storage, **options)
    assert len(each_once(storage, 4)) == 6


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_more_trials_extend_a_study(tmp_path, kind, recwarn):
    storage = str(tmp_path / "j") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    few = run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS | {"trials": 4})
    more = run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS | {"trials": 7})
    each_once(storage, 7)
    assert list(more.settings)[:4] == list(few.settings) and len(more.settings) == 7
    np.testing.assert_array_equal(more.metrics["loss"][:4], few.metrics["loss"])


def test_a_journal_that_is_cut_off_is_refused_and_its_way_out_works(tmp_path):
    journal, options = tmp_path / "journal", OPTIONS | {"trials": 3}
    run_worker(job, SPACE, (0, 1), storage=str(journal), **options)
    journal.write_bytes(journal.read_bytes()[:-40])
    with pytest.raises(StudyError, match=r"journal .*journal is cut off in line \d+ of") as error:
        run_worker(job, SPACE, (0, 1), storage=str(journal), **options)
    command = re.search(r"\((sed .*?)\)", str(error.value))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)
    found = run_worker(job, SPACE, (0, 1), storage=str(journal), **options)
    assert len(found.settings) == 3
    each_once(str(journal), 3)


def test_another_version_of_the_code_is_refused(tmp_path, monkeypatch):
    storage = str(tmp_path / "journal")
    run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS | {"trials": 2})
    monkeypatch.setattr(optuna_workers, "code_version", lambda fn: "0.0-other")
    with pytest.raises(StudyError, match=r"version .* of the code and this worker runs 0.0-other"):
        run_worker(job, SPACE, (0, 1), storage=storage, **OPTIONS | {"trials": 2})
    monkeypatch.undo()
    with pytest.raises(StudyError, match="differ in seeds; choose another study name"):
        run_worker(job, SPACE, (5,), storage=storage, **OPTIONS | {"trials": 2})


def test_the_version_follows_the_job_s_source():
    def other(hparams, key):
        return {}

    assert optuna_workers.code_version(job) == optuna_workers.code_version(job)
    assert optuna_workers.code_version(job) != optuna_workers.code_version(other)


def test_limits_are_constraints_nan_is_worst_and_choices_may_repeat(tmp_path):
    def costly(hparams, key, *, kind):
        value = jnp.where(kind == "c", jnp.nan, hparams["size"] * 1.0)
        return {"value": value, "cost": hparams["size"] * 1.0}

    storage = str(tmp_path / "journal")
    found = run_worker(
        costly,
        {"size": Choice((1, 2, 3)), "kind": Choice(("a", "c"))},
        [0],
        storage=storage,
        study_name="s",
        trials=12,
        batch=4,
        metric="value",
        limits={"cost": 2.0},
        static=["kind"],
        sampler_seed=0,
    )
    assert len(found.settings) <= 6
    rows = list(found.settings)
    for row, value in zip(rows, found.metrics["value"][:, 0], strict=True):
        assert np.isnan(value) == (row["kind"] == "c")
    best = max((t for t in trials(storage) if t.params["size"] <= 2), key=lambda t: t.value)
    with optuna_workers.Worker(storage) as worker:
        study = optuna.load_study(study_name="s", storage=worker.storage)
        assert study.best_trial.value == best.value
    assert "nan" in {str(v) for v in found.metrics["value"][:, 0]} or all(
        row["kind"] == "a" for row in rows
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [({"trials": 0}, "trials=0"), ({"batch": 0}, "batch=0"), ({"metric": "x"}, "no metric")],
)
def test_bad_options_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run_worker(job, SPACE, [0], storage=str(tmp_path / "j"), **OPTIONS | change)
