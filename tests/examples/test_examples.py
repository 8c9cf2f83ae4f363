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

DRIVER = """
import runpy, sys
import numpy as np
found = runpy.run_path(sys.argv[1], run_name="__main__")
result, network = found["result"], found["network"]
delivered, task = result.delivered["agent"], found["task"]
inputs = task.objective.network_inputs(task.sample("test", 32))
masked = network.definition.masked(delivered.variables, delivered.gates, *inputs)
dense = sum(leaf.size for leaf in delivered.gates.values())
np.savez(
    "twin.npz", inputs=inputs[0], masked=masked, dense=result.dense.metric, units=dense,
    metric=result.pruned.metric, within=result.is_within_budgets, kept=sum(delivered.kept.values()),
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
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_loads_in_another_process(name, tmp_path):
    script = str(FOLDER / f"{name}.py")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", DRIVER, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^agent .*%", done.stdout, re.MULTILINE)

    twin = np.load(tmp_path / "twin.npz")
    assert twin["within"]
    assert twin["kept"] < twin["units"]
    assert twin["dense"] > KNOWS_NOTHING[name]
    assert twin["metric"] > KNOWS_NOTHING[name]
    # This process has never seen the trained weights: `load` starts from an initialisation.
    slim = runpy.run_path(script)["load"](tmp_path / name.replace("prune", "slim"))
    outputs = np.asarray(slim(twin["inputs"]))
    np.testing.assert_allclose(outputs, twin["masked"], rtol=1e-5, atol=1e-5)
