"""``rlprune prune``: the contract of its files, refusals, resumption, extension, own networks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlprune_jax.cli import prune as command
from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import PruneOptions, resolved
from rlprune_jax.cli.predict import PredictOptions, predict
from rlprune_jax.cli.prune import exit_code, identity, prune
from rlprune_jax.export import load_stablehlo
from rlprune_jax.origin import StaleWarning
from rlprune_jax.runs import RunDirectory, RunDirectoryError, config_hash
from rlprune_jax.sealed import read_sealed, write_sealed
from rlprune_jax.training import data
from rlprune_jax.workflow.config import RunConfig
from rlprune_jax.workflow.results import PruneResult

ROOT = Path(__file__).parents[2]
TINY = {
    **{"model": "mlp", "widths": (12, 16), "dense_steps": 40, "evaluations": 32, "candidates": 8},
    **{"rerank": 2, "rerank_steps": 5, "finetune_steps": 20, "batch_size": 64},
    **{"reward_images": 64, "save_seconds": 0.0, "budget": ("params=0.5", "macs=0.6")},
    "baselines": ("uniform", "random_search"),
}


def tiny(runs, **changed):
    return PruneOptions().replace(**TINY | {"runs_dir": str(runs)} | changed)


@pytest.fixture(scope="module", autouse=True)
def cache():
    before = os.environ.get("RLPRUNE_CACHE_DIR")
    os.environ["RLPRUNE_CACHE_DIR"] = str(Path(os.environ["RLPRUNE_TEST_CACHE"]) / "rlprune")
    yield
    os.environ.pop("RLPRUNE_CACHE_DIR")
    if before is not None:
        os.environ["RLPRUNE_CACHE_DIR"] = before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, prune(tiny(runs))


def read(path):
    return json.loads((path / "result.json").read_text())


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_files_and_result_keep_the_contract(finished):
    _, path = finished
    result = read(path)
    assert set(result["dense"]) >= {"accuracy", "params", "macs"}
    assert set(result["pruned"]) >= {"accuracy", "params", "macs", "latency_ms"}
    assert [(b["name"], b["limit"], b["satisfied"]) for b in result["budgets"]] == [
        ("params", 0.5, True),
        ("macs", 0.6, True),
    ]
    for budget in result["budgets"]:
        key = budget["name"]
        assert result["pruned"][key] <= budget["limit"] * result["dense"][key]
        assert budget["achieved"] == result["pruned"][key] / result["dense"][key]
    assert set(result["search"]) >= {
        *("evaluations", "seconds", "compile_seconds", "candidates_per_second"),
        "feasible_fraction",
    }
    assert result["search"]["evaluations"] == 32
    assert set(result["baselines"]) == {"uniform", "random_search"}
    for baseline in result["baselines"].values():
        assert baseline["params"] <= 0.5 * result["dense"]["params"]
        assert baseline["macs"] <= 0.6 * result["dense"]["macs"]
    assert result["equivalence"]["max_abs_diff"] <= 1e-4
    assert {"seed", "versions", "device"} <= set(result)
    assert (result["model"], result["dataset"], result["metric"]) == ("mlp", "digits", "accuracy")
    page = (path / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "mlp on digits, pruned to params ≤ 50 % and macs ≤ 60 %" in page
    stages = {record["stage"] for record in records(path)}
    assert {"dense", "search-agent", "finetune-agent", "search-random_search"} <= stages
    for name in ("weights.safetensors", "plan.json", "model.stablehlo"):
        assert (path / "slim" / name).stat().st_size > 0
    with np.load(path / "history.npz") as stored:
        assert stored["agent/rewards"].shape == (32,) and stored["agent/costs"].shape == (32, 2)


@pytest.mark.slow
def test_the_artifact_takes_raw_images_and_reproduces_the_accuracy(finished):
    _, path = finished
    test = data.load("digits").test
    logits = load_stablehlo(path / "slim" / "model.stablehlo")(test.images)
    accuracy = np.mean(np.argmax(logits, 1) == test.labels)
    assert accuracy == pytest.approx(read(path)["pruned"]["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_finished_run_is_found_and_not_done_again(finished, capsys):
    runs, path = finished
    before = (path / "result.json").stat().st_mtime_ns
    # Neither where it lies nor how often it is saved makes another run of it.
    assert prune(tiny(runs, save_seconds=5.0)) == path
    assert "finished before" in capsys.readouterr().err
    assert (path / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_network_is_repaired_and_not_trained(finished, tmp_path, capsys):
    _, short = finished
    shutil.copytree(short, tmp_path / short.name)  # what is found there goes on from it
    path = prune(tiny(tmp_path, finetune_steps=0, rerank_steps=None, rerank=1))
    assert "goes on from" in capsys.readouterr().err
    assert all("finetune" not in record["stage"] for record in records(path))
    result = read(path)
    assert all(budget["satisfied"] for budget in result["budgets"])
    assert result["equivalence"]["max_abs_diff"] <= 1e-4
    test = data.load("digits").test
    logits = load_stablehlo(path / "slim" / "model.stablehlo")(test.images)
    accuracy = np.mean(np.argmax(logits, 1) == test.labels)
    assert accuracy == pytest.approx(result["pruned"]["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_finished_run_is_extended(finished, capsys):
    runs, short = finished

    path = prune(tiny(runs, evaluations=48, baselines=("random_search",)))
    assert "goes on from" in capsys.readouterr().err
    before, after = read(short), read(path)
    assert after["extends"] == short.name and "extends" not in before
    assert after["search"]["evaluations"] == 48
    assert after["dense"]["accuracy"] == before["dense"]["accuracy"]
    # Of the dense network and the first iterations nothing is done again, as their times tell.
    for stage, done in (("dense", None), ("search-agent", 4)):
        old, new = (
            [record for record in records(each) if record["stage"] == stage]
            for each in (short, path)
        )
        assert new[:done] == old
    assert after["search"]["best_held_out_reward"] >= before["search"]["best_held_out_reward"]
    with np.load(short / "history.npz") as old, np.load(path / "history.npz") as new:
        for method in ("agent", "random_search"):
            np.testing.assert_array_equal(new[f"{method}/rewards"][:32], old[f"{method}/rewards"])
            assert len(new[f"{method}/rewards"]) == 48
    # One with fewer evaluations takes the dense network alone.
    (runs / "new").mkdir()
    with RunDirectory(runs / "new", {}, FreeLock()) as run:
        options = resolved(tiny(runs, evaluations=16))
        command.extend(run, options, identity(options))
        assert [each.name for each in run.checkpoints.iterdir()] == ["dense"]


class FreeLock:
    """Stands for a lock that nobody holds."""

    is_locked = False


@pytest.fixture
def killed(tmp_path):
    """A run that was killed in the agent's search, and its options."""
    options = tiny(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rlprune_jax.cli.options import PruneOptions\n"
        "from rlprune_jax.cli.prune import prune\n"
        f"prune(PruneOptions().replace(**{TINY | {'runs_dir': str(tmp_path)}}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list(tmp_path.glob("*/metrics.jsonl"))
        if found and '"stage": "search-agent"' in found[0].read_text():
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return options


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(finished, killed):
    _, whole = finished
    path = prune(killed)
    again, first = read(path), read(whole)
    for key in ("dense", "pruned", "baselines"):
        for entry in (first[key], again[key]):
            entry.pop("latency_ms", None)
            entry.pop("latency_ms_by_batch", None)
        assert again[key] == first[key]
    steps = [(record["stage"], record["step"]) for record in records(path)]
    assert len(steps) == len(set(steps))


@pytest.mark.slow
def test_predict_reproduces_the_metric(finished, tmp_path):
    _, path = finished
    line = predict(PredictOptions(run_dir=path))
    assert line["reproduced"]
    assert line["accuracy"] == line["stablehlo_accuracy"] == read(path)["pruned"]["accuracy"]
    assert line["params"] == read(path)["pruned"]["params"]
    changed = shutil.copytree(path, tmp_path / "changed")
    plan = (changed / "slim" / "plan.json").read_text()
    (changed / "slim" / "plan.json").write_text(plan.replace('"width": ', '"width": 1'))
    with pytest.raises(ValueError, match=r"plan\.json"):
        predict(PredictOptions(run_dir=changed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda content: [], r"config\.json holds a list"),
        ("config.json", lambda content: content | {"model": "nonet"}, "model='nonet' is unknown"),
        ("config.json", lambda content: content | {"model": {}}, r"model=\{\} cannot be"),
        ("config.json", lambda content: {"seed": 0}, "has no 'model'"),
        (
            "result.json",
            lambda content: {k: v for k, v in content.items() if k != "pruned"},
            "no whole result of a pruning run",
        ),
    ],
)
def test_a_bad_run_directory_is_one_line(finished, tmp_path, file, change, message):
    _, path = finished
    for name in ("config.json", "result.json"):
        shutil.copy(path / name, tmp_path / name)
    kind = file.removesuffix(".json")
    changed = change(read_sealed(tmp_path / file, kind))
    if isinstance(changed, dict):
        write_sealed(tmp_path / file, changed, kind)
    else:
        (tmp_path / file).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=message) as caught:
        predict(PredictOptions(run_dir=tmp_path))
    assert "\n" not in str(caught.value)


OWN = """
import jax, jax.numpy as jnp
import numpy as np
from rlprune_jax import Network, regression

def network(example):
    keys = jax.random.split(jax.random.key(0))
    v = {"a": jax.random.normal(keys[0], (3, 8)), "b": jax.random.normal(keys[1], (8, 1))}
    return Network(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], v, example)

def task():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    y = np.maximum(x, 0).sum(1, keepdims=True)
    return regression((x, y), (x, y), (x, y))

def nothing(outputs, batch):
    return jnp.nan * outputs.sum()

def energy(widths, gates):
    assert {name: int(gate.sum()) for name, gate in gates.items()} == widths
    return sum(-(-width // 4) for width in widths.values())
"""

OWN_OPTIONS = {
    **{"model": "pruned_of_test:network", "dataset": "pruned_of_test:task"},
    **{"evaluations": 8, "candidates": 4, "baselines": (), "rerank": 1, "widths": ()},
    **{"dense_steps": None, "budget": ("params=20", "weight_bytes=1kB")},
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "pruned_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "pruned_of_test", raising=False)
    return tmp_path


DECODER = """
from rlprune_jax.models import create_model

def network(num_classes): return create_model("gpt", num_classes, depth=1, width=1 / 16)
"""


@pytest.mark.slow
def test_a_language_model_within_bytes_of_keys_and_values(tmp_path, monkeypatch):
    (tmp_path / "decoder_of_test.py").write_text(DECODER)
    monkeypatch.chdir(tmp_path)
    changed = {
        **{"dataset": "text", "model": "decoder_of_test:network", "widths": (), "batch_size": 16},
        **{"budget": ("params=0.9", "macs=0.8", "kv_cache_bytes=0.7"), "baselines": ()},
        **{"dense_steps": 20, "evaluations": 16, "reward_images": 16, "rerank": 1},
    }
    path = prune(tiny(tmp_path, **changed))
    result = PruneResult.read(path)
    assert result.metric_name == "negative_loss_per_token" and result.is_within_budgets
    by_name = {budget["name"]: budget for budget in result.budgets}
    kept = result.pruned.kept
    heads, keys, values = (
        kept[f"block1/attention/{part}"] for part in ("query", "query#2", "value")
    )
    assert by_name["kv_cache_bytes"]["count"] == 4 * heads * (keys + values)
    text = str(result)
    assert "loss per token" in text and f"{-result.pruned.metric:.4g}" in text
    assert "negative" not in text
    page = (path / "report.html").read_text()
    assert "test loss per token" in page and "test negative" not in page
    assert predict(PredictOptions(run_dir=path))["reproduced"]


@pytest.mark.slow
def test_a_network_and_a_task_of_the_users_within_costs_of_all_kinds(own):
    # Times say nothing here: these limits are far off, and what is tried is that all of it works.
    budgets = ("params=20", "weight_bytes=1kB", "activation_memory=1", "tiled_macs=1")
    times = ("latency_table=10000", "latency=10000")
    functions = {"budget": budgets + times, "budget_fn": ("pruned_of_test:energy=1",)}
    measuring = {"latency_batch": 4, "latency_steps": 2, "round_to": 4}
    path = prune(tiny("runs", **OWN_OPTIONS | functions | measuring))
    result = PruneResult.read(path)
    assert result.metric_name == "negative_loss" and result.is_within_budgets
    assert "dense" not in {record["stage"] for record in records(path)}
    by_name = {budget["name"]: budget for budget in result.budgets}
    # Four units of three inputs and one output.
    assert result.pruned.kept == {"a": 4} and by_name["params"]["achieved"] == 16
    assert by_name["pruned_of_test:energy"]["achieved"] == 1
    low, high = by_name["latency"]["quartiles"]
    assert low <= by_name["latency"]["achieved"] <= high
    assert by_name["latency"]["remeasured_ms"]["median"] > 0
    assert set(result.pruned.latency_ms) == {1, 4, 128}
    size = (path / "slim" / "weights.safetensors").stat().st_size
    assert result.pruned.file_bytes == size < result.dense.file_bytes
    page = (path / "report.html").read_text()
    assert "params ≤ 20 parameters and weight_bytes ≤ 1,000 bytes" in page
    assert "Dense beside slim" in page and "latency, batch 128 (ms)" in page
    assert "pruned_of_test:energy ≤ 1" in page and "test loss" in page
    line = predict(PredictOptions(run_dir=path))
    assert line["reproduced"] and line["params"] == 16
    with pytest.raises(ValueError, match=r"dense_rate=0\.5 would do nothing"):
        prune(tiny("runs", **OWN_OPTIONS, dense_rate=0.5))


def test_a_run_is_named_by_the_code_of_what_is_the_users(own):
    options = tiny("runs", **OWN_OPTIONS, budget_fn=("pruned_of_test:energy=1",))
    first = config_hash(identity(options))
    assert config_hash(identity(options)) == first
    Path("pruned_of_test.py").write_text(OWN + "\n")
    assert config_hash(identity(options)) != first
    assert "code" not in identity(tiny("runs"))


@pytest.mark.slow
def test_a_search_whose_rewards_are_all_nan_says_so(own, capsys):
    options = ("--model", "pruned_of_test:network", "--dataset", "pruned_of_test:task")
    options += ("--metric", "pruned_of_test:nothing", "--budget", "params=20", "--baselines")
    options += ("--evaluations", "8", "--candidates", "4", "--runs-dir", "runs")
    with pytest.raises(SystemExit) as end:
        command.main("rlprune prune", list(options))
    err = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and err[-1].startswith("error: every reward was NaN")
    assert not list(Path("runs").glob("*/result.json"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": ("params=0.0001",)}, "raise the budget to at least"),
        ({"budget": ("params=2",)}, r"min_keep=2 leaves \d+ parameters; raise"),
        ({"budget": ("activation_memory=0.001",)}, r"leaves 0\.\d+ of the bytes; raise"),
        ({"budget_fn": ("json:no_such=1",)}, "cannot be imported"),
        (
            {"min_keep_of": ("nowhere=3",)},
            "min_keep has the key 'nowhere', which is found in no group; the groups are",
        ),
        ({"round_to": 256}, r"round_to=256 leave .* lower min_keep or round_to"),
        ({"model": "vgg11", "widths": ()}, "model='vgg11': images of 8x8 are too small.* pools"),
        ({"dataset": "mnist", "data_dir": str(ROOT)}, "is not in data_dir"),
        ({"metric": "token_accuracy"}, "do not fit the task's metric"),
        ({"ignore": ("zzz",)}, "matches none of the paths"),
        ({"runs_dir": __file__}, "--runs-dir"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(changed, message, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("training started")

    monkeypatch.setattr("rlprune_jax.workflow.learning.run_training", never)
    with pytest.raises((ValueError, OSError), match=message):
        prune(tiny(tmp_path, **changed))


@pytest.mark.slow
def test_a_dense_network_that_diverges_does_not_poison_the_next_start(tmp_path):
    options = tiny(tmp_path, dense_rate=1e30)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stage 'dense' diverged"):
            prune(options)
    assert not list(tmp_path.glob("*/checkpoints/dense/[0-9]*"))


def test_the_exit_code_says_that_slim_and_masked_differ(tmp_path):
    for content, code in (({}, 0), ({"equal": True}, 0), ({"equal": False}, 3)):
        (tmp_path / "result.json").write_text(json.dumps({"equivalence": content}))
        assert exit_code(tmp_path) == code
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda options: tmp_path, RunConfig, "", args=[], code=exit_code)
    assert stopped.value.code == 3


@pytest.mark.slow
def test_a_finished_run_of_other_code_is_refused_or_kept(finished, monkeypatch, capsys):
    runs, path = finished
    with monkeypatch.context() as patch:
        patch.setattr("rlprune_jax.workflow.building.data_digest", lambda task: "other")
        with pytest.raises(RunDirectoryError, match=r"data \(\w+ there, other here\)"):
            prune(tiny(runs))
    monkeypatch.setattr("rlprune_jax.origin.package_digest", lambda: "other")
    with pytest.raises(RunDirectoryError, match=r"other code: code .*--stale redo"):
        prune(tiny(runs))
    with pytest.warns(StaleWarning, match="is kept"):
        assert prune(tiny(runs, stale="keep")) == path
    assert "finished before" in capsys.readouterr().err
