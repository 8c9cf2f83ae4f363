"""Nothing from a run directory, a cache or a storage is unpickled, evaluated or imported."""

import ast
import io
import json
import os
import pickle
import sys
import warnings
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rlprune_jax
from rlprune_jax import trace_graph
from rlprune_jax.costs.timings import Stopwatch, Timings
from rlprune_jax.export import load_stablehlo, load_weights, read_plan, restore_slim
from rlprune_jax.runs import (
    Checkpointer,
    StageOptions,
    find_similar,
    open_run,
    read_checkpoint,
    read_config,
    read_of_run,
    run_stage,
)
from rlprune_jax.sealed import read_summed
from rlprune_jax.study import optuna_workers
from rlprune_jax.study.results import read_table, write_table
from rlprune_jax.study.store import Store
from rlprune_jax.training.array_cache import read_arrays, write_arrays
from rlprune_jax.workflow.results import PruneResult

ROOT = Path(rlprune_jax.__file__).parents[1]
FOLDERS = ("rlprune_jax", "experiments", "benchmarks", "examples")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} | {
    *("yaml", "runpy", "code", "codeop", "jsonpickle", "imp")
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
IMPORTING = {"import_module", "spec_from_file_location", "exec_module", "load_module"}
MAY_IMPORT = {
    "rlprune_jax/lazy.py": "names of this package",
    "rlprune_jax/cli/main.py": "subcommands of this package",
    "rlprune_jax/costs/registry.py": "costs of this package",
    "rlprune_jax/costs/host.py": "what the user names on the command line",
    "benchmarks/checked_networks/__init__.py": "modules of this folder",
}
DESERIALIZING = {"rlprune_jax/export/stablehlo.py": "after its checksum; programs without code"}


@cache
def calls():
    """Every call and import of our code, with its file."""
    found = []
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            found += [(name, node) for node in ast.walk(ast.parse(file.read_text()))]
    return found


def called(node):
    """``a.b.c(...)`` is "c" with its keywords; None for all else."""
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return getattr(function, "id", None)


def test_nobody_imports_what_unpickles():
    for name, node in calls():
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not {each.partition(".")[0] for each in names} & FORBIDDEN_MODULES, name


def test_nobody_evaluates():
    for name, node in calls():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, (name, node.lineno)


def test_modules_are_imported_by_name_in_few_places():
    users = {name for name, node in calls() if called(node) in IMPORTING}
    assert users == set(MAY_IMPORT)


def test_arrays_are_read_without_pickles():
    for name, node in calls():
        if not isinstance(node, ast.Call):
            continue
        given = {each.arg: each.value for each in node.keywords}
        allowed = getattr(given.get("allow_pickle"), "value", None)
        assert allowed is not True, (name, node.lineno)
        if ast.unparse(node.func) in ("np.load", "numpy.load"):
            assert allowed is False, (name, node.lineno)


def test_programs_are_deserialized_in_one_place():
    named = ("deserialize", "deserialize_and_load", "deserialize_executable")
    users = {name for name, node in calls() if called(node) in named}
    assert users - {"rlprune_jax/export/weights.py"} == set(DESERIALIZING)  # safetensors' own


class Bomb:
    """What runs code where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


EVENTS: list[tuple[str, str]] = []
WATCHED: list[str] = []


def hook(event, given):
    """Note what is unpickled, and whatever of a watched folder is imported or compiled."""
    if not WATCHED:
        return
    if event == "pickle.find_class":
        EVENTS.append((event, str(given)))
    elif event in ("import", "compile", "exec"):
        code = given[0]
        text = " ".join(map(str, (getattr(code, "co_filename", ""), *given[1:2])))
        if WATCHED[0] in text:
            EVENTS.append((event, text))


sys.addaudithook(hook)


@pytest.fixture
def watched(tmp_path):
    """Note what is executed during a test."""
    EVENTS.clear()
    WATCHED.append(str(tmp_path))
    yield EVENTS
    WATCHED.clear()


def test_the_watch_would_notice(tmp_path, watched):
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    assert (tmp_path / "ran").is_dir() and watched[0][0] == "pickle.find_class"
    (tmp_path / "planted_by_test.py").write_text("")
    code = compile("1", str(tmp_path / "planted_by_test.py"), "eval")
    eval(code)
    assert {event for event, _ in watched} >= {"pickle.find_class", "exec"}


def apply(variables, x):
    return jnp.tanh(x @ variables["a"]) @ variables["b"]


SHAPES = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
IDENTITY = {"settings": {"a": [1.0]}, "seeds": [0], "metrics": [["value"]]}


def loaders(root):
    """Every function that reads what lies on disk, on a folder of its own."""
    times = Timings(*(np.ones(2) for _ in range(3)))
    graph = trace_graph(apply, SHAPES, jnp.ones((2, 3)))

    def run():
        with open_run(root / "runs", "x", {"seed": 0}) as opened:
            state = {"w": jnp.zeros(2)}
            advance = lambda state, start, count: (state, [(start + count, {})])  # noqa: E731
            run_stage(opened, "s", state, 2, advance, StageOptions())
            opened.write_result({"accuracy": 0.5})

    def restored():
        with Checkpointer(root / "checkpoints") as checkpointer:
            if checkpointer.latest_step() is None:
                checkpointer.save(1, {"w": jnp.ones(2)})
            checkpointer.restore({"w": jnp.zeros(2)})

    def study():
        with Store(root / "study", IDENTITY) as store:
            chunk = {"cell": np.zeros(1, np.int64), "seconds": np.ones(1)}
            store.save(chunk | {"metric/value": np.ones(1)})
            store.keep_measured("{}", {"strategy": "map"})
        Store(root / "study", IDENTITY).close()

    def table():
        (root / "table").mkdir(exist_ok=True)
        if not (root / "table" / "t.parquet").exists():
            write_table(root / "table", "t", {"a": np.arange(3.0)})
        read_table(root / "table" / "t.parquet")

    def cached():
        if not (root / "cache" / "x.arrays").exists():
            write_arrays(root / "cache" / "x.arrays", {"x": np.ones(2)})
        read_arrays(root / "cache" / "x.arrays")

    def journal():
        with optuna_workers.Worker(str(root / "journal" / "log")) as worker:
            study = optuna_workers.optuna.create_study(
                storage=worker.storage, study_name="s", load_if_exists=True
            )
            study.enqueue_trial({"a": 1.0}, user_attrs={"slot": 0})
            study.get_trials()

    slim = root / "slim"
    return {
        "run": run,
        "config": lambda: [read_config(path) for path in (root / "runs").iterdir()],
        "similar": lambda: find_similar(root / "runs", "x", {"seed": 1}, differing=("seed",)),
        "file of a run": lambda: [read_of_run(p, "r.html") for p in (root / "runs").iterdir()],
        "result": lambda: [PruneResult.read(path) for path in (root / "runs").iterdir()],
        "checkpoint": restored,
        "any checkpoint": lambda: read_checkpoint(root / "checkpoints"),
        "study": study,
        "table": table,
        "timings": lambda: Stopwatch(root / "latency", 3).remembered(["a"], lambda: times, (2,)),
        "cache": cached,
        "journal": journal,
        "database": lambda: optuna_workers.Worker(f"sqlite:///{root}/study.db").close(),
        "weights": lambda: load_weights(slim / "weights.safetensors"),
        "plan": lambda: read_plan(slim / "plan.json"),
        "slim": lambda: restore_slim(slim, apply, graph),
        "stablehlo": lambda: load_stablehlo(slim / "model.stablehlo"),
        "sums": lambda: read_summed(slim / "README.txt"),
    }


def bombs(place):
    """Files that run code in readers which are too trusting."""
    plain = pickle.dumps(Bomb(place))
    arrays, array = io.BytesIO(), io.BytesIO()
    np.savez(arrays, cell=np.array([Bomb(place)], object))
    np.save(array, np.array([Bomb(place)], object))
    source = f"import os; os.mkdir({place!r})\n"
    tagged = f"!!python/object/apply:os.mkdir ['{place}']\n"
    typed = json.dumps({"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [place]}]})
    texts = (each.encode() for each in (source, tagged, typed))
    return [plain, arrays.getvalue(), array.getvalue(), *texts]


def test_no_loader_executes_what_lies_there(tmp_path, watched):
    slim = tmp_path / "slim"
    slim.mkdir()
    for name in ("weights.safetensors", "plan.json", "model.stablehlo", "README.txt", "SHA256SUMS"):
        (slim / name).write_bytes(b"{}")
    for load in loaders(tmp_path).values():  # makes the files, where it can
        attempt(load)
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    assert len(files) > 20
    ran = str(tmp_path / "ran")
    for bomb in bombs(ran):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bomb)
        # Modules that an import from here would find.
        for name in ("numpy", "json", "orbax", "optuna"):
            (tmp_path / f"{name}.py").write_text(f"import os; os.mkdir({ran!r})\n")
        for name, load in loaders(tmp_path).items():
            attempt(load)
            assert not Path(ran).exists(), name
    assert watched == []


def attempt(load):
    """Call a loader; it may refuse, in whatever words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load()
        except Exception:
            return
