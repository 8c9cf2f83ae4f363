"""The face of the room: every name is there, and nothing is loaded before it is used."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rlprune_jax
from rlprune_jax import runs

PACKAGE = Path(rlprune_jax.__file__).parent

# The room alone: the face of the whole package may load more.
ALONE = f"""
import sys, types
package = types.ModuleType("rlprune_jax")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["rlprune_jax"] = package
before = set(sys.modules)
from rlprune_jax.runs import interruptible
outside = {{name.split(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
assert outside == {{"rlprune_jax"}}, outside
from rlprune_jax.runs import MemoryRun, open_run_at, run_stage
run_stage(MemoryRun(), "x", 0, 1, lambda state, start, count: (state, []))
assert not {{"orbax", "matplotlib"}} & set(sys.modules)
run_stage(open_run_at(sys.argv[1], {{}}), "x", 0, 1, lambda state, start, count: (state, []))
assert "orbax" in sys.modules
"""


def test_every_name_is_there_and_is_no_module():
    for name in runs.__all__:
        assert not isinstance(getattr(runs, name), types.ModuleType), name
    assert dir(runs) == sorted(runs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runs.nothing


def test_a_name_is_loaded_when_it_is_used(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
