"""The scripts are the commands: same options, same errors, same help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments"


def run(script, *options):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    return done.returncode, done.stdout, done.stderr


def test_help_explains_every_option():
    code, out, _ = run("prune_rl.py", "--help")
    assert code == 0
    for option in ("--dataset", "--data-dir", "--model", "--seed", "--runs-dir", "--budget"):
        assert option in out


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("prune_rl.py", ("--budget", "flops=0.1"), "budget 'flops' is unknown"),
        ("predict.py", ("/nowhere",), "/nowhere/config.json cannot be read"),
        ("compare_methods.py", (), "no budget is given"),
        ("compare_methods.py", ("--seeds", "0", "--budget", "params=0.2"), "seeds=0 must be"),
        ("compare_methods.py", ("--seeds", "-1", "--budget", "params=0.2"), "seeds=-1 must be"),
        (
            "compare_methods.py",
            ("--budget", "params=0.2", "--figure", "/proc/x/y.png"),
            "figure=/proc/x/y.png cannot be written",
        ),
        (
            "compare_methods.py",
            ("--budget", "params=0.2", "--figure", "front.txt"),
            "figure=front.txt must end in",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_code_two(script, options, message):
    code, out, err = run(script, *options)
    assert code == 2 and not out
    assert err.startswith(f"error: {message}") and len(err.strip().splitlines()) == 1


def test_scripts_are_thin():
    for name in ("prune_rl.py", "predict.py"):
        assert len((SCRIPTS / name).read_text().splitlines()) < 100
