"""The console command: help and wrong options come before JAX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlprune_jax.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from rlprune_jax.cli.main import main
sys.argv = ["rlprune", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(f"exit {end.code}", {"jax", "numpy", "matplotlib"} & set(sys.modules) or "light")
"""


def rlprune(*args):
    """Run the command in a process of its own; it ends with its exit code and what it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 0, "prune"),
        (("prnue",), 2, "there is no command 'prnue'"),
        (("prune", "--help"), 0, "search options"),
        (("inspect", "--help"), 0, "--input-shape"),
        (("predict", "--help"), 0, "PATH"),
        (("prune", "--bugdet", "params=0.1"), 2, "--bugdet"),
        (("prune", "--granularity", "medium"), 2, "medium"),
        (("prune",), 2, "no budget is given"),
        (("prune", "--budget", "flops=0.5"), 2, "known budgets: params, macs"),
        (("prune", "--budget", "params=0"), 2, "(0, 1]"),
        (("prune", "--budget", "params=0.5", "--model", "no_such_module:f"), 2, "no_such_module"),
        (("inspect", "--model", "resnet21"), 2, "choose from mlp, cnn"),
        (("predict", "/nowhere"), 2, "/nowhere/config.json cannot be read"),
    ],
)
def test_help_and_wrong_options_come_before_jax(args, code, said):
    out, err = rlprune(*args)
    assert out.splitlines()[-1] == f"exit {code} light"
    assert said in out + err
    assert "Traceback" not in err
    if err.startswith("error: "):
        assert len(err.splitlines()) == 1 or args == ("prnue",)


def test_every_command_has_a_line():
    assert set(COMMANDS) == {"prune", "sap", "study", "predict", "inspect"}
    out, _ = rlprune("--help")
    assert all(text in out for text in COMMANDS.values())
