"""The run directory: naming, metrics, result, locking, interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rlprune_jax
from rlprune_jax.files import UnwritableError
from rlprune_jax.runs.run_directory import RunDirectoryError, config_hash, open_run


@dataclasses.dataclass(frozen=True)
class Search:
    iterations: int = 10
    target: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    dataset: str = "digits"
    budgets: tuple[str, ...] = ("params=0.1",)
    search: Search = Search()
    runs_dir: Path = Path("runs")


def test_one_configuration_has_one_directory(tmp_path):
    with open_run(tmp_path, "prune_rl", Config()) as run:
        path = run.path
        assert path.parent == tmp_path
        assert path.name == f"prune_rl-{config_hash(Config())}"
        assert len(path.name) == len("prune_rl-") + 10
    with open_run(tmp_path, "prune_rl", Config(runs_dir=tmp_path)) as run:
        assert run.path == path
    with open_run(tmp_path, "prune_rl", Config(search=Search(iterations=11))) as run:
        assert run.path != path


def test_hash_is_the_same_in_every_process_and_order():
    # Computed once by hand: sha256 of the text below.
    import hashlib

    canonical = '{"budgets": ["params=0.1"], "dataset": "digits", "search": ' + (
        '{"iterations": 10, "target": 0.5}}'
    )
    assert config_hash(Config()) == hashlib.sha256(canonical.encode()).hexdigest()[:10]
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1, "quiet": True})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_configuration_is_written_whole(tmp_path):
    with open_run(tmp_path, "prune_rl", Config()) as run:
        stored = json.loads((run.path / "config.json").read_text())
    assert stored["search"] == {"iterations": 10, "target": 0.5}
    assert stored["runs_dir"] == "runs"


def test_unknown_configuration_and_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="experiment='a/b'"):
        open_run(tmp_path, "a/b", Config())
    with pytest.raises(TypeError, match="dataclass or a dict"):
        open_run(tmp_path, "a", [1])
    with pytest.raises(TypeError, match="object has no JSON form"):
        open_run(tmp_path, "a", {"what": object()})
    assert not any(tmp_path.iterdir())


def test_result_ends_the_run(tmp_path):
    with open_run(tmp_path, "x", {"seed": 0}) as run:
        assert not run.is_finished
        run.write_result({"accuracy": jnp.float32(0.5), "lost": float("nan")})
        assert run.is_finished
    with open_run(tmp_path, "x", {"seed": 0}) as run:
        assert run.result() == {"accuracy": 0.5, "lost": None}
        (run.path / "result.json").write_text('{"accuracy": 0.')
        assert not run.is_finished


def write_steps(run, stage, steps):
    for step in steps:
        run.append_metrics(stage, step, {"loss": step / 8})


def steps(run):
    return [(record["stage"], record["step"]) for record in run.metrics()]


def test_metrics_are_on_disk_after_each_step(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        run.append_metrics("search", 1, {"cost": np.array([0.5, np.inf]), "step_name": "a"})
        line = (run.path / "metrics.jsonl").read_text()
    assert line == '{"stage": "search", "step": 1, "cost": [0.5, null], "step_name": "a"}\n'
    with open_run(tmp_path, "x", {}) as run, pytest.raises(ValueError, match="step"):
        run.append_metrics("search", 2, {"step": 3})


def test_metrics_of_one_stage(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "dense", [1, 2])
        write_steps(run, "search", [1])
        assert [record["step"] for record in run.metrics("dense")] == [1, 2]


@pytest.mark.parametrize(
    "stage, step, left",
    [
        ("search", 3, "d1 d2 s1 s2 s3 f1 f2"),
        ("search", 2, "d1 d2 s1 s2 f1 f2"),
        ("search", 0, "d1 d2 f1 f2"),
        ("dense", 1, "d1 s1 s2 s3 f1 f2"),
        ("dense", 0, "s1 s2 s3 f1 f2"),
        ("finetune", 0, "d1 d2 s1 s2 s3"),
        ("finetune", 1, "d1 d2 s1 s2 s3 f1"),
        ("new", 0, "d1 d2 s1 s2 s3 f1 f2"),
    ],
)
def test_resuming_drops_what_comes_again(tmp_path, stage, step, left):
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "dense", [1, 2])
        write_steps(run, "search", [1, 2, 3])
        write_steps(run, "finetune", [1, 2])
    with open_run(tmp_path, "x", {}) as run:
        run.rewind_metrics(stage, step)
        assert " ".join(name[0] + str(number) for name, number in steps(run)) == left
        write_steps(run, stage, [step + 1])
        assert steps(run)[-1] == (stage, step + 1)
        assert len(steps(run)) == len(left.split()) + 1


@pytest.mark.parametrize("torn", [b'{"stage": "a", "st', b'{"stage": "a", "step": 3}', b"\0\0\0"])
def test_a_torn_last_line_is_cut(tmp_path, torn):
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "a", [1, 2])
        path = run.path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "a", [3])
        assert steps(run) == [("a", 1), ("a", 2), ("a", 3)]


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        path = run.path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\nrubbish\n{"stage": "a", "step": 2}\n')
    with pytest.raises(RunDirectoryError, match=r"line 2 .*--runs-dir"):
        open_run(tmp_path, "x", {})
    path.write_text("")
    open_run(tmp_path, "x", {}).close()  # the failed opening has dropped its lock


def test_runs_dir_that_cannot_be_written(tmp_path):
    # Below a regular file: refused to every user, root included.
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match=r"Not a directory.*--runs-dir") as caught:
        open_run(tmp_path / "file" / "runs", "x", {})
    assert isinstance(caught.value, OSError)


def test_a_foreign_configuration_is_refused(tmp_path):
    with open_run(tmp_path, "x", {"seed": 1}) as run:
        path = run.path / "config.json"
    for content in ['{"seed": 2}', "[]", '{"seed"']:
        path.write_text(content)
        with pytest.raises(RunDirectoryError, match=r"config\.json.*delete"):
            open_run(tmp_path, "x", {"seed": 1})


def test_one_process_at_a_time(tmp_path):
    program = (
        "import sys, time; from rlprune_jax.runs.run_directory import open_run\n"
        f"run = open_run({str(tmp_path)!r}, 'x', {{}}); print('open', flush=True)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rlprune_jax.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment
    ) as other:
        try:
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(RunDirectoryError, match=f"process {other.pid} .*--runs-dir"):
                open_run(tmp_path, "x", {})
        finally:
            other.send_signal(signal.SIGKILL)
    open_run(tmp_path, "x", {}).close()


KILLED = """
import itertools, sys
from rlprune_jax.runs.run_directory import open_run
run = open_run(sys.argv[1], "x", {})
for step in itertools.count(1):
    run.append_metrics("a", step, {"values": list(range(500))})
    run.write_result({"step": step, "values": list(range(5000))})
    if step == 3:
        print("under way", flush=True)
"""


def test_kill_leaves_whole_files(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(rlprune_jax.__file__).parents[1])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        other.stdout.readline()
        time.sleep(0.05)
        other.send_signal(signal.SIGKILL)
    with open_run(tmp_path, "x", {}) as run:
        count = len(run.metrics())
        assert [record["step"] for record in run.metrics()] == list(range(1, count + 1))
        # The result of a step is written after its line.
        assert run.result()["step"] in (count - 1, count)
        assert run.result()["values"] == list(range(5000))
