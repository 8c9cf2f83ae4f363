"""The run directory: naming, metrics, result, locking, interruption."""

import dataclasses
import errno
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
from rlprune_jax.origin import Provenance, StaleWarning
from rlprune_jax.runs import run_directory
from rlprune_jax.runs.run_directory import (
    Extension,
    RunDirectoryError,
    config_hash,
    open_run,
    open_run_at,
    read_config,
    read_made_with,
    read_of_run,
)
from rlprune_jax.sealed import DamagedFileError, DamageWarning, read_sealed

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rlprune_jax.__file__).parents[1])}


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
    start, _, seal = line.partition(', "seal": ')
    assert start == '{"stage": "search", "step": 1, "cost": [0.5, null], "step_name": "a"'
    assert len(seal) == len('"0123456789abcdef"}\n')
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


def test_rows_from_a_broken_line_on_do_not_count(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "a", [1, 2, 3])
        write_steps(run, "b", [1])
        path = run.path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("0.25", "0.26")
    damaged = "\n".join(lines) + "\n"
    path.write_text(damaged)
    with (
        pytest.warns(DamageWarning, match=r"line 2 of .*; 2 lines do not count"),
        open_run(tmp_path, "x", {}) as run,
    ):
        assert steps(run) == [("a", 1), ("b", 1)]
        write_steps(run, "a", [2])
    assert (run.path / "metrics-damaged.jsonl").read_text() == damaged
    with open_run(tmp_path, "x", {}) as run:
        assert steps(run) == [("a", 1), ("b", 1), ("a", 2)]


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


@pytest.mark.parametrize(
    "runs_dir, config, kind, message",
    [
        (None, {}, TypeError, "runs_dir=None must be a path"),
        (3, {}, TypeError, "runs_dir=3 must be a path"),
        ("", {}, ValueError, "runs_dir='' is empty"),
        ("runs", {"rate": np.nan}, ValueError, "config rate=nan is not finite"),
        ("runs", {"a": {"b": [1.0, np.inf]}}, ValueError, r"config a.b=\[1.0, inf\]"),
        ("runs", {"a": jnp.float32(-np.inf)}, ValueError, "config a=-inf"),
        ("runs", Search(target=np.nan), ValueError, "config target=nan"),
    ],
)
def test_what_names_no_run_is_refused(tmp_path, monkeypatch, runs_dir, config, kind, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        open_run(runs_dir, "x", config)
    assert not any(tmp_path.iterdir())


def test_a_directory_of_ones_own(tmp_path):
    path = tmp_path / "a" / "mine"
    with open_run_at(path, Config()) as run:
        assert run.path == path
        write_steps(run, "dense", [1])
    with open_run_at(path, Config(runs_dir=tmp_path)) as run:
        assert steps(run) == [("dense", 1)]
    with pytest.raises(ValueError, match="path='' is empty"):
        open_run_at("", {})
    with pytest.raises(TypeError, match="path=None must be a path"):
        open_run_at(None, {})
    with pytest.raises(TypeError, match="dataclass or a dict"):
        open_run_at(tmp_path / "b", [1])


@pytest.mark.parametrize(
    "now, message",
    [
        (Config(search=Search(iterations=11)), "search.iterations is 10 in .* and 11 now"),
        (Config(budgets=("a", "b")), r'budgets is \["params=0.1"\] in .* and \["a", "b"\] now'),
        (Config(dataset="iris"), 'dataset is "digits" .* "iris" now; delete'),
        (dataclasses.asdict(Config()) | {"new": 1}, "new is absent in .* and 1 now"),
        ({"dataset": "digits"}, "budgets is .* and absent now"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, now, message):
    open_run_at(tmp_path / "mine", Config()).close()
    for _ in range(2):  # the refusal has freed the lock
        with pytest.raises(RunDirectoryError, match=message):
            open_run_at(tmp_path / "mine", now)
    open_run_at(tmp_path / "mine", Config()).close()


def test_a_directory_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"holds 'thesis.tex' but no config.json"):
        open_run_at(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UnwritableError, match=r"thesis\.tex: File exists"):
        open_run_at(tmp_path / "thesis.tex", {})


def finished(path, evaluations=64):
    with open_run_at(path, {"evaluations": evaluations, "seed": 0}) as run:
        for stage in ("dense", "search", "finetune"):
            (run.checkpoints / stage / "3").mkdir(parents=True)
            write_steps(run, stage, [0, 1, 2, 3])
        run.write_result({"accuracy": 0.5})


MORE = Extension(settings=("evaluations",), stages=("dense", "search"))


def test_a_finished_run_is_extended(tmp_path):
    finished(tmp_path / "mine")
    for number, evaluations in enumerate((128, 256), 1):
        config = {"evaluations": evaluations, "seed": 0}
        with open_run_at(tmp_path / "mine", config, extension=MORE) as run:
            assert not run.is_finished
            stages = {record["stage"] for record in run.metrics()}
            assert stages == {"dense", "search"}
            assert {path.name for path in run.checkpoints.iterdir()} == stages
            place = run.path / f"result-{number}.json"
            kept = read_sealed(place, "result", run.identity)
            assert kept == {"accuracy": 0.5}
            run.write_result(kept)
        with open_run_at(tmp_path / "mine", config, extension=MORE) as run:
            assert run.is_finished
            assert read_config(run.path) == config


def test_an_extension_allows_what_it_names_only(tmp_path):
    finished(tmp_path / "mine")
    with pytest.raises(RunDirectoryError, match="evaluations is 64"):
        open_run_at(tmp_path / "mine", {"evaluations": 128, "seed": 0})
    with pytest.raises(RunDirectoryError, match="seed is 0"):
        open_run_at(tmp_path / "mine", {"evaluations": 128, "seed": 1}, extension=MORE)
    with open_run_at(tmp_path / "mine", {"evaluations": 64, "seed": 0}, extension=MORE) as run:
        assert run.is_finished
        assert len(steps(run)) == 12


def test_an_extension_survives_a_kill(tmp_path, monkeypatch):
    finished(tmp_path / "mine")
    config = {"evaluations": 128, "seed": 0}

    def kill(self, stages):
        (self.path / "result.json").rename(self.path / "result-1.json")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlprune_jax.runs.run_directory.RunDirectory.reopen", kill)
        with pytest.raises(KeyboardInterrupt):
            open_run_at(tmp_path / "mine", config, extension=MORE)
    with open_run_at(tmp_path / "mine", config, extension=MORE) as run:
        assert not run.is_finished
        assert {record["stage"] for record in run.metrics()} == {"dense", "search"}


def test_temporary_files_of_the_killed_are_deleted(tmp_path):
    open_run_at(tmp_path / "mine", {}).close()
    (tmp_path / "mine" / ".result.json.123.tmp").write_text("half")
    with open_run_at(tmp_path / "mine", {}) as run:
        assert not list(run.path.glob(".*.tmp"))


def test_a_run_is_open_once(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} is working"):
            open_run(tmp_path, "x", {})
        run.close()
        run.close()
        open_run(tmp_path, "x", {}).close()


HOLDS = """
import sys, time
from rlprune_jax.runs.run_directory import open_run
run = open_run(sys.argv[1], "x", {})
print("open", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as other:
        try:
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(RunDirectoryError, match=f"process {other.pid} .*--runs-dir"):
                open_run(tmp_path, "x", {})
        finally:
            other.send_signal(signal.SIGKILL)
    open_run(tmp_path, "x", {}).close()


WITHOUT_FCNTL = """
import sys, warnings
sys.modules["fcntl"] = None  # as on Windows
warnings.simplefilter("ignore")  # filelock says that it locks in another way
import rlprune_jax.runs as runs
for name in runs.__all__:
    if not name.startswith("Checkpoint"):  # Orbax is no code of ours
        getattr(runs, name)
with runs.open_run(sys.argv[1], "x", {}) as run:
    try:
        runs.open_run(sys.argv[1], "x", {})
    except runs.RunDirectoryError as error:
        print(error)
runs.open_run(sys.argv[1], "x", {}).close()
"""


def test_there_is_no_need_of_fcntl(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "is working on" in done.stdout


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
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as other:
        other.stdout.readline()
        time.sleep(0.05)
        other.send_signal(signal.SIGKILL)
    with open_run(tmp_path, "x", {}) as run:
        count = len(run.metrics())
        assert [record["step"] for record in run.metrics()] == list(range(1, count + 1))
        # The result of a step is written after its line.
        assert run.result()["step"] in (count - 1, count)
        assert run.result()["values"] == list(range(5000))


def made(stale="refuse", **with_):
    return Provenance({"code": "a", "data": "b", **with_}, stale)


def test_a_run_that_other_code_made_is_refused(tmp_path):
    for finished in (False, True):
        config = {"finished": finished}
        with open_run(tmp_path, "x", config, origin=made()) as run:
            write_steps(run, "a", [1])
            if finished:
                run.write_result({"accuracy": 0.5})
        with open_run(tmp_path, "x", config, origin=made()) as run:
            assert run.is_finished == finished
        with pytest.raises(
            RunDirectoryError, match=r"made by other code: code \(a there, c here\)"
        ):
            open_run(tmp_path, "x", config, origin=made(code="c"))
        with pytest.raises(RunDirectoryError, match=r"data \(b there, c here\); stale='redo'"):
            open_run(tmp_path, "x", config, origin=made(data="c"))
        # Whoever does not ask is not told.
        open_run(tmp_path, "x", config).close()


def test_a_run_that_other_code_made_is_made_again(tmp_path):
    with open_run(tmp_path, "x", {}, origin=made()) as run:
        run.write_result({"accuracy": 0.5})
    for number in (1, 2):
        code = f"other {number}"
        with (
            pytest.warns(StaleWarning, match=rf"the old one is .*\.stale-{number}"),
            open_run(tmp_path, "x", {}, origin=made("redo", code=code)) as run,
        ):
            assert not run.is_finished and run.metrics() == []
            run.write_result({"accuracy": number})
        with open_run(tmp_path, "x", {}, origin=made("redo", code=code)) as run:
            assert run.result() == {"accuracy": number}
    old = [read_sealed(path / "result.json", "result") for path in sorted(tmp_path.iterdir())]
    assert [each["accuracy"] for each in old] == [2, 0.5, 1]


def test_a_run_that_other_code_made_is_kept(tmp_path):
    with open_run(tmp_path, "x", {}, origin=made()) as run:
        write_steps(run, "a", [1])
    with (
        pytest.warns(StaleWarning, match="is kept"),
        open_run(tmp_path, "x", {}, origin=made("keep", code="c")) as run,
    ):
        assert len(run.metrics()) == 1
        path = run.path
    assert [each["code"] for each in read_made_with(path)] == ["a", "c"]
    # Both have worked on it, so it is neither's alone.
    for code in "ac":
        with pytest.raises(RunDirectoryError, match="made by other code"):
            open_run(tmp_path, "x", {}, origin=made(code=code))


def test_a_run_without_an_origin_is_not_taken_for_one_of_this_code(tmp_path):
    open_run(tmp_path, "x", {}).close()
    with pytest.raises(RunDirectoryError, match="does not say which"):
        open_run(tmp_path, "x", {}, origin=made())


def test_a_run_that_cannot_be_read_is_made_again_if_asked_for(tmp_path):
    with open_run(tmp_path, "x", {}, origin=made()) as run:
        (run.path / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="carries no checksum"):
        open_run(tmp_path, "x", {}, origin=made())
    with pytest.warns(StaleWarning, match="no checksum"):
        open_run(tmp_path, "x", {}, origin=made("redo")).close()


def test_files_of_a_finished_run_are_looked_at(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        write_steps(run, "a", [1, 2])
        run.report.write_text("<html>")
        run.slim.mkdir()
        (run.slim / "plan.json").write_text("{}")
        run.write_result({"accuracy": 0.5})
        assert run.damaged() == [] and read_of_run(run.path, "report.html") == b"<html>"
    open_run(tmp_path, "x", {}).close()  # without a warning
    run.report.write_text("<html >")
    (run.slim / "plan.json").unlink()
    metrics = (run.path / "metrics.jsonl").read_text().splitlines()
    (run.path / "metrics.jsonl").write_text(metrics[0] + "\n")
    with pytest.warns(DamageWarning) as told:
        open_run(tmp_path, "x", {}).close()
    found = [str(each.message).split(" was changed")[0].rpartition("/")[2] for each in told]
    assert found == ["report.html", "plan.json", "metrics.jsonl"]
    with pytest.raises(DamagedFileError, match=r"report\.html was changed"):
        read_of_run(run.path, "report.html")


def test_a_result_that_was_changed_does_not_count(tmp_path):
    with open_run(tmp_path, "x", {}) as run:
        run.write_result({"accuracy": 0.5})
        place = run.path / "result.json"
    place.write_text(place.read_text().replace("0.5", "0.6"))
    with pytest.warns(DamageWarning, match="does not count"), open_run(tmp_path, "x", {}) as run:
        assert not run.is_finished
    # That of another run neither.
    with open_run(tmp_path, "x", {"seed": 1}) as other:
        other.write_result({"accuracy": 0.7})
    place.write_bytes((other.path / "result.json").read_bytes())
    with pytest.warns(DamageWarning, match="of another run"), open_run(tmp_path, "x", {}) as run:
        assert not run.is_finished


def test_a_finished_run_is_found_where_nothing_can_be_written(tmp_path, monkeypatch):
    with open_run(tmp_path, "prune", {"seed": 0}) as run:
        run.append_metrics("dense", 1, {"loss": 0.5})
        run.write_result({"accuracy": 0.5})
    with open_run(tmp_path, "prune", {"seed": 1}) as unfinished:
        unfinished.append_metrics("dense", 1, {"loss": 0.5})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def refused(path):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run_directory, "try_lock", refused)
    with open_run(tmp_path, "prune", {"seed": 0}) as found:
        assert found.is_finished and found.path == run.path
        assert [record["loss"] for record in found.metrics("dense")] == [0.5]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    for seed in (1, 2):
        with pytest.raises(UnwritableError, match="Read-only"):
            open_run(tmp_path, "prune", {"seed": seed})
