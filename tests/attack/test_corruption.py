"""Whatever is done to a file of a run, a study, a cache or an export is noticed, or harmless.

Noticed is: refused with an error that says so, or made anew with a warning, and the result is that
of the whole files. What comes out without a word is that of the whole files too. Never another
result, an error of another kind, or a wait without an end.
"""

import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack.corruption import COUNT, damages

from rlprune_jax import trace_graph
from rlprune_jax.costs.timings import Stopwatch, Timings
from rlprune_jax.export import (
    ExportError,
    export_stablehlo,
    load_stablehlo,
    make_plan,
    restore_slim,
    save_weights,
    write_plan,
)
from rlprune_jax.files import write_atomically
from rlprune_jax.graph.slim import compact
from rlprune_jax.runs import (
    CheckpointError,
    RunDirectoryError,
    StageOptions,
    adopt_stages,
    find_similar,
    open_run,
    run_stage,
)
from rlprune_jax.runs.run_directory import read_of_run
from rlprune_jax.sealed import DamagedFileError, DamageWarning, read_summed, write_sums
from rlprune_jax.study import StudyError, grid
from rlprune_jax.study.results import collect, read_table, write_table
from rlprune_jax.study.store import CorruptChunkWarning, Store
from rlprune_jax.training.array_cache import read_arrays, write_arrays
from rlprune_jax.workflow.results import PruneResult, ResultError

REFUSED = (RunDirectoryError, CheckpointError, StudyError, DamagedFileError, ExportError)
SAID = (DamageWarning, CorruptChunkWarning, RuntimeWarning)
OPTIONS = StageOptions(chunk=1, save_seconds=1e9)


def outcome(use, *args):
    """What comes out, or None where it was refused; and whether a word was said."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = use(*args)
        except REFUSED as error:
            assert "\n" not in str(error) and len(str(error)) > 20
            return None, True
    return found, any(issubclass(each.category, SAID) for each in told)


def attack(folder, name, use, count=COUNT, must_notice=0.5):
    """Damage a file of a folder in many ways, each in a copy."""
    whole, said = outcome(use, shutil.copytree(folder, folder.with_name("whole")))
    shutil.rmtree(folder.with_name("whole"))
    assert whole is not None and not said
    content, noticed, tried = (folder / name).read_bytes(), 0, 0
    silent = []
    for what, changed in damages(content, count):
        if changed == content:  # zeros where there were zeros
            continue
        tried += 1
        copy = shutil.copytree(folder, folder.with_name("copy"))
        (copy / name).write_bytes(changed)
        found, said = outcome(use, copy)
        shutil.rmtree(copy)
        noticed += said
        if found is not None and found != whole:
            silent.append((what, found))
    assert silent == []
    assert noticed >= must_notice * tried


def counting(total):
    """Go through a stage of a run and return all that it leaves."""

    def advance(state, start, count):
        state = {"sum": state["sum"] + count * jnp.arange(3.0), "step": state["step"] + count}
        return state, [(start + count, {"loss": 1 / (start + count), "costs": [0.5, 0.25]})]

    def use(folder):
        with open_run(folder, "count", {"seed": 0, "total": 9}) as run:
            if run.is_finished:
                return run.result()
            first = {"sum": jnp.zeros(3), "step": 0}
            state = run_stage(run, "counting", first, total, advance, OPTIONS)
            run.write_result({"sum": state["sum"].tolist(), "rows": run.metrics("counting")})
            return run.result()

    return use


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and one that was killed on its way, of the same settings."""
    root = tmp_path_factory.mktemp("runs")
    whole = counting(9)(root / "finished")
    (path,) = (root / "finished").iterdir()
    # Killed after five of nine steps.
    counting(5)(root / "begun")
    (begun,) = (root / "begun").iterdir()
    (begun / "result.json").unlink()
    assert counting(9)(shutil.copytree(root / "begun", root / "again")) == whole
    return root, path.name


@pytest.mark.parametrize("state", ["begun", "finished"])
@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_files_of_a_run(runs, state, file):
    root, name = runs
    # Blanks between the words of JSON may change without a word.
    attack(root / state, f"{name}/{file}", counting(9), must_notice=0.7)


def test_the_result_of_a_run(runs):
    root, name = runs
    attack(root / "finished", f"{name}/result.json", counting(9), must_notice=0.7)


def test_checkpoints_of_a_run(runs):
    root, name = runs
    folder = root / "begun" / name / "checkpoints"
    files = [each for each in sorted(folder.rglob("*")) if each.is_file()]
    for file in files:
        place = file.relative_to(root / "begun").as_posix()
        # Much of what Orbax writes nobody reads.
        attack(root / "begun", place, counting(9), max(COUNT // len(files), 2), must_notice=0.0)


def test_a_checkpoint_of_another_run_is_refused(runs, tmp_path):
    root, name = runs
    other = shutil.copytree(root / "begun", tmp_path / "runs")
    with open_run(tmp_path / "other", "count", {"seed": 1, "total": 9}) as run:
        first = {"sum": jnp.ones(3), "step": 0}
        run_stage(run, "counting", first, 5, lambda s, a, n: (s, []), OPTIONS)
    shutil.rmtree(other / name / "checkpoints")
    shutil.copytree(run.checkpoints, other / name / "checkpoints")
    with pytest.raises(CheckpointError, match=r"it belongs to '.*/counting', not to"):
        counting(9)(other)


def test_rows_of_another_run_are_computed_again(runs, tmp_path):
    root, name = runs
    copy = shutil.copytree(root / "begun", tmp_path / "runs")
    with open_run(tmp_path / "other", "count", {"seed": 1, "total": 9}) as run:
        for step in range(1, 6):
            run.append_metrics("counting", step, {"loss": 7.0})
    shutil.copy(run.path / "metrics.jsonl", copy / name / "metrics.jsonl")
    with pytest.warns(DamageWarning, match="computed again"):
        found = counting(9)(copy)
    assert found == counting(9)(root / "finished")


@pytest.mark.parametrize("lost", ["first", "middle", "last", "all", "order"])
def test_rows_that_are_lost_are_computed_again(runs, tmp_path, lost):
    root, name = runs
    copy = shutil.copytree(root / "begun", tmp_path / "runs")
    file = copy / name / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    left = {
        "first": lines[1:],
        "middle": [*lines[:2], *lines[3:]],
        "last": lines[:-1],
        "all": [],
        "order": [lines[1], lines[0], *lines[2:]],
    }[lost]
    file.write_text("".join(left))
    with pytest.warns(DamageWarning):
        found = counting(9)(copy)
    assert found == counting(9)(root / "finished")


def test_stages_of_a_damaged_run_are_not_adopted_unseen(runs, tmp_path):
    root, name = runs
    expected = [row["loss"] for row in counting(9)(root / "finished")["rows"]]
    file = root / "finished" / name / "metrics.jsonl"
    for number, (_, changed) in enumerate(damages(file.read_bytes(), 10)):
        place = shutil.copytree(root / "finished", tmp_path / str(number))
        (place / name / "metrics.jsonl").write_bytes(changed)

        def use(place):
            config = {"seed": 0, "total": 12}
            found = find_similar(place, "count", config, differing=("total",))
            with open_run(place, "count", config) as run:
                for source in found:
                    adopt_stages(run, source, ["counting"])

                def advance(state, start, count):
                    return state, [(start + count, {"loss": 1 / (start + count), "costs": []})]

                first = {"sum": jnp.zeros(3), "step": 0}
                run_stage(run, "counting", first, 9, advance, OPTIONS)
                return [row["loss"] for row in run.metrics("counting")]

        found, _ = outcome(use, place)
        assert found is None or found == expected


def test_files_beside_the_result(tmp_path):
    with open_run(tmp_path / "runs", "x", {}) as run:
        for name in ("report.html", "table.csv", "history.npz"):
            (run.path / name).write_bytes(name.encode() * 40)
        run.write_result({"accuracy": 0.5})

    def use(folder):
        with open_run(folder, "x", {}) as opened:
            return opened.result()

    def read(folder):
        return read_of_run(folder / run.path.name, "history.npz")

    for name in ("report.html", "table.csv", "history.npz"):
        attack(tmp_path / "runs", f"{run.path.name}/{name}", use, must_notice=1.0)
    attack(tmp_path / "runs", f"{run.path.name}/history.npz", read, must_notice=1.0)


IDENTITY = {
    **{"job": "work", "settings": {"a": [1.0, 2.0, 3.0, 4.0]}, "seeds": [0, 1]},
    **{"static": [], "identity": None, "metrics": [["value"]]},
}


def study(folder):
    """Open a study, compute what is missing, and return all of it."""
    with Store(folder, IDENTITY, values="v") as store:
        missing = sorted(set(range(8)) - store.done())
        for cell in missing:
            store.save(
                {
                    "cell": np.array([cell]),
                    "seconds": np.full(1, 0.5),
                    "metric/value": np.full(1, 10.0 + cell),
                }
            )
        if store.measured("{}") is None:
            store.keep_measured("{}", {"strategy": "map"})
        about = {"strategies": {}, "compile_seconds": 0.0, "cells_run": 0, "corrupt": ()}
        found = collect(grid({"a": [1.0, 2.0, 3.0, 4.0]}), (0, 1), store.chunks, **about)
        return found.metrics["value"].tolist(), found.seconds.tolist(), store.measured("{}")


def test_files_of_a_study(tmp_path):
    study(tmp_path / "study")
    files = [each for each in sorted((tmp_path / "study").rglob("*")) if each.stat().st_size]
    names = [each.relative_to(tmp_path / "study").as_posix() for each in files if each.is_file()]
    kinds = {name.partition("/")[0]: name for name in names}
    assert set(kinds) == {"study.json", "values-0.json", "measured-0.json", "chunks"}
    for kind, name in kinds.items():
        # Measurements that are damaged are made anew, which changes nothing but the time.
        notice = {"chunks": 0.9, "study.json": 0.7}.get(kind, 0.0)
        attack(tmp_path / "study", name, study, must_notice=notice)


def test_tables(tmp_path):
    columns = {"a": np.arange(40.0), "value": np.linspace(0, 1, 40)}
    (tmp_path / "study").mkdir()
    write_table(tmp_path / "study", "table", columns)
    for name in ("table.parquet", "SHA256SUMS"):
        read = lambda folder: read_table(folder / "table.parquet")  # noqa: E731
        notice = 1.0 if name == "table.parquet" else 0.3
        attack(tmp_path / "study", name, read, must_notice=notice)
    attack(tmp_path / "study", "table.csv", lambda f: read_summed(f / "table.csv"), must_notice=1)


def test_latency_tables(tmp_path):
    times = Timings(*(np.array([[1.0, 2.0], [3.0, 4.0 + n]]) for n in (1, 0, 2)))

    def use(folder):
        found = Stopwatch(folder, 7).remembered(["a layer"], lambda: times, (2, 2))
        return [each.tolist() for each in found]

    use(tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    attack(tmp_path / "cache", file.name, use, must_notice=0.7)


@pytest.mark.parametrize("planted", ["Infinity", "-0.0", "1e308", "NaN", "-1", '"fast"', "null"])
def test_planted_times_are_measured_again(tmp_path, planted):
    from rlprune_jax.sealed import read_sealed, seal_of, write_sealed  # a right checksum

    times = Timings(*(np.array([1.0, 2.0]) for _ in range(3)))
    use = lambda: Stopwatch(tmp_path / "cache", 7).remembered(["a"], lambda: times, (2,))  # noqa: E731
    use()
    (file,) = (tmp_path / "cache").iterdir()
    import json

    kind = seal_of(json.loads(file.read_text()))["kind"]
    content = read_sealed(file, kind)
    value = json.loads(planted)
    content["upper"] = [1.0, value]
    if isinstance(value, float) and not np.isfinite(value):
        file.write_text(json.dumps(content))  # which a sealed file cannot hold
    else:
        write_sealed(file, content, kind, file.stem)
    with pytest.warns(RuntimeWarning, match="measured again"):
        found = use()
    np.testing.assert_array_equal(found.upper, times.upper)


def test_cached_data(tmp_path):
    arrays = {"images": np.arange(96, dtype=np.uint8).reshape(6, 4, 4), "labels": np.arange(6)}
    write_arrays(tmp_path / "cache" / "x.arrays", arrays)

    def use(folder):
        found = read_arrays(folder / "x.arrays")
        return {name: each.tolist() for name, each in (found or arrays).items()}

    attack(tmp_path / "cache", "x.arrays", use, must_notice=1.0)
    # That of another data set under this name.
    write_arrays(tmp_path / "cache" / "y.arrays", arrays)
    shutil.copy(tmp_path / "cache" / "y.arrays", tmp_path / "cache" / "x.arrays")
    with pytest.warns(RuntimeWarning, match=r"belongs to 'y\.arrays'"):
        assert read_arrays(tmp_path / "cache" / "x.arrays") is None


def apply(variables, x):
    return jax.nn.relu(x @ variables["a"]) @ variables["b"]


VARIABLES = {
    "a": jnp.linspace(-1, 1, 12).reshape(3, 4),
    "b": jnp.linspace(1, 2, 8).reshape(4, 2),
}


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """A folder of a slim network, and its graph."""
    folder = tmp_path_factory.mktemp("export") / "slim"
    folder.mkdir()
    graph = trace_graph(apply, VARIABLES, jnp.ones((2, 3)))
    gates = {graph.names[0]: jnp.array([1.0, 0, 1, 1])}
    variables = compact(graph, VARIABLES, gates)
    artifact = export_stablehlo(apply, variables, np.ones((2, 3), np.float32), platforms="cpu")
    save_weights(folder / "weights.safetensors", variables)
    write_plan(folder / "plan.json", make_plan(gates, VARIABLES, variables))
    write_atomically(folder / "model.stablehlo", artifact.content)
    write_atomically(folder / "README.txt", "How to load what lies here.\n" * 9)
    write_sums(folder, [file.name for file in folder.iterdir()])
    return folder, graph


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json"])
def test_weights_and_plan(slim, name):
    folder, graph = slim

    def use(place):
        found = restore_slim(place, apply, graph)
        leaves = {path: np.asarray(leaf).tolist() for path, leaf in found.variables.items()}
        return leaves, {group: gate.tolist() for group, gate in found.gates.items()}

    attack(folder, name, use, must_notice=0.7)


def test_weights_alone(slim):
    from rlprune_jax.export import load_weights

    folder, _ = slim

    def use(place):
        found = load_weights(place / "weights.safetensors")
        return {path: np.asarray(leaf).tolist() for path, leaf in found.items()}

    attack(folder, "weights.safetensors", use, must_notice=0.9)


def test_the_exported_network(slim):
    folder, _ = slim
    load_stablehlo(folder / "model.stablehlo")
    for name in ("model.stablehlo", "plan.json"):
        use = lambda place: bool(load_stablehlo(place / "model.stablehlo"))  # noqa: E731
        # Noticed before JAX sees any of it, since some would end the process; but for blanks of
        # the seal itself.
        attack(folder, name, use, must_notice=0.95 if name == "model.stablehlo" else 0.7)


def test_an_exported_network_of_another_run_is_refused(slim, tmp_path):
    folder, _ = slim
    copy = shutil.copytree(folder, tmp_path / "slim")
    other = jax.tree.map(lambda leaf: leaf + 1, VARIABLES)
    artifact = export_stablehlo(apply, other, np.ones((2, 3), np.float32), platforms="cpu")
    (copy / "model.stablehlo").write_bytes(artifact.content)
    with pytest.raises(ExportError, match="belongs to"):
        load_stablehlo(copy / "model.stablehlo")


def test_text_beside_an_export(slim):
    folder, _ = slim
    attack(folder, "README.txt", lambda place: read_summed(place / "README.txt"), must_notice=1.0)


def test_results_that_are_read_by_themselves(tmp_path):
    from rlprune_jax.sealed import write_sealed
    from rlprune_jax.workflow.results import NetworkResult

    network = NetworkResult(metric=0.5, params=10, macs=20)
    known = {"metric_name": "accuracy", "dense": network, "pruned": network, "baselines": {}}
    known |= {"budgets": [], "search": {"evaluations": 8}, "max_abs_diff": 0.0, "groups": {"a": 3}}
    known |= {"seed": 0, "seconds": 1.5, "versions": {"jax": "0"}, "device": {"platform": "cpu"}}
    (tmp_path / "run").mkdir()
    write_sealed(tmp_path / "run" / "result.json", PruneResult(**known).to_json(), "result")

    def use(folder):
        try:
            return PruneResult.read(Path(folder)).to_json()
        except ResultError as error:
            raise DamagedFileError(str(error)) from None

    attack(tmp_path / "run", "result.json", use, must_notice=0.7)


def storage(folder):
    """Tell three trials to a journal, unless they are there, and return what was told."""
    from rlprune_jax.study import optuna_workers
    from rlprune_jax.study.settings import Uniform

    with optuna_workers.Worker(str(folder / "journal")) as worker:
        study = worker.open_study("s", True, 0)
        if not study.trials:
            optuna_workers._fill(study, 3)
            for trial in worker.ask(study, {"a": Uniform(0.0, 1.0)}, 3):
                chunk = {"cell": np.zeros(1, np.int64), "seconds": np.ones(1)}
                chunk["metric/value"] = np.full(1, 0.5)
                about = {"strategies": {}, "compile_seconds": 0.0, "cells_run": 0, "corrupt": ()}
                found = collect(grid({"a": [0.5]}), (0,), [chunk], **about)
                objective = optuna_workers.StudyObjective("value", True, {})
                optuna_workers._tell(study, trial, found, 0, objective)
        if len(study.get_trials(states=[optuna_workers.TrialState.COMPLETE])) < 3:
            raise StudyError("a trial was lost, which the worker would compute again")
        found = optuna_workers.study_result(study, (0,))
    return found.settings.columns, found.metrics["value"].tolist(), found.seconds.tolist()


def test_a_journal(tmp_path):
    storage(tmp_path / "storage")
    attack(tmp_path / "storage", "journal", storage, must_notice=0.5)
