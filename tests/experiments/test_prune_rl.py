"""The experiment as a user runs it: contract of its files, refusals, resumption after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "prune_rl.py"
TINY = (
    *("--model", "mlp", "--widths", "12", "16", "--dense-steps", "40", "--evaluations", "32"),
    *("--candidates", "8", "--rerank", "2", "--rerank-steps", "5", "--finetune-steps", "20"),
    *("--batch-size", "64", "--reward-images", "64", "--save-seconds", "0"),
)
CACHE = Path(os.environ["RLPRUNE_TEST_CACHE"]) / "rlprune"
BUDGETS = ("--budget", "params=0.5", "--budget", "macs=0.6")


def start(*options: str, script: Path = SCRIPT, cwd: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(script), *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200", "RLPRUNE_CACHE_DIR": str(CACHE)},
    )


def run(*options: str, **where: Path) -> tuple[int, str, str]:
    process = start(*options, **where)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    code, out, err = run(*TINY, *BUDGETS, "--runs-dir", str(runs))
    assert code == 0, err
    return runs, Path(out.strip().splitlines()[-1])


@pytest.mark.slow
def test_files_and_result_keep_the_contract(finished):
    _, path = finished
    result = json.loads((path / "result.json").read_text())
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
    assert set(result["baselines"]) == {
        *("uniform", "global_threshold", "random_search", "cross_entropy"),
    }
    for baseline in result["baselines"].values():
        assert baseline["params"] <= 0.5 * result["dense"]["params"]
        assert baseline["macs"] <= 0.6 * result["dense"]["macs"]
    assert result["equivalence"]["max_abs_diff"] <= 1e-4
    assert {"seed", "versions", "device"} <= set(result)
    page = (path / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    stages = {
        json.loads(line)["stage"] for line in (path / "metrics.jsonl").read_text().splitlines()
    }
    assert {"dense", "search-agent", "finetune-agent", "search-random_search"} <= stages
    for name in ("weights.safetensors", "plan.json", "model.stablehlo"):
        assert (path / "slim" / name).stat().st_size > 0


@pytest.mark.slow
def test_slim_artifact_reproduces_the_test_accuracy(finished):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rlprune_jax.training import data
    from rlprune_jax.training.augmentation import normalise

    _, path = finished
    result = json.loads((path / "result.json").read_text())
    content = bytearray((path / "slim" / "model.stablehlo").read_bytes())
    dataset = data.load("digits")
    x = normalise(dataset.test.images, jnp.array(dataset.mean), jnp.array(dataset.std))
    logits = jax.export.deserialize(content).call(x)
    accuracy = np.mean(np.argmax(logits, 1) == dataset.test.labels)
    assert accuracy == pytest.approx(result["pruned"]["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_predict_reproduces_the_accuracy_in_a_fresh_process(finished, tmp_path):
    _, path = finished
    code, out, err = run(str(path), script=SCRIPT.with_name("predict.py"))
    assert code == 0, err
    result = json.loads((path / "result.json").read_text())
    line = json.loads(out.strip().splitlines()[-1])
    assert line["reproduced"] and line["accuracy"] == result["pruned"]["accuracy"]
    assert line["params"] == result["pruned"]["params"]
    changed = shutil.copytree(path, tmp_path / "changed")
    plan = (changed / "slim" / "plan.json").read_text()
    (changed / "slim" / "plan.json").write_text(plan.replace('"width": ', '"width": 1'))
    code, out, err = run(str(changed), script=SCRIPT.with_name("predict.py"))
    assert code == 2 and not out and err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_costs_of_the_device_and_of_the_user_beside_counts(tmp_path):
    (tmp_path / "user_costs.py").write_text(
        "def energy(widths, gates):\n"
        "    assert {name: int(gate.sum()) for name, gate in gates.items()} == widths\n"
        "    return sum(-(-width // 4) for width in widths.values())\n"
    )
    # Times say nothing here: these limits are far off, and what is tried is that all of it works.
    options = (
        *("--budget", "params=0.7", "--budget", "activation_memory=1", "--budget", "tiled_macs=1"),
        *("--budget", "latency_table=10000", "--budget", "latency=10000"),
        *("--budget-fn", "user_costs:energy=5", "--latency-batch", "4", "--latency-steps", "2"),
        *("--baselines", "random_search", "--evaluations", "16", "--runs-dir", "runs"),
        *("--round-to", "4"),
    )
    code, out, err = run(*TINY, *options, cwd=tmp_path)
    assert code == 0, err
    path = tmp_path / out.strip().splitlines()[-1]
    result = json.loads((path / "result.json").read_text())
    by_name = {budget["name"]: budget for budget in result["budgets"]}
    assert all(budget["satisfied"] for budget in by_name.values())
    kept = result["pruned"]["kept"]
    assert all(width % 4 == 0 for width in kept.values())
    energy = sum(-(-width // 4) for width in kept.values())
    assert by_name["user_costs:energy"]["achieved"] == energy <= 5
    low, high = by_name["latency"]["quartiles"]
    assert low <= by_name["latency"]["achieved"] <= high
    assert by_name["latency"]["remeasured_ms"]["median"] > 0
    assert set(result["pruned"]["latency_ms_by_batch"]) == {"1", "4", "128"}
    size = (path / "slim" / "weights.safetensors").stat().st_size
    assert result["pruned"]["file_bytes"] == size < result["dense"]["file_bytes"]
    page = (path / "report.html").read_text()
    assert "Dense beside slim" in page and "latency, batch 128 (ms)" in page
    assert "user_costs:energy ≤ 5" in page


@pytest.mark.slow
def test_a_finished_run_is_found_and_not_done_again(finished):
    runs, path = finished
    before = (path / "result.json").stat().st_mtime_ns
    code, out, err = run(*TINY, *BUDGETS, "--runs-dir", str(runs))
    assert code == 0 and out.strip() == str(path)
    assert "finished" in err
    assert (path / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["search-agent", "finetune-agent"])
def test_a_killed_run_resumes_to_the_same_result(finished, tmp_path, moment):
    _, whole = finished
    options = (*TINY, *BUDGETS, "--runs-dir", str(tmp_path))
    process = start(*options)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list(tmp_path.glob("*/metrics.jsonl"))
        if found and f'"stage": "{moment}"' in found[0].read_text():
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, out, err = run(*options)
    assert code == 0, err
    again = json.loads((Path(out.strip()) / "result.json").read_text())
    first = json.loads((whole / "result.json").read_text())
    for key in ("dense", "pruned", "baselines"):
        for entry in (first[key], again[key]):
            entry.pop("latency_ms", None)
            entry.pop("latency_ms_by_batch", None)
        assert again[key] == first[key]
    steps = [
        (row["stage"], row["step"])
        for row in map(json.loads, (Path(out.strip()) / "metrics.jsonl").read_text().splitlines())
    ]
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": ("flops=0.5",)}, "known budgets: params, macs"),
        ({"budget": ("params=0",)}, r"must be a fraction of the dense network in \(0, 1\]"),
        ({"budget": ("params=1.5",)}, "must be a fraction"),
        ({"budget": ("params=0.0001",)}, "raise the budget to at least"),
        ({"budget": ()}, "no budget is given"),
        ({"budget": ("activation_memory=0.001",)}, r"leaves 0\.\d+ of the bytes; raise"),
        ({"budget_fn": ("no_such_module:f=1",)}, "cannot be imported"),
        ({"budget_fn": ("user_costs",)}, "module:function=LIMIT"),
        ({"tile": (0, 8)}, "tile="),
        ({"cost_seconds": 0}, "cost_seconds=0"),
        ({"round_to": 0}, "round_to=0"),
        ({"round_to_of": ("Conv=two",)}, "round_to_of='Conv=two' is not of the form REGEX=N"),
        ({"min_keep_of": ("(=3",)}, r"min_keep_of=.*is not of the form REGEX=N"),
        (
            {"min_keep_of": ("nowhere=3",)},
            "min_keep_of has the key 'nowhere', .* in no group; the groups are",
        ),
        ({"round_to": 256}, r"round_to=256 leave .* lower min_keep or round_to"),
        ({"model": "transformer"}, "'transformer' is unknown"),
        ({"dataset": "imagenet"}, "choose from digits"),
        ({"dataset": "mnist", "data_dir": "/nowhere"}, "/nowhere"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"evaluations": 8, "candidates": 9}, "exceed evaluations=8"),
        ({"finetune_steps": 0}, "finetune_steps=0"),
        ({"model": "vgg11"}, "pools"),
        ({"granularity": "medium"}, "must be one of"),
        ({"baselines": ("grid",)}, "baselines='grid' is unknown"),
        ({"reward_finetune": ()}, "reward_finetune"),
        ({"runs_dir": SCRIPT}, "--runs-dir"),
    ],
)
def test_what_cannot_be_run_is_refused_before_training(options, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import prune_rl
    from settings import Config

    def never(*args):
        raise AssertionError("training started")

    monkeypatch.setattr(prune_rl, "train_dense", never)
    config = Config(**{"budget": ("params=0.5",), "runs_dir": tmp_path} | options)
    with pytest.raises((ValueError, OSError), match=message):
        prune_rl.prune(config)


def test_a_run_is_named_by_the_code_of_its_functions_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "edited_costs.py"
    file.write_text("def energy(widths, gates):\n    return 1\n")
    import prune_rl
    from settings import Config

    from rlprune_jax.files import to_json
    from rlprune_jax.runs import config_hash

    config = Config(budget_fn=("edited_costs:energy=1",), runs_dir=tmp_path)
    first = config_hash(prune_rl.identity(config))
    assert config_hash(prune_rl.identity(config)) == first
    file.write_text("def energy(widths, gates):\n    return 2\n")
    assert config_hash(prune_rl.identity(config)) != first
    plain = Config(budget=("params=0.5",))
    assert prune_rl.identity(plain) == to_json(plain)


def test_a_number_per_group_is_the_last_that_names_it(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from settings import Config, numbers_of

    config = Config(round_to=8, round_to_of=("Conv=4", "_1$=2"))
    names = ["Conv_0", "Conv_1", "Dense_0"]
    assert numbers_of(config, "round_to", names) == {"Conv_0": 4, "Conv_1": 2, "Dense_0": 8}


def test_a_function_of_the_user_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "failing_costs.py").write_text(
        "def energy(widths, gates):\n    return float('nan') if min(widths.values()) < 2 else 1\n"
    )
    import prune_rl
    from settings import Config

    config = Config(budget_fn=("failing_costs:energy=1",), runs_dir=tmp_path)
    with pytest.raises(RuntimeError, match=r"'failing_costs:energy' of the candidate .* is nan"):
        prune_rl.prune(config)


def test_an_error_is_one_line_and_exit_code_two(tmp_path):
    code, out, err = run("--budget", "params=0.0001", "--runs-dir", str(tmp_path))
    assert code == 2 and not out
    assert err.strip().splitlines()[-1].startswith("error: budget 'params'=0.0001 cannot be met")
    assert "Traceback" not in err


def test_help_explains_every_option():
    code, out, _ = run("--help")
    assert code == 0
    for option in ("--dataset", "--data-dir", "--model", "--seed", "--runs-dir", "--budget"):
        assert option in out
