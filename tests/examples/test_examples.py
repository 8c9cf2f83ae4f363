"""Every example runs as it stands, and its slim network loads in another process."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("prune_*.py"))

# What a network without any knowledge reaches: the most frequent of ten digits, a uniform guess of
# 16 tokens, the mean of targets that are standardised.
KNOWS_NOTHING = dict.fromkeys(NAMES, 0.11) | {
    "prune_language_model": -np.log(16),
    "prune_regression": -1.0,
}

# One process trains and prunes them all, for the imports alone take seconds.
DRIVER = """
import os, runpy, sys
import numpy as np
for script in sys.argv[1:]:
    print("==", script, flush=True)
    found = runpy.run_path(script, run_name="__main__")
    result, network, task = found["result"], found["network"], found["task"]
    delivered = result.delivered["agent"]
    inputs = task.objective.network_inputs(task.sample("test", 32))
    masked = network.definition.masked(delivered.variables, delivered.gates, *inputs)
    np.savez(
        os.path.basename(script), inputs=inputs[0], masked=masked, within=result.is_within_budgets,
        dense=result.dense.metric, metric=result.pruned.metric, kept=sum(delivered.kept.values()),
        units=sum(result.groups.values()),
    )
"""


def test_there_are_seven():
    assert [
        f"prune_{name}"
        for name in ("equinox", "haiku", "keras", "language_model", "linen", "nnx", "regression")
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) < 60
    ours = [line for line in lines if re.search(r"\brp\b|result|load_slim", line)]
    assert len(ours) <= 10


@pytest.mark.slow
def test_examples_run_and_load_in_another_process(tmp_path):
    scripts = [str(FOLDER / f"{name}.py") for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", DRIVER, *scripts],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    assert len(re.findall(r"^agent .*%", done.stdout, re.MULTILINE)) == len(NAMES)
    for name, script in zip(NAMES, scripts, strict=True):
        twin = np.load(tmp_path / f"{name}.py.npz")
        assert twin["within"], name
        assert twin["kept"] < twin["units"], name
        assert min(twin["dense"], twin["metric"]) > KNOWS_NOTHING[name], name
        # This process has never seen the trained weights: `load` starts from an initialisation.
        slim = runpy.run_path(script)["load"](tmp_path / name.replace("prune", "slim"))
        outputs = np.asarray(slim(twin["inputs"]))
        np.testing.assert_allclose(outputs, twin["masked"], rtol=1e-5, atol=1e-5, err_msg=name)
